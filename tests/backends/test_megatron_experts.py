"""Rank files with experts on several TP ranks: in whole or in parts is found out, or refused, but never guessed."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import ml_dtypes  # noqa: F401 - numpy learns bfloat16
import pytest
from safetensors.numpy import load_file
from support.helpers import unpacked

from ckptconv import CkptconvError, merge
from ckptconv.backends import open_checkpoint
from ckptconv.backends.megatron import read_rank_files
from ckptconv.backends.megatron.settings import Stated

# case -> over how many of its two TP ranks an expert is cut
CASES = {"mixtral_mlm_legacy": 2, "qwen3_moe_etp1_mlm_legacy": 1}


@pytest.fixture
def untold(monkeypatch: pytest.MonkeyPatch) -> None:
    """Trainers that leave no settings beside their weights."""
    monkeypatch.setattr(read_rank_files, "rank_file_settings", lambda folder, roots: Stated(()))


def run_with(case: str, to: Path, **changed: Any) -> Path:
    """The case's step folder with its config.json in it, where the reader looks for one."""
    home = unpacked(f"megatron/{case}")
    step = Path(shutil.copytree(home / "run" / "iter_0000010", to / "iter_0000010"))
    config = json.loads((home / "hf" / "config.json").read_text()) | changed
    (step / "config.json").write_text(json.dumps(config))
    return step


def same_as_truth(case: str, run: Path, out: Path) -> None:
    home = unpacked(f"megatron/{case}")
    result = merge(run, out, config=home / "hf", dtype="keep")
    found = {name: array for file in result.plan.files for name, array in load_file(out / file.name).items()}
    truth = load_file(home / "hf" / "model.safetensors")
    assert {name: array.tobytes() for name, array in found.items()} == {
        name: array.tobytes() for name, array in truth.items()
    }


@pytest.mark.parametrize("case", CASES)
@pytest.mark.usefixtures("untold")
def test_the_config_says_what_the_trainer_does_not(case: str, tmp_path: Path) -> None:
    same_as_truth(case, run_with(case, tmp_path), tmp_path / "out")


@pytest.mark.parametrize("case", CASES)
@pytest.mark.usefixtures("untold")
def test_without_either_it_is_refused(case: str) -> None:
    with pytest.raises(CkptconvError, match="cannot tell whether experts are sharded") as error:
        open_checkpoint(unpacked(f"megatron/{case}") / "run")
    assert error.value.hint


@pytest.mark.usefixtures("untold")
def test_a_config_of_another_width_is_refused(tmp_path: Path) -> None:
    step = run_with("mixtral_mlm_legacy", tmp_path, intermediate_size=50)
    with pytest.raises(CkptconvError, match="cannot tell whether experts are sharded"):
        open_checkpoint(step)


def test_copies_of_a_whole_expert_are_kept_as_copies() -> None:
    tensors = open_checkpoint(unpacked("megatron/qwen3_moe_etp1_mlm_legacy") / "run").tensors
    expert = tensors["decoder.layers.1.mlp.experts.5.linear_fc1.weight"]
    assert expert.view.shape == (20, 22)
    assert len(expert.replicas) == 1
