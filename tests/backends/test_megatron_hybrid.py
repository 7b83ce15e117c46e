"""Qwen3-Next in Megatron's names: two layouts of one model, and a norm around zero."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import ml_dtypes  # noqa: F401 - numpy learns bfloat16
import numpy as np
import pytest
from safetensors.numpy import load_file
from support.helpers import tensors, unpacked

from ckptconv import CkptconvError, merge
from ckptconv.backends import open_checkpoint
from ckptconv.compute.block import Block
from ckptconv.compute.sources import Shift
from ckptconv.models import megatron, translate
from ckptconv.read.reader import Reader, read_numpy
from ckptconv.tensors.view import View, stored

NATIVE = ("qwen3_next_mb", "qwen3_next_mtp_mb")
MCORE_BRIDGE = ("qwen3_next_mcb", "qwen3_next_mtp_mcb")
A = "decoder.layers.0.self_attention."
NORMS = tuple(
    f"{layer}.pre_mlp_layernorm.weight"
    for layer in ("decoder.layers.0", "decoder.layers.1", "mtp.layers.0.transformer_layer")
)


def home(case: str) -> Path:
    return unpacked(f"megatron/{case}")


def config(case: str) -> dict[str, Any]:
    return json.loads((home(case) / "hf" / "config.json").read_text())


def views(case: str) -> dict[str, View]:
    return {name: tensor.view for name, tensor in open_checkpoint(home(case) / "run").tensors.items()}


@pytest.mark.parametrize("case", NATIVE + MCORE_BRIDGE)
def test_the_way_back_makes_the_stored_tensors(case: str) -> None:
    """All but the norm around zero, which would be rounded."""
    held, rounded = views(case), f"{A}out_norm.weight" if case in NATIVE else ""
    family = megatron.family_of(config(case)).variant_for(held)
    hub = load_file(home(case) / "hf" / "model.safetensors")
    if rounded:
        del hub["model.layers.0.linear_attn.norm.weight"]
    made = translate.to_trained(family, hub, config(case))
    # A norm has two homes, by what kind of layer follows it; the way back knows one.
    assert {name for name in held.keys() - made.keys() if "layer_norm" not in name} <= {rounded, *NORMS}
    for name in held.keys() & made.keys():
        rows = read_numpy(held[name])[: made[name].shape[0]]  # the vocabulary is padded
        assert rows.tobytes() == np.ascontiguousarray(made[name]).tobytes(), name


def test_a_norm_around_zero_is_not_put_back() -> None:
    family = megatron.family_of(config("qwen3_next_mb")).variant_for(views("qwen3_next_mb"))
    hub = load_file(home("qwen3_next_mb") / "hf" / "model.safetensors")
    with pytest.raises(CkptconvError, match="rounded"):
        translate.to_trained(family, hub, config("qwen3_next_mb"))


def test_both_layouts_of_one_model_become_the_same_model(tmp_path: Path) -> None:
    for case in ("qwen3_next_mb", "qwen3_next_mcb"):
        merge(home(case) / "run", tmp_path / case, config=home(case) / "hf")
    assert tensors(tmp_path / "qwen3_next_mb") == tensors(tmp_path / "qwen3_next_mcb")


def test_without_a_delta_net_the_order_of_the_gates_is_not_guessed() -> None:
    held = {name: view for name, view in views("qwen3_next_mb").items() if not name.startswith(A)}
    with pytest.raises(CkptconvError, match=r"linear_qkv\.weight does not have the layout"):
        megatron.to_hub(held, config("qwen3_next_mb"))


@pytest.mark.parametrize("key", ["linear_num_key_heads", "linear_value_head_dim"])
@pytest.mark.parametrize("case", ["qwen3_next_mb", "qwen3_next_mcb"])
def test_another_models_sizes_are_refused(case: str, key: str) -> None:
    with pytest.raises(CkptconvError, match=r"does not have the layout that config\.json implies"):
        megatron.to_hub(views(case), config(case) | {key: 3})


def test_one_of_the_parts_missing_is_refused() -> None:
    held = views("qwen3_next_mb")
    del held[f"{A}in_proj.weight.z"]
    with pytest.raises(CkptconvError, match=r"some pieces needed for .*in_proj_qkvz"):
        megatron.to_hub(held, config("qwen3_next_mb"))


@pytest.mark.parametrize("case", ["qwen3_next_mtp_mb", "qwen3_next_mtp_mcb"])
def test_the_mtp_layer_can_be_left_out(case: str, tmp_path: Path) -> None:
    merge(home(case) / "run", tmp_path / "out", config=home(case) / "hf", mtp="drop")
    wanted = {n: t for n, t in tensors(home(case) / "hf").items() if not n.startswith("mtp.")}
    assert tensors(tmp_path / "out") == wanted


def test_rank_files_of_a_delta_net_are_refused(tmp_path: Path) -> None:
    """Their in_proj has one name in both layouts."""
    torch = pytest.importorskip("torch")
    folder = tmp_path / "iter_0000001" / "mp_rank_00"
    folder.mkdir(parents=True)
    model = {f"{A}in_proj.weight": torch.zeros(84, 22), "decoder.final_layernorm.weight": torch.zeros(22)}
    torch.save({"model": model}, folder / "model_optim_rng.pt")
    with pytest.raises(CkptconvError, match=r"rows of a gated delta net .* rank files do not record that"):
        open_checkpoint(tmp_path)


@pytest.mark.parametrize("dtype", ["bfloat16", "float16", "float32"])
def test_one_is_added_as_torch_adds_it(dtype: str, tmp_path: Path) -> None:
    """Every value of the 16-bit floats, also those that lost bits when one was taken away: as the bridge's export."""
    torch = pytest.importorskip("torch")
    bits = np.arange(1 << 16, dtype=np.uint16)
    raw = (bits.astype(np.uint32) << 13).view(np.float32) if dtype == "float32" else bits
    (tmp_path / "norm").write_bytes(raw.tobytes())
    wanted = torch.frombuffer(bytearray(raw.tobytes()), dtype=getattr(torch, dtype)) + 1
    out, scratch = np.empty(raw.nbytes, np.uint8), np.empty(raw.nbytes * 8, np.uint8)
    with Reader() as reader, np.errstate(invalid="ignore"):
        source = Shift(stored(str(tmp_path / "norm"), 0, raw.shape, dtype), 1.0)
        Block(source, dtype).fill(reader, 0, raw.size, out, scratch)
    found = torch.frombuffer(bytearray(out.tobytes()), dtype=getattr(torch, dtype))
    assert torch.equal(found.nan_to_num(0), wanted.nan_to_num(0))
    assert torch.equal(found.isnan(), wanted.isnan())
