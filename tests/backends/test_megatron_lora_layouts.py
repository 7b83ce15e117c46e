"""Adapters on every kind of layout: the whole merge is base + alpha / r * B @ A of the stored weight, in the Hub's rows.

The base weights are those of a real checkpoint. The adapters have the names of Megatron-Bridge or mcore-bridge, and
torch's own writer saves both.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import ml_dtypes  # noqa: F401 - numpy learns bfloat16
import numpy as np
import pytest
from safetensors.numpy import load_file
from support.helpers import unpacked

from ckptconv import CkptconvError, merge
from ckptconv.backends import open_checkpoint
from ckptconv.models import megatron
from ckptconv.read.reader import read_numpy

torch = pytest.importorskip("torch")
dcp = pytest.importorskip("torch.distributed.checkpoint")

RANK, ALPHA = 2, 3
Arrays = dict[str, np.ndarray[Any, Any]]
A, M, L = "decoder.layers.0.self_attention.", "mlp.", "decoder.layers."
MAMBA = {"decoder.layers.0.mixer.in_proj": ("z", "x", "B", "C", "dt")}
# fixture -> the modules that have an adapter: their stored names, without `.weight`.
ADAPTED: dict[str, tuple[str, ...]] = {
    "qwen3_5_mcb": (  # QKV with gates beside the queries, and a delta net
        f"language_model.{L}1.self_attention.linear_qkv",
        f"language_model.{A}in_proj",
        f"language_model.{A}out_proj",
        f"language_model.{L}0.mlp.linear_fc1",
    ),
    "qwen3_5_moe_text_mb": (f"{L}1.self_attention.linear_qkv", f"{L}0.mlp.shared_experts.linear_fc1"),
    "qwen3_5_hf_mcb": (f"language_model.{A}in_proj_qkv", f"language_model.{A}out_proj"),
    "glm_moe_dsa_mcb": (  # latent attention, an indexer, experts, shared experts
        *(f"{A}linear_{part}_proj" for part in ("q_down", "q_up", "kv_down", "kv_up")),
        f"{A}linear_proj",
        *(f"{A}core_attention.indexer.linear_{part}" for part in ("wq_b", "wk", "weights_proj")),
        f"{L}1.mlp.experts.3.linear_fc1",
        f"{L}1.mlp.experts.3.linear_fc2",
        f"{L}1.mlp.shared_experts.linear_fc1",
        f"{L}1.mlp.shared_experts.linear_fc2",
    ),
    "bailing_moe_v2_mb": (f"{A}linear_qkv", f"{L}1.mlp.experts.2.linear_fc1"),
    "mimo_v2_flash_mb": (f"{A}linear_qkv", f"{L}1.self_attention.linear_qkv"),  # heads by layer
    "nemotron_h_mtp_mb": (
        "decoder.layers.0.mixer.in_proj",
        "decoder.layers.0.mixer.out_proj",
        f"{L}1.self_attention.linear_qkv",
        f"{L}3.mlp.experts.1.linear_fc1",
    ),
}
STYLES = {
    "Megatron-Bridge": ("adapter.linear_in.weight", "adapter.linear_out.weight", ""),
    "mcore-bridge": ("lora_A.default.weight", "lora_B.default.weight", "base_layer."),
}


def factors(rows: int, columns: int, seed: int) -> tuple[np.ndarray[Any, Any], np.ndarray[Any, Any]]:
    """Values whose products and sums with a bfloat16 are exact in float32."""
    rng = np.random.default_rng(seed)
    return rng.integers(-2, 3, (RANK, columns)) / 64.0, rng.integers(-2, 3, (rows, RANK)) / 64.0


def updated(held: Arrays, module: str, seed: int) -> Iterator[tuple[str, np.ndarray[Any, Any], Any, Any]]:
    """(stored name, new weight, A, the rows of B) of a module; one for each part of a Mamba layer's in_proj."""
    parts = [f"{module}.weight.{part}" for part in MAMBA.get(module, ())] or [f"{module}.weight"]
    rows = [held[name].shape[0] for name in parts]
    a, b = factors(sum(rows), held[parts[0]].shape[1], seed)
    for name, piece in zip(parts, np.split(b, np.cumsum(rows)[:-1]), strict=True):
        weight = held[name].astype(np.float64) + ALPHA / RANK * (piece @ a)
        yield name, weight.astype(np.float32).astype(held[name].dtype), a, piece


