"""Experts whose gate and up lie in alternating blocks of rows: the settings beside real files are changed, so that the
same bytes mean something else; what they mean is said here by numpy."""

from __future__ import annotations

import argparse
import json
import shutil
from pathlib import Path
from typing import Any

import ml_dtypes  # noqa: F401 - numpy learns bfloat16
import numpy as np
import pytest
from safetensors.numpy import load_file
from support.helpers import unpacked

from ckptconv import CkptconvError, merge
from ckptconv.backends import open_checkpoint

Arrays = dict[str, np.ndarray[Any, Any]]
ROUTED, SHARED = "moe_mlp_glu_interleave_size", "moe_shared_expert_glu_interleave_size"


def a_run(case: str, tmp_path: Path, **changed: Any) -> Path:
    """A copy of a run with other trainer settings."""
    run = Path(shutil.copytree(unpacked(f"megatron/{case}") / "run", tmp_path / "run"))
    path = next(run.rglob("transformer_config.json"))
    path.write_text(json.dumps({**json.loads(path.read_text()), **changed}))
    return run


def merged(case: str, run: Path, tmp_path: Path) -> Arrays:
    result = merge(run, tmp_path / "out", config=unpacked(f"megatron/{case}") / "hf", dtype="keep")
    found: Arrays = {}
    for file in result.plan.files:
        found.update(load_file(tmp_path / "out" / file.name))
    return found


def in_blocks(gate: Any, up: Any, size: int, ranks: int) -> tuple[Any, Any]:
    """gate and up of weights that lie in blocks, from what they seem to be."""
    gates, ups = [], []
    for own in zip(np.split(gate, ranks), np.split(up, ranks), strict=True):
        local = np.concatenate(own)
        blocks = local.reshape(-1, 2, size, *local.shape[1:])
        gates.append(blocks[:, 0].reshape(-1, *local.shape[1:]))
        ups.append(blocks[:, 1].reshape(-1, *local.shape[1:]))
    return np.concatenate(gates), np.concatenate(ups)


def expected(case: str, names: tuple[str, str], part: str, size: int, ranks: int) -> Arrays:
    truth = load_file(unpacked(f"megatron/{case}") / "hf" / "model.safetensors")
    gate, up = names
    for name in [name for name in truth if part in name and f".{gate}." in name]:
        other = name.replace(f".{gate}.", f".{up}.")
        truth[name], truth[other] = in_blocks(truth[name], truth[other], size, ranks)
    return truth


def same(a: Arrays, b: Arrays) -> None:
    assert sorted(a) == sorted(b)
    assert [name for name in a if a[name].tobytes() != b[name].tobytes()] == []


@pytest.mark.parametrize(
    ("case", "names", "size", "ranks"),
    [
        ("qwen3_moe_tp2pp2ep2", ("gate_proj", "up_proj"), 5, 1),
        ("qwen3_moe_tp2pp2ep2", ("gate_proj", "up_proj"), 2, 1),
        ("mixtral_ep2etp2", ("w1", "w3"), 3, 2),
        ("mixtral_ep2etp2", ("w1", "w3"), 1, 2),
    ],
)
def test_routed_experts(case: str, names: tuple[str, str], size: int, ranks: int, tmp_path: Path) -> None:
    found = merged(case, a_run(case, tmp_path, **{ROUTED: size}), tmp_path)
    wanted = expected(case, names, ".experts.", size, ranks)
    same(found, wanted)
    truth = load_file(unpacked(f"megatron/{case}") / "hf" / "model.safetensors")
    assert any(wanted[name].tobytes() != truth[name].tobytes() for name in truth)


def test_shared_experts_have_a_size_of_their_own(tmp_path: Path) -> None:
    case, size = "qwen2_moe_ep2", 7
    found = merged(case, a_run(case, tmp_path, **{SHARED: size}), tmp_path)
    same(found, expected(case, ("gate_proj", "up_proj"), ".shared_expert.", size, 2))


def test_rank_files_are_read_the_same_way(tmp_path: Path) -> None:
    case = "qwen3_moe_verl_legacy"
    run = Path(shutil.copytree(unpacked(f"megatron/{case}") / "run", tmp_path / "run"))
    role = next(run.rglob("mp_rank_00_000")).parent.parent
    stated = {ROUTED: 5, "expert_tensor_parallel_size": 1, "tensor_model_parallel_size": 2}
    (role / "transformer_config.json").write_text(json.dumps(stated))
    same(merged(case, run, tmp_path), expected(case, ("gate_proj", "up_proj"), ".experts.", 5, 1))


@pytest.mark.parametrize(("case", "tp", "etp"), [("qwen3_moe_singleton", 2, 1), ("qwen3_moe_local", 1, None)])
def test_megatron_lms_arguments_say_it_too(case: str, tp: int, etp: int | None, tmp_path: Path) -> None:
    torch = pytest.importorskip("torch")
    run = Path(shutil.copytree(unpacked(f"megatron/{case}") / "run", tmp_path / "run"))
    args = argparse.Namespace(
        moe_mlp_glu_interleave_size=5, expert_tensor_parallel_size=etp, tensor_model_parallel_size=tp
    )
    torch.save({"args": args}, next(run.rglob("common.pt")))
    same(merged(case, run, tmp_path), expected(case, ("gate_proj", "up_proj"), ".experts.", 5, 1))


def test_it_is_said(tmp_path: Path) -> None:
    found = open_checkpoint(a_run("qwen3_moe_tp2pp2ep2", tmp_path, **{ROUTED: 5}))
    assert f"{ROUTED} is 5: gate and up of 18 tensors are put one after the other" in found.notes


def test_blocks_that_do_not_fit_are_refused(tmp_path: Path) -> None:
    run = a_run("qwen3_moe_tp2pp2ep2", tmp_path, **{ROUTED: 4})
    with pytest.raises(CkptconvError, match="no whole blocks of 4 rows"):
        open_checkpoint(run)


def test_megatron_bridges_setting_is_refused(tmp_path: Path) -> None:
    run = Path(shutil.copytree(unpacked("megatron/glm4_moe_mb") / "run", tmp_path / "run"))
    config = next(run.rglob("run_config.yaml"))
    config.write_text(config.read_text().replace("\nmodel:\n", f"\nmodel:\n  {ROUTED}: 32\n", 1))
    with pytest.raises(CkptconvError, match="gate and up of the experts may be interleaved") as error:
        open_checkpoint(run)
    assert error.value.found == f"{ROUTED}: 32"


def test_a_damaged_common_file_is_said_and_nothing_more(tmp_path: Path) -> None:
    run = Path(shutil.copytree(unpacked("megatron/moonlight_ep2") / "run", tmp_path / "run"))
    next(run.rglob("common.pt")).write_bytes(b"no zip")
    assert any("common.pt cannot be read" in note for note in open_checkpoint(run).notes)
