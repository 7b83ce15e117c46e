"""Megatron-Bridge's adapters: merged, exported as PEFT has them, or refused; never dropped."""

from __future__ import annotations

import json
import re
import shutil
from pathlib import Path

import ml_dtypes  # noqa: F401 - numpy learns bfloat16
import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from support.helpers import unpacked
from transformers import AutoModelForCausalLM

from ckptconv import CkptconvError, merge
from ckptconv.backends import open_checkpoint
from ckptconv.backends.megatron.names import canonical as canonical_names
from ckptconv.models import lora
from ckptconv.models.lora.place import Placed, place
from ckptconv.models.megatron import to_hub
from ckptconv.tensors.checkpoint import StoredTensor
from ckptconv.tensors.view import stored

CASES = ("lora_mb", "lora_mlm_legacy", "lora_v2")
ALPHA = 6
Tensors = dict[str, torch.Tensor]


def home(case: str) -> Path:
    return unpacked(f"megatron/{case}")


def model(case: str) -> dict[str, Path]:
    """lora_v2 holds adapters alone."""
    return {"base" if case == "lora_v2" else "config": home(case) / "hf"}


def bits(tensor: torch.Tensor) -> torch.Tensor:
    return tensor.contiguous().view(torch.uint8)


@pytest.mark.parametrize("case", CASES)
def test_merged_weights_are_the_exact_ones_rounded_once(case: str, tmp_path: Path) -> None:
    """Megatron-Bridge rounds to bf16 three times: the product, its scaled form and the sum."""
    merge(home(case) / "run", tmp_path / "out", lora_alpha=ALPHA, dtype="keep", **model(case))
    found, bridge = (
        load_file(tmp_path / "out" / "model.safetensors"),
        load_file(home(case) / "merged.safetensors"),
    )
    base, factors = (
        load_file(home(case) / "hf" / "model.safetensors"),
        load_file(home(case) / "adapter.safetensors"),
    )
    assert found.keys() == bridge.keys()
    for name, tensor in found.items():
        stem = name.removesuffix(".weight")
        if f"{stem}.lora_A.weight" not in factors:
            assert torch.equal(bits(tensor), bits(base[name])), name
            continue
        a, b = factors[f"{stem}.lora_A.weight"], factors[f"{stem}.lora_B.weight"]
        exact = base[name].double() + b.double() @ a.double() * ALPHA / 4
        assert torch.equal(tensor, exact.to(torch.bfloat16)), name
        assert torch.equal(base[name] + ALPHA / 4 * (b @ a), bridge[name]), name  # its own order of rounding
        bound = (
            2**-7 * (exact.abs() + (exact - base[name].double()).abs()) * 1.01
        )  # four roundings of half a bit
        assert ((tensor.double() - bridge[name].double()).abs() <= bound).all(), name


@pytest.mark.parametrize("case", CASES)
def test_exported_adapters_are_those_of_megatron_bridge(case: str, tmp_path: Path) -> None:
    merge(home(case) / "run", tmp_path / "out", lora="adapter", lora_alpha=ALPHA, config=home(case) / "hf")
    found = load_file(tmp_path / "out" / "adapter_model.safetensors")
    wanted = load_file(home(case) / "adapter.safetensors")
    assert sorted(found) == sorted(f"base_model.model.{name}" for name in wanted)
    for name, tensor in wanted.items():
        assert torch.equal(bits(found[f"base_model.model.{name}"]), bits(tensor)), name


def test_an_exported_adapter_loads_in_peft_and_merges_to_the_same(tmp_path: Path) -> None:
    from peft import PeftModel

    case = home("lora_mb")
    merge(case / "run", tmp_path / "out", lora="both", lora_alpha=ALPHA, config=case / "hf", dtype="float32")
    base = AutoModelForCausalLM.from_pretrained(case / "hf", dtype=torch.float32)
    wrapped = PeftModel.from_pretrained(base, tmp_path / "out" / "lora_adapter")
    merged = wrapped.merge_and_unload().state_dict()
    for name, tensor in load_file(tmp_path / "out" / "model.safetensors").items():
        torch.testing.assert_close(tensor, merged[name].float(), rtol=0, atol=1e-6)


def test_adapters_alone_become_an_adapter(tmp_path: Path) -> None:
    done = merge(home("lora_v2") / "run", tmp_path / "out", lora_alpha=ALPHA)
    assert done.plan.is_adapter
    assert any("--base" in note for note in done.plan.notes)


# --- alpha


@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize("choice", ["merge", "adapter"])
def test_without_an_alpha_nothing_is_guessed(case: str, choice: str, tmp_path: Path) -> None:
    given = model(case) if choice == "merge" else {"config": home(case) / "hf"}
    with pytest.raises(CkptconvError, match="does not record their alpha") as error:
        merge(home(case) / "run", tmp_path / "out", lora=choice, **given)
    assert "--lora-alpha" in str(error.value.hint)
    assert not (tmp_path / "out").exists()


def test_the_alpha_of_megatron_bridges_run_config_is_used(tmp_path: Path) -> None:
    """The section as Megatron-Bridge writes it for a run of its own; the fixture's adapters came by a hook."""
    run = Path(shutil.copytree(home("lora_mb") / "run", tmp_path / "run"))
    path = next(run.rglob("run_config.yaml"))
    section = (
        "peft:\n  _target_: megatron.bridge.peft.lora.LoRA\n  a2a_experimental: false\n  alpha: 6\n  dim: 4\n"
        "  dropout: 0.0\n  lora_dtype: null\n  target_modules:\n  - linear_qkv\n"
    )
    path.write_text(re.sub(r"^peft: null\n", section, path.read_text(), flags=re.MULTILINE))
    assert open_checkpoint(run).lora.settings == {"r": 4, "lora_alpha": 6}
    merge(run, tmp_path / "stated", config=home("lora_mb") / "hf")
    merge(run, tmp_path / "said", config=home("lora_mb") / "hf", lora_alpha=ALPHA)
    one, two = (tmp_path / name / "model.safetensors" for name in ("stated", "said"))
    assert one.read_bytes() == two.read_bytes()


