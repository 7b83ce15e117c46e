"""merge: the same bytes as torch, save_pretrained and verl make."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from support.helpers import (
    FIXTURES,
    LORA,
    NO_HUB,
    VARIANTS,
    VERL,
    assert_equal,
    cast,
    edit_config,
    own_copy,
    save_ws1,
    tensors,
)
from support.published import as_published

from ckptconv.commands.merge.run import merge

Made = Callable[[str], Path]

WITH_HUB = tuple(v for v in VARIANTS if v not in (*NO_HUB, *LORA))


@pytest.mark.parametrize("variant", WITH_HUB)
def test_dtype_keep_equals_save_pretrained(made: Made, tmp_path: Path, variant: str) -> None:
    merge(made(variant), tmp_path / "out", dtype="keep")
    assert_equal(tensors(tmp_path / "out"), as_published(variant, tensors(made(variant) / "hub")))


@pytest.mark.parametrize("variant", NO_HUB)
def test_models_that_transformers_does_not_know_keep_their_names(
    made: Made, tmp_path: Path, variant: str
) -> None:
    merge(made(variant), tmp_path / "out", dtype="keep")
    assert_equal(tensors(tmp_path / "out"), tensors(made(variant) / "truth.safetensors"))


@pytest.mark.parametrize(
    "variant",
    ["fsdp2_w4", "fsdp2_bf16_w4", "shard1_w2", "fsdp1_sharded_tensor_w2", "buffers_w2", "qwen3_moe_w4"],
)
def test_dtype_auto_equals_torchs_own_cast_to_bf16(made: Made, tmp_path: Path, variant: str) -> None:
    """Integers, bools and what is bf16 already stay."""
    merge(made(variant), tmp_path / "out")
    reference = "truth.safetensors" if variant in NO_HUB else "hub"
    assert_equal(tensors(tmp_path / "out"), cast(tensors(made(variant) / reference)))


def test_dtype_auto_rounds_every_kind_of_float_as_torch_does(tmp_path: Path) -> None:
    """Ties, subnormals, infinities, the largest floats, and NaN, which must not become Inf."""
    import torch

    bits = torch.tensor(
        [0x3F808000, 0x3F818000, 0x7F7FFFFF, 0x7F800000, -0x800000, 1, 0x8000, 0x7FC00000, 0x7F800001]
    )
    special = bits.to(torch.int32).view(torch.float32)
    values = torch.cat([special, torch.randn(2**17 + 3, generator=torch.Generator().manual_seed(0))])
    run = save_ws1({"w": values}, {"model_type": "odd"}, tmp_path / "run")
    for name in ("bfloat16", "float16"):
        merge(run, tmp_path / name, dtype=name)
        found = torch.frombuffer(bytearray(tensors(tmp_path / name)["w"].data), dtype=getattr(torch, name))
        assert torch.equal(found.isnan(), values.isnan())
        wanted = values.to(getattr(torch, name))
        assert torch.equal(found[~found.isnan()], wanted[~wanted.isnan()])


@pytest.mark.parametrize(("dtype", "code"), [("float32", "F32"), ("bfloat16", "BF16"), ("float16", "F16")])
def test_a_forced_dtype_is_every_floats_dtype(made: Made, tmp_path: Path, dtype: str, code: str) -> None:
    merge(made("fsdp2_bf16_w4"), tmp_path / "out", dtype=dtype)
    assert {t.dtype for t in tensors(tmp_path / "out").values()} == {code}
    assert json.loads((tmp_path / "out" / "config.json").read_text())["dtype"] == dtype


def test_bf16_widens_to_the_same_values(made: Made, tmp_path: Path) -> None:
    merge(made("fsdp2_bf16_w4"), tmp_path / "wide", dtype="float32")
    merge(made("fsdp2_bf16_w4"), tmp_path / "kept", dtype="keep")
    kept = {name: t for name, t in tensors(tmp_path / "kept").items() if t.dtype == "BF16"}
    wide = tensors(tmp_path / "wide")
    assert kept
    assert_equal(cast({name: wide[name] for name in kept}), kept)


def test_the_configs_own_dtype_is_followed(made: Made, tmp_path: Path) -> None:
    run = own_copy(made("fsdp2_w4"), tmp_path / "run")
    edit_config(run, dtype="float16")
    merge(run, tmp_path / "out")
    assert_equal(tensors(tmp_path / "out"), cast(tensors(made("fsdp2_w4") / "hub"), "float16"))


@pytest.mark.parametrize(("case", "role"), [item for item in VERL if "lora" not in item[0]])
def test_the_output_equals_what_verls_own_merger_wrote(tmp_path: Path, case: str, role: str) -> None:
    folder = FIXTURES / case
    merge(folder / "run" / role, tmp_path / "out")
    theirs = json.loads((folder / "truth" / role / "verl_merged.sha256.json").read_text())
    assert found_in(tmp_path / "out" / "model.safetensors") == theirs["tensors"]["model.safetensors"]
    assert set(theirs["files"]) - {"generation_config.json"} <= {p.name for p in (tmp_path / "out").iterdir()}
    config = json.loads((tmp_path / "out" / "config.json").read_text())
    assert config["dtype"] == theirs["config"]["dtype"]
    assert config["tie_word_embeddings"] == theirs["config"]["tie_word_embeddings"]


def found_in(file: Path) -> dict[str, Any]:
    return {
        name: {"dtype": t.dtype, "shape": list(t.shape), "sha256": hashlib.sha256(t.data).hexdigest()}
        for name, t in tensors(file).items()
    }


@pytest.mark.parametrize("variant", ["qwen3_moe_w4", "qwen2_5_vl_w4", "fsdp2_tp_uneven_w4", "critic_w2"])
def test_layout_module_keeps_names_and_layouts_as_trained(made: Made, tmp_path: Path, variant: str) -> None:
    merge(made(variant), tmp_path / "out", dtype="keep", layout="module")
    assert_equal(tensors(tmp_path / "out"), tensors(made(variant) / "truth.safetensors"))


@pytest.mark.parametrize("workers", [1, 5])
@pytest.mark.parametrize("variant", ["fsdp2_tp_uneven_w4", "mixtral_w4", "lora_w4"])
def test_threads_do_not_change_a_byte(made: Made, tmp_path: Path, variant: str, workers: int) -> None:
    merge(made(variant), tmp_path / "one", workers=1)
    merge(made(variant), tmp_path / "many", workers=workers, max_shard_size="20KB")
    assert_equal(tensors(tmp_path / "many"), tensors(tmp_path / "one"))


def test_tensors_larger_than_a_block_are_cut_and_joined_right(tmp_path: Path) -> None:
    import torch

    big = torch.randn(1_100, 1_003, generator=torch.Generator().manual_seed(1))
    run = save_ws1(
        {"big": big, "turned": big.T, "odd": big[::3, 1::2]}, {"model_type": "odd"}, tmp_path / "run"
    )
    merge(run, tmp_path / "kept", dtype="keep")
    merge(run, tmp_path / "cast", workers=3)
    found = tensors(tmp_path / "kept")
    assert found["big"].data == big.numpy().tobytes()
    assert found["turned"].data == big.T.contiguous().numpy().tobytes()
    assert found["odd"].data == big[::3, 1::2].contiguous().numpy().tobytes()
    assert_equal(tensors(tmp_path / "cast"), cast(found))


def test_a_model_folder_can_be_merged_again_into_another_dtype_or_cut(made: Made, tmp_path: Path) -> None:
    merge(made("fsdp2_w4") / "hub", tmp_path / "kept", max_shard_size="20KB")
    assert_equal(tensors(tmp_path / "kept"), tensors(made("fsdp2_w4") / "hub"))
    merge(made("fsdp2_w4") / "hub", tmp_path / "cast", dtype="bfloat16")
    assert_equal(tensors(tmp_path / "cast"), cast(tensors(made("fsdp2_w4") / "hub")))


@pytest.mark.parametrize("variant", ["arch_qwen3_vl_w2", "mixtral_w4"])
def test_a_model_folder_with_the_hubs_names_keeps_them(made: Made, tmp_path: Path, variant: str) -> None:
    merge(made(variant) / "hub", tmp_path / "out")
    assert_equal(tensors(tmp_path / "out"), tensors(made(variant) / "hub"))
