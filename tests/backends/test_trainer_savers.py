"""Checkpoints that prime-rl's, SkyRL's and ColossalAI's own savers wrote (tests/make/savers), bit for bit."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest
from support.helpers import Tensors, assert_equal, cli, parse, tensors, unpacked

from ckptconv import CkptconvError, inspect, merge
from ckptconv.errors import Incomplete

# case -> what is named, the backend
CASES = {
    "prime_rl": ("run", "dcp"),
    "skyrl": ("run", "fsdp"),
    "colossalai": ("run/modeling", "huggingface"),
}


def truth(case: str) -> Tensors:
    return parse((unpacked(f"saver_{case}") / "truth.safetensors").read_bytes())


@pytest.mark.parametrize("case", CASES)
def test_every_tensor_is_what_the_runtime_held(case: str, tmp_path: Path) -> None:
    named, backend = CASES[case]
    merged = merge(unpacked(f"saver_{case}") / named, tmp_path / "out", dtype="keep")
    assert_equal(tensors(tmp_path / "out"), truth(case))
    assert merged.plan.checkpoint.backend == backend
    assert merged.plan.checkpoint.step == (None if case == "colossalai" else 7)


@pytest.mark.parametrize("case", CASES)
def test_verify_agrees_and_inspect_is_complete(case: str, tmp_path: Path) -> None:
    run = unpacked(f"saver_{case}") / CASES[case][0]
    merge(run, tmp_path / "out")
    done = cli("verify", tmp_path / "out", "--against", run)
    assert done.code == 0, done.out + done.err
    assert [rank.rank for rank in inspect(run).ranks if rank.nbytes] == (
        [0] if case == "colossalai" else [0, 1]
    )


@pytest.mark.parametrize(
    ("case", "lost"),
    [
        ("prime_rl", "checkpoints/step_7/trainer/__1_0.distcp"),
        ("skyrl", "global_step_7/policy/model_world_size_2_rank_1.pt"),
        ("colossalai", "modeling/pytorch_model-00001.bin"),
    ],
)
def test_a_missing_file_is_named(case: str, lost: str, tmp_path: Path) -> None:
    run = shutil.copytree(unpacked(f"saver_{case}") / "run", tmp_path / "run")
    (run / lost).unlink()
    named = run / "modeling" if case == "colossalai" else run
    with pytest.raises((Incomplete, CkptconvError), match=Path(lost).name.replace(".", r"\.") + "|rank 1"):
        merge(named, tmp_path / "out")
