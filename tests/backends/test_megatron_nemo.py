"""A NeMo 2 checkpoint (tests/make/nemo): weights/ and context/, under the prefix of the Lightning module."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
from support.helpers import assert_equal, tensors, unpacked

from ckptconv import CkptconvError, inspect, merge, verify
from ckptconv.backends import open_checkpoint
from ckptconv.errors import Incomplete

NAME = "model--val_loss=1.00-step=19-consumed_samples=160.0-last"
EARLIER = "model--val_loss=2.50-step=9-consumed_samples=80.0"


def home() -> Path:
    return unpacked("nemo_qwen2_tp2")


def copied(tmp_path: Path) -> Path:
    """The run's folder of checkpoints, that a test may change."""
    return Path(shutil.copytree(home() / "run", tmp_path / "run")) / "checkpoints"


@pytest.mark.parametrize("inside", ["", "checkpoints", f"checkpoints/{NAME}", f"checkpoints/{NAME}/weights"])
def test_the_run_the_checkpoint_and_its_weights_may_be_named(inside: str, tmp_path: Path) -> None:
    merge(home() / "run" / inside, tmp_path / "out", config=home() / "hf")
    assert_equal(tensors(tmp_path / "out"), tensors(home() / "hf"))
    context = home() / "run" / "checkpoints" / NAME / "context" / "nemo_tokenizer"
    for name in ("tokenizer.json", "tokenizer_config.json"):
        assert (tmp_path / "out" / name).read_bytes() == (context / name).read_bytes()
    assert not (tmp_path / "out" / "io.json").exists()
    assert verify(tmp_path / "out", against=home() / "run" / inside).ok


def test_the_trained_tokenizer_replaces_that_of_the_given_config(tmp_path: Path) -> None:
    config = Path(shutil.copytree(home() / "hf", tmp_path / "hf"))
    (config / "tokenizer.json").write_text("{}")
    (config / "merges.txt").write_text("a b\n")
    merged = merge(home() / "run", tmp_path / "out", config=config)
    assert (tmp_path / "out" / "tokenizer.json").read_text() != "{}"
    assert not (tmp_path / "out" / "merges.txt").exists()
    assert any("tokenizer and chat template of the training replace" in note for note in merged.plan.notes)


def test_a_config_that_contradicts_the_context_is_refused(tmp_path: Path) -> None:
    config = json.loads((home() / "hf" / "config.json").read_text())
    (tmp_path / "config.json").write_text(json.dumps({**config, "rms_norm_eps": 1e-5}))
    with pytest.raises(CkptconvError, match=r"two values of rms_norm_eps"):
        merge(home() / "run", tmp_path / "out", config=tmp_path)


def test_the_last_step_is_read_and_step_n_takes_another(tmp_path: Path) -> None:
    run = copied(tmp_path)
    shutil.copytree(run / NAME, run / EARLIER)
    assert open_checkpoint(run).step == 19
    assert open_checkpoint(run, step=9).step == 9


def test_inspect_names_the_saver_and_strips_the_prefix() -> None:
    found = inspect(home() / "run")
    assert "NeMo" in found.layout
    assert {"0", "2", "embedding", "head"} <= {*found.parts}
    assert all(not row.pattern.startswith("module.") for row in found.rows)


def test_an_unfinished_save_and_a_missing_file_are_refused(tmp_path: Path) -> None:
    run = copied(tmp_path)
    (run / f"{NAME}-unfinished").touch()
    with pytest.raises(Incomplete, match="has not removed its in-progress marker"):
        open_checkpoint(run / NAME)
    (run / f"{NAME}-unfinished").unlink()
    next((run / NAME / "weights").glob("__1_*.distcp")).unlink()
    with pytest.raises(Incomplete, match=r"__1_\d+\.distcp is missing"):
        open_checkpoint(run / NAME)
