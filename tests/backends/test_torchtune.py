"""torchtune's DistributedCheckpointer (tests/make/tune.py): its own names become what its own conversion makes of them."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import load_file
from support.helpers import assert_equal, tensors, unpacked

from ckptconv import CkptconvError, inspect, merge, verify
from ckptconv.backends import open_checkpoint
from ckptconv.errors import Incomplete
from ckptconv.models.torchtune import to_hub, to_trained

CASES = ("llama", "qwen2")  # rows that rotate together are neighbours; halves, and the head is tied


def home(case: str) -> Path:
    return unpacked("torchtune") / case


@pytest.mark.parametrize("case", CASES)
def test_a_run_becomes_what_torchtunes_own_conversion_makes(case: str, tmp_path: Path) -> None:
    merged = merge(home(case) / "run", tmp_path / "out", config=home(case) / "hf", dtype="keep")
    assert merged.plan.checkpoint.root.name == "dist_epoch_1"
    assert_equal(tensors(tmp_path / "out"), tensors(home(case) / "hf"))
    assert verify(tmp_path / "out", against=home(case) / "run").ok


def test_an_epoch_is_a_step() -> None:
    assert open_checkpoint(home("llama") / "run").step == 1
    assert open_checkpoint(home("llama") / "run", step=0).step == 0


@pytest.mark.parametrize("case", CASES)
def test_the_rules_lead_back(case: str) -> None:
    config = json.loads((home(case) / "hf" / "config.json").read_text())
    hub = load_file(home(case) / "hf" / "model.safetensors")
    trained = to_trained(hub, config)
    assert "layers.0.sa_norm.scale" in trained
    for name, named in to_hub(trained, config).tensors.items():
        assert np.array_equal(named.value.reshape(named.shape), hub[name]), name


def test_a_family_without_a_table_is_refused_by_name(tmp_path: Path) -> None:
    config = json.loads((home("llama") / "hf" / "config.json").read_text())
    config |= {"model_type": "gemma", "architectures": ["GemmaForCausalLM"]}
    (tmp_path / "config.json").write_text(json.dumps(config))
    with pytest.raises(CkptconvError, match="no table for the tensors of 'gemma' in torchtune"):
        merge(home("llama") / "run", tmp_path / "out", config=tmp_path)


def test_a_missing_file_is_named(tmp_path: Path) -> None:
    run = Path(shutil.copytree(home("llama") / "run", tmp_path / "run"))
    next((run / "dist_epoch_1").glob("__1_*.distcp")).unlink()
    with pytest.raises(Incomplete, match=r"__1_\d+\.distcp is missing"):
        open_checkpoint(run)


def test_inspect_shows_both_ranks() -> None:
    found = inspect(home("llama") / "run")
    assert (found.world_size, len(found.ranks)) == (2, 2)
    assert {"embedding", "0", "1", "head"} <= {*found.parts}
