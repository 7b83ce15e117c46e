"""Lightning's runs (tests/make/lightning_full.py, trainers.py): a .ckpt file or folder per step, and what may be named."""

from __future__ import annotations

import shlex
import shutil
from pathlib import Path

import pytest
from support.helpers import assert_equal, cli, tensors, unpacked

from ckptconv import CkptconvError, inspect, merge
from ckptconv.backends import open_checkpoint

STEPS = "lightning_logs/version_0/checkpoints"
NAMED = ["", "lightning_logs", "lightning_logs/version_0", STEPS]
LAST = "epoch=1-step=10.ckpt"


def home() -> Path:
    return unpacked("lightning_full")


def copied(tmp_path: Path) -> Path:
    return Path(shutil.copytree(home() / "run", tmp_path / "run"))


@pytest.mark.parametrize("inside", [*NAMED, f"{STEPS}/{LAST}", f"{STEPS}/last.ckpt"])
def test_a_run_of_files_becomes_the_trained_model(inside: str, tmp_path: Path) -> None:
    merge(home() / "run" / inside, tmp_path / "out", dtype="keep")
    assert_equal(tensors(tmp_path / "out"), tensors(home() / "truth.safetensors"))


@pytest.mark.parametrize("inside", [*NAMED, f"{STEPS}/epoch=0-step=2.ckpt"])
def test_a_run_of_sharded_folders_may_be_named_the_same_way(inside: str, tmp_path: Path) -> None:
    fixture = unpacked("lightning_fsdp1_cuda_w2")
    merge(fixture / "run" / inside, tmp_path / "out", dtype="keep")
    found, truth = tensors(tmp_path / "out"), tensors(fixture / "truth.safetensors")
    assert_equal(found, {name: truth[name] for name in found})
    assert set(truth) - set(found) <= {"lm_head.weight"}  # tied


def test_the_last_step_is_read_and_step_n_takes_another() -> None:
    assert open_checkpoint(home() / "run").step == 10
    found = open_checkpoint(home() / "run", step=2)
    assert (found.step, Path(found.files[0].path).name) == (2, "epoch=0-step=2.ckpt")
    with pytest.raises(CkptconvError, match=r"no step 3 in this run"):
        open_checkpoint(home() / "run", step=3)


def test_floats_are_masters_and_names_lose_the_modules_attribute(tmp_path: Path) -> None:
    run = copied(tmp_path)
    shutil.copy(run / "config.json", run / STEPS)  # does not make the file a Hugging Face folder
    merged = merge(run / STEPS / LAST, tmp_path / "out")
    assert {output.dtype for output in merged.plan.outputs.values()} == {"bfloat16"}
    assert all(not name.startswith("model.model.") for name in merged.plan.outputs)


def test_the_next_command_for_a_trainers_state_dict_is_a_merge(tmp_path: Path) -> None:
    run = copied(tmp_path)
    found = inspect(run).next
    assert found is not None
    assert found.command == f"ckptconv merge {run} MODEL"


def test_what_to_type_after_a_merge_names_the_steps_file(tmp_path: Path) -> None:
    run = copied(tmp_path)
    shutil.copy(run / "config.json", run / STEPS)
    done = cli("merge", run, tmp_path / "out", "--step", "2", columns=300)
    assert done.code == 0
    after = done.err.splitlines()[-1]
    assert after.endswith(f"--against {run / STEPS / 'epoch=0-step=2.ckpt'}")
    assert cli(*shlex.split(after)[2:]).code == 0, "it works when it is pasted"


def test_several_versions_of_a_run_are_refused_with_a_list(tmp_path: Path) -> None:
    run = copied(tmp_path)
    shutil.copytree(run / "lightning_logs" / "version_0", run / "lightning_logs" / "version_1")
    with pytest.raises(CkptconvError, match="several folders of steps") as refused:
        open_checkpoint(run)
    assert refused.value.found == f"{STEPS}, lightning_logs/version_1/checkpoints"
    assert open_checkpoint(run / "lightning_logs" / "version_1").step == 10


def test_a_damaged_step_is_refused(tmp_path: Path) -> None:
    run = copied(tmp_path)
    path = run / STEPS / LAST
    path.write_bytes(path.read_bytes()[:4000])
    with pytest.raises(CkptconvError, match=r"epoch=1-step=10\.ckpt|zip"):
        open_checkpoint(run / STEPS / LAST)


def test_all_steps_of_a_folder_of_files(tmp_path: Path) -> None:
    assert cli("merge", home() / "run", tmp_path / "all", "--all-steps").code == 0
    names = {"epoch=0-step=2.ckpt", LAST, "last.ckpt"}
    assert {path.name for path in (tmp_path / "all").iterdir() if path.is_dir()} == names
    assert (tmp_path / "all" / LAST / "model.safetensors").is_file()