def test_the_alpha_of_verls_metadata_is_used(tmp_path: Path) -> None:
    run = Path(shutil.copytree(home("lora_v2") / "run", tmp_path / "run"))
    (run / "global_step_10" / "actor" / "lora_train_meta.json").write_text('{"r": 4, "lora_alpha": 6}')
    merge(run, tmp_path / "out")
    assert json.loads((tmp_path / "out" / "adapter_config.json").read_text())["lora_alpha"] == ALPHA


# --- forms that no file here has: by Megatron-Bridge's source


def config(case: str = "lora_mb") -> dict[str, object]:
    return dict(json.loads((home(case) / "hf" / "config.json").read_text()))


def placed(tensors: dict[str, tuple[int, ...]]) -> list[Placed]:
    views = {name: stored("file", 100 * i, shape, "uint8") for i, (name, shape) in enumerate(tensors.items())}
    parts = lora.separate(views)
    return list(place(parts.factors, lambda found: to_hub(found, config())).placed)


def canonical(module: str, sizes: dict[str, int]) -> dict[str, tuple[int, ...]]:
    stem = f"decoder.layers.1.{module}.adapter.adapter_"
    return {
        f"{stem}{part}.linear_{side}.weight": (4, 30) if side == "in" else (rows, 4)
        for part, rows in sizes.items()
        for side in ("in", "out")
    }


def test_canonical_adapters_belong_to_one_projection_each() -> None:
    found = placed(canonical("self_attention.linear_qkv", {"v": 10, "q": 30, "k": 10}))
    stem = "model.layers.1.self_attn."
    assert {each.weight: each.factors.part for each in found} == {
        f"{stem}q_proj.weight": "q",
        f"{stem}k_proj.weight": "k",
        f"{stem}v_proj.weight": "v",
    }
    found = placed(canonical("mlp.linear_fc1", {"up": 42, "gate": 42}))
    assert [each.factors.part for each in found] == ["gate", "up"]


def test_canonical_adapters_for_a_part_are_refused() -> None:
    with pytest.raises(CkptconvError, match="some parts"):
        placed(canonical("self_attention.linear_qkv", {"q": 30}))


def test_canonical_gate_and_up_of_several_ranks_are_refused() -> None:
    """Their rows are saved as a fused weight's: first halves of all ranks, then second halves."""
    from ckptconv.tensors.view import cat

    views = {
        n: stored("file", 0, s, "uint8") for n, s in canonical("mlp.linear_fc1", {"gate": 8, "up": 8}).items()
    }
    for name in [name for name in views if "linear_out" in name]:
        views[name] = cat([stored("file", 64 * i, (2, 4), "uint8") for i in range(4)], 0)
    with pytest.raises(CkptconvError, match="tensor parallelism"):
        place(lora.separate(views).factors, lambda found: to_hub(found, config()))


@pytest.mark.parametrize("name", ["experts.linear_fc1", "experts.experts.linear_fc1"])
def test_an_adapter_that_all_experts_share_is_refused(name: str) -> None:
    """Grouped GEMM: two layers' pairs in one stack; megatron/core's TEGroupedMLP puts a second `experts` into names."""
    stem = f"decoder.layers.mlp.{name}.adapter.linear_"
    shapes = {f"{stem}in.weight": (2, 4, 30), f"{stem}out.weight": (2, 84, 4)}
    tensors = canonical_names({n: StoredTensor(stored("file", 0, s, "uint8")) for n, s in shapes.items()})
    with pytest.raises(CkptconvError, match="shared by all experts"):
        lora.separate({n: tensor.view for n, tensor in tensors.items()})


def test_doras_magnitudes_are_refused_by_name() -> None:
    stem = "decoder.layers.0.mlp.linear_fc2.adapter."
    shapes = {f"{stem}linear_in.weight": (4, 42), f"{stem}linear_out.weight": (30, 4)}
    with pytest.raises(CkptconvError, match="DoRA"):
        placed(shapes | {f"{stem}weight_magnitude": (30,)})


def test_a_wrapped_weight_is_its_own() -> None:
    views = {"decoder.layers.0.mlp.linear_fc2.to_wrap.weight": stored("file", 0, (30, 42), "uint8")}
    assert list(lora.separate(views).weights) == ["decoder.layers.0.mlp.linear_fc2.weight"]


def test_rank_files_are_cut_over_tp_as_the_source_says() -> None:
    """Every adapter of the rank files is the one that Megatron-Bridge exports: see the tests above; here its shape."""
    tensors = open_checkpoint(home("lora_mlm_legacy") / "run").tensors
    shapes = {
        name.split(".", 3)[3]: tensor.view.shape for name, tensor in tensors.items() if ".adapter." in name
    }
    assert shapes["self_attention.linear_qkv.adapter.linear_in.weight"] == (4, 30)
    assert shapes["mlp.linear_fc2.adapter.linear_in.weight"] == (4, 42)
    assert shapes["mlp.linear_fc1.adapter.linear_out.weight"] == (84, 4)
    assert np.prod(shapes["self_attention.linear_proj.adapter.linear_out.weight"]) == 120
