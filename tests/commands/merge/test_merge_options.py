"""merge: --dry-run, unknown keywords, --max-memory and --check-replicas."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
from support.helpers import state

from ckptconv.commands.merge.run import merge
from ckptconv.errors import CkptconvError

Made = Callable[[str], Path]


def test_a_dry_run_writes_nothing(made: Made, tmp_path: Path) -> None:
    done = merge(made("lora_w4"), tmp_path / "a" / "out", dry_run=True)
    assert done.dry_run
    assert done.plan.nbytes > 0
    assert state(tmp_path) == {}


def test_options_may_be_given_as_words(made: Made, tmp_path: Path) -> None:
    with pytest.raises(TypeError):
        merge(made("fsdp2_w4"), tmp_path / "out", dtypes="keep")


def test_max_memory_bounds_the_buffers_and_too_little_is_refused(made: Made, tmp_path: Path) -> None:
    done = merge(made("fsdp2_w4"), tmp_path / "out", max_memory=32 << 20, workers=64)
    assert 0 < done.buffers <= 32 << 20
    with pytest.raises(CkptconvError, match="too small") as error:
        merge(made("fsdp2_w4"), tmp_path / "none", max_memory=1 << 20)
    assert "--max-memory" in str(error.value.hint)


@pytest.mark.parametrize("check_replicas", [False, True])
def test_plain_tensors_that_differ_between_ranks_are_refused(tmp_path: Path, check_replicas: bool) -> None:
    import torch

    role = tmp_path / "run" / "global_step_1" / "actor"
    (role / "huggingface").mkdir(parents=True)
    (role / "huggingface" / "config.json").write_text('{"model_type": "odd"}')
    for rank in range(2):
        torch.save({"w": torch.tensor([1.0, 2.0, 3.0 + rank])}, role / f"model_world_size_2_rank_{rank}.pt")
    with pytest.raises(CkptconvError, match="copies of w differ") as error:
        merge(tmp_path / "run", tmp_path / "checked", check_replicas=check_replicas)
    assert "first at [2]" in str(error.value.found)
    assert not (tmp_path / "checked").exists()