def save(case: str, style: str, to: Path) -> tuple[Path, Arrays]:
    """A run with adapters, and the stored weights as they are after a merge."""
    run = Path(shutil.copytree(unpacked(f"megatron/{case}") / "run", to / "run"))
    held = {name: read_numpy(one.view) for name, one in open_checkpoint(run).tensors.items()}
    a_name, b_name, base = STYLES[style]
    state, merged = dict(held), dict(held)
    for seed, module in enumerate(ADAPTED[case]):
        for name, weight, a, b in updated(held, module, seed):
            merged[name] = weight
            part = name.removeprefix(f"{module}.weight")
            state[f"{module}.{a_name}"] = a.astype(np.float32)
            state[f"{module}.{b_name}{part}"] = b.astype(np.float32)
            if base:
                state[f"{module}.{base}weight{part}"] = state.pop(name)
    home = next(run.rglob(".metadata")).parent
    for file in [*home.glob("*.distcp"), home / ".metadata"]:
        file.unlink()
    tensors = {name: as_torch(array) for name, array in state.items()}
    dcp.save(tensors, checkpoint_id=str(home), no_dist=True)
    return run, merged


def as_torch(array: np.ndarray[Any, Any]) -> Any:
    if array.dtype.name == "bfloat16":
        return torch.from_numpy(array.view(np.int16).copy()).view(torch.bfloat16)
    return torch.from_numpy(np.ascontiguousarray(array))


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("style", sorted(STYLES))
@pytest.mark.parametrize("case", sorted(ADAPTED))
def test_the_whole_merge_is_the_base_and_the_product(case: str, style: str, tmp_path: Path) -> None:
    if style == "mcore-bridge" and case == "nemotron_h_mtp_mb":
        pytest.skip("mcore-bridge has no adapters in parts")
    hf = unpacked(f"megatron/{case}") / "hf"
    values = json.loads((hf / "config.json").read_text())
    run, merged = save(case, style, tmp_path)
    result = merge(run, tmp_path / "out", config=hf, lora_alpha=ALPHA, dtype="keep")
    found: Arrays = {}
    for file in result.plan.files:
        found.update(load_file(tmp_path / "out" / file.name))
    made = megatron.to_hub(merged, values)
    wanted = {name: one.value.reshape(one.shape) for name, one in made.tensors.items()}
    wanted |= {copy: wanted[of] for copy, of in made.copies.items()}
    before = load_file(hf / "model.safetensors")
    assert found.keys() == wanted.keys() == before.keys()
    changed = {name for name in found if found[name].tobytes() != before[name].tobytes()}
    assert len(changed) >= len(ADAPTED[case])
    for name in changed:
        assert found[name].tobytes() == wanted[name].astype(found[name].dtype).tobytes(), name
    assert changed == {name for name in wanted if wanted[name].tobytes() != before[name].tobytes()} - norms(
        values
    )


def norms(values: dict[str, Any]) -> set[str]:
    """A delta net's norm is stored as its difference to one, which `to_hub` leaves to the computation."""
    return {
        f"model.layers.{i}.linear_attn.norm.weight" for i in range(int(values.get("num_hidden_layers") or 0))
    }


def test_a_part_of_a_mamba_adapter_that_is_missing_is_named(tmp_path: Path) -> None:
    run, _ = save("nemotron_h_mtp_mb", "Megatron-Bridge", tmp_path)
    home = next(run.rglob(".metadata")).parent
    held = {name: as_torch(read_numpy(one.view)) for name, one in open_checkpoint(run).tensors.items()}
    whole = held.pop("decoder.layers.0.mixer.in_proj.adapter.linear_out.weight")
    for file in [*home.glob("*.distcp"), home / ".metadata"]:
        file.unlink()
    parts = {"decoder.layers.0.mixer.in_proj.adapter.linear_out.weight.z": whole[:4].clone()}
    dcp.save(held | parts, checkpoint_id=str(home), no_dist=True)
    with pytest.raises(CkptconvError, match=r"linear_out\.weight\.x is missing"):
        open_checkpoint(run)
