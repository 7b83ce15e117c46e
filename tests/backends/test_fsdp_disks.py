"""Rank files on several disks are one checkpoint."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
from support.helpers import (
    FIXTURES,
    ROLE,
    assert_equal,
    opened,
    own_copy,
    rank_file,
    tensors,
)

from ckptconv.backends import open_checkpoint
from ckptconv.errors import CkptconvError

Made = Callable[[str], Path]
RUN = FIXTURES / "verl_fsdp2_w4" / "run"


def scatter(source: Path, target: Path, nodes: list[list[int]]) -> list[Path]:
    """A run folder a node, each with some ranks' files; the first has the assets."""
    runs = []
    for number, ranks in enumerate(nodes):
        run = target / f"node{number}"
        (run / ROLE).mkdir(parents=True)
        for rank in ranks:
            shutil.copy(rank_file(source, rank), run / ROLE)
        runs.append(run)
    shutil.copytree(source / ROLE / "huggingface", runs[0] / ROLE / "huggingface")
    return runs


@pytest.mark.parametrize("inside", ["", "global_step_7", ROLE])
@pytest.mark.parametrize("nodes", [[[0, 1], [2, 3]], [[3], [0, 2], [1]]], ids=["two", "three"])
def test_rank_files_on_several_disks_are_one_checkpoint(
    made: Made, tmp_path: Path, nodes: list[list[int]], inside: str
) -> None:
    first, *others = (run / inside for run in scatter(made("fsdp2_w4"), tmp_path, nodes))
    assert_equal(opened(first, also=others), tensors(made("fsdp2_w4") / "truth.safetensors"))


def test_the_config_may_lie_on_another_disk(made: Made, tmp_path: Path) -> None:
    second, first = scatter(made("fsdp2_w4"), tmp_path, [[2, 3], [0, 1]])
    assert open_checkpoint(first, also=[second]).assets == second / ROLE / "huggingface"


def test_a_rank_file_that_lies_on_two_disks_is_read_once(made: Made, tmp_path: Path) -> None:
    first, second = scatter(made("fsdp2_w4"), tmp_path, [[0, 1, 2], [2, 3]])
    assert_equal(opened(first, also=[second]), tensors(made("fsdp2_w4") / "truth.safetensors"))


def test_two_different_files_of_one_rank_are_refused(made: Made, tmp_path: Path) -> None:
    first, second = scatter(made("fsdp2_w4"), tmp_path, [[0, 1, 2], [2, 3]])
    shutil.copy(rank_file(made("qwen3_moe_w4"), 2), rank_file(second, 2))
    with pytest.raises(CkptconvError, match=r"two files of rank 2 have different sizes"):
        open_checkpoint(first, also=[second])


def test_the_step_of_the_first_disk_is_taken_on_the_others(tmp_path: Path) -> None:
    for node, ranks in (("a", (0, 1)), ("b", (2, 3))):
        for step in (1, 2):
            folder = tmp_path / node / f"global_step_{step}" / "actor"
            folder.mkdir(parents=True)
            for rank in ranks:
                shutil.copy(
                    RUN / f"global_step_{step}" / "actor" / f"model_world_size_4_rank_{rank}.pt", folder
                )
    truth = FIXTURES / "verl_fsdp2_w4" / "truth" / "global_step_1" / "actor" / "truth.safetensors"
    assert_equal(opened(tmp_path / "a", step=1, also=[tmp_path / "b"]), tensors(truth))


def test_the_role_of_the_first_disk_is_taken_on_the_others(tmp_path: Path) -> None:
    for node, ranks in (("a", (0, 1)), ("b", (2, 3))):
        for role in ("actor", "critic"):
            folder = tmp_path / node / "global_step_2" / role
            folder.mkdir(parents=True)
            for rank in ranks:
                shutil.copy(RUN / "global_step_2" / role / f"model_world_size_4_rank_{rank}.pt", folder)
    truth = FIXTURES / "verl_fsdp2_w4" / "truth" / "global_step_2" / "critic" / "truth.safetensors"
    assert_equal(opened(tmp_path / "a" / "global_step_2" / "critic", also=[tmp_path / "b"]), tensors(truth))


def test_an_also_folder_that_is_the_checkpoint_itself_changes_nothing(
    made: Made, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = own_copy(made("fsdp2_w4"), tmp_path / "run")
    monkeypatch.chdir(tmp_path)
    (tmp_path / "link").symlink_to(run)
    found = opened(run, also=[Path("run"), run, tmp_path / "link"])
    assert_equal(found, tensors(made("fsdp2_w4") / "truth.safetensors"))


def test_an_also_folder_of_another_step_is_refused(tmp_path: Path) -> None:
    """Steps have the same names and shapes, so nothing else would tell."""
    for step, ranks in ((1, (0, 1)), (2, (2, 3))):
        folder = tmp_path / f"global_step_{step}" / "actor"
        folder.mkdir(parents=True)
        for rank in ranks:
            shutil.copy(RUN / f"global_step_{step}" / "actor" / f"model_world_size_4_rank_{rank}.pt", folder)
    with pytest.raises(CkptconvError, match="step 1 is not in this folder"):
        open_checkpoint(tmp_path / "global_step_1", also=[tmp_path / "global_step_2"])


@pytest.mark.parametrize(
    ("folder", "what"),
    [("nowhere", "no such folder"), ("empty", "no files of this checkpoint in the folder")],
)
def test_an_also_folder_without_rank_files_is_refused(
    made: Made, tmp_path: Path, folder: str, what: str
) -> None:
    (tmp_path / "empty").mkdir()
    with pytest.raises(CkptconvError, match=what) as error:
        open_checkpoint(made("fsdp2_w4"), also=[tmp_path / folder])
    assert "--also" in str(error.value.hint)
