"""Checkpoints that Megatron-FSDP wrote (tests/make/megatron/fsdp_dtensor.py) become the model that was put into it."""

from __future__ import annotations

import pickle
import re
import shutil
from pathlib import Path
from typing import Any

import ml_dtypes  # noqa: F401 - numpy learns bfloat16
import numpy as np
import pytest
from safetensors.numpy import load_file
from support.helpers import FIXTURES, unpacked

from ckptconv import CkptconvError, merge
from ckptconv.backends import open_checkpoint
from ckptconv.tensors.view import narrow

CASES = sorted(path.name.removesuffix(".tar.xz") for path in (FIXTURES / "megatron_fsdp").glob("*.tar.xz"))
EXPERTS = "qwen3_moe_fsdp_ep2"


def home(case: str) -> Path:
    return unpacked(f"megatron_fsdp/{case}")


def copy_of(case: str, to: Path) -> Path:
    return Path(shutil.copytree(home(case) / "run", to / "run"))


def change(run: Path, old: bytes, new: bytes) -> None:
    """Bytes of .metadata that torch's own pickle still reads afterwards."""
    path = run / "iter_0000010" / ".metadata"
    data = path.read_bytes()
    assert old in data
    assert len(old) == len(new)
    path.write_bytes(data.replace(old, new))
    pytest.importorskip("torch")
    pickle.loads(path.read_bytes())


def test_there_are_fixtures() -> None:
    assert len(CASES) == 4


@pytest.mark.parametrize("case", CASES)
def test_the_model_comes_back_bit_for_bit(case: str, tmp_path: Path) -> None:
    """Masters are float32 and were made of bfloat16, so the model in bfloat16 is what was put in."""
    result = merge(home(case) / "run", tmp_path / "out", config=home(case) / "hf")
    assert result.plan.checkpoint.backend == "megatron_fsdp"
    found: dict[str, np.ndarray[Any, Any]] = {}
    for file in result.plan.files:
        found.update(load_file(tmp_path / "out" / file.name))
    truth = load_file(home(case) / "hf" / "model.safetensors")
    assert sorted(found) == sorted(truth)
    for name, stored in truth.items():
        router = case.startswith("deepseek") and name.endswith(
            ".mlp.gate.weight"
        )  # float32 in transformers 5.24
        array = stored.astype(np.float32) if router else stored
        assert (found[name].dtype, found[name].shape) == (array.dtype, array.shape), name
        assert found[name].tobytes() == array.tobytes(), name


def test_names_are_canonical_and_halves_are_joined() -> None:
    tensors = open_checkpoint(home(EXPERTS) / "run").tensors
    name = "decoder.layers.1.mlp.experts.5.linear_fc1.weight"
    assert tensors[name].view.shape == (20, 22)
    assert len(narrow(tensors[name].view, 0, 0, 10).chunks) == 2, "a half that two ranks share"
    assert not [name for name in tensors if re.search(r"_[wv]$|module\.|weight\d", name)]


def test_the_mesh_is_read_from_the_random_states() -> None:
    checkpoint = open_checkpoint(home("qwen2_fsdp_tp2") / "run")
    assert [str(mesh) for mesh in checkpoint.meshes] == ["tp 2"]
    assert {item.reason for item in checkpoint.skipped} == {"trainer state"}
    assert checkpoint.step == 10


def test_a_half_without_its_other_half(tmp_path: Path) -> None:
    run = copy_of("qwen2_fsdp3", tmp_path)
    change(run, b"layers.1.mlp.linear_fc1.weight_w", b"layers.1.mlp.linear_fc1.weight_x")
    with pytest.raises(CkptconvError, match=r"only one of the two halves of .* is stored"):
        open_checkpoint(run)


def test_pipeline_stages_are_refused(tmp_path: Path) -> None:
    run = copy_of("qwen2_fsdp_tp2", tmp_path)
    change(run, b"rng_state.(0, 1).0", b"rng_state.(1, 0).0")
    with pytest.raises(CkptconvError, match="pipeline stages") as error:
        open_checkpoint(run)
    assert error.value.hint


def test_a_name_outside_the_module_is_refused(tmp_path: Path) -> None:
    run = copy_of("qwen2_fsdp3", tmp_path)
    change(run, b"model.module.output_layer.weight", b"model.modulo.output_layer.weight")
    with pytest.raises(CkptconvError, match=r"model\.modulo\.output_layer"):
        open_checkpoint(run)
