"""publish/target.py: the target appears by one rename, complete or not at all, and replaces nothing by mistake."""

from __future__ import annotations

import hashlib
import os
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
from support.helpers import ROLE, own_copy, state, tensors

from ckptconv.commands.merge.run import merge
from ckptconv.commands.progress import Progress
from ckptconv.errors import CkptconvError

Made = Callable[[str], Path]


def test_the_target_appears_by_one_rename_of_the_complete_folder(
    made: Made, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    target, replace = tmp_path / "out", os.replace
    published: list[dict[str, str]] = []

    def recorded(source: str | Path, destination: str | Path) -> None:
        if Path(destination) == target:
            assert not target.exists()
            published.append(state(Path(source)))
        replace(source, destination)

    monkeypatch.setattr("ckptconv.publish.target.os.replace", recorded)
    merge(made("fsdp2_w4"), target)
    assert published == [state(target)]


def test_a_target_that_is_there_is_refused_and_stays(made: Made, tmp_path: Path) -> None:
    merge(made("fsdp2_w4"), tmp_path / "out")
    before = state(tmp_path)
    with pytest.raises(CkptconvError, match="OUT already exists") as error:
        merge(made("fsdp2_tied_w4"), tmp_path / "out")
    assert "--overwrite" in str(error.value.hint)
    assert state(tmp_path) == before


def test_overwrite_leaves_nothing_of_the_old_model(made: Made, tmp_path: Path) -> None:
    merge(made("fsdp2_w4"), tmp_path / "out", max_shard_size="20KB")
    (tmp_path / "out" / "left.txt").write_text("over")
    merge(made("fsdp2_tied_w4"), tmp_path / "out", overwrite=True)
    merge(made("fsdp2_tied_w4"), tmp_path / "alone")
    assert state(tmp_path / "out") == state(tmp_path / "alone")
    assert {path.name for path in tmp_path.iterdir()} == {"out", "alone"}


def test_overwrite_does_not_replace_a_folder_that_is_no_model(made: Made, tmp_path: Path) -> None:
    (tmp_path / "thesis").mkdir()
    (tmp_path / "thesis" / "chapter1.txt").write_text("years")
    with pytest.raises(CkptconvError, match="not a model folder"):
        merge(made("fsdp2_w4"), tmp_path / "thesis", overwrite=True)
    assert state(tmp_path) == {"thesis": "", "thesis/chapter1.txt": hashlib.sha256(b"years").hexdigest()}


def test_an_overwrite_that_fails_leaves_the_old_model(made: Made, tmp_path: Path) -> None:
    merge(made("fsdp2_w4"), tmp_path / "out")
    before = state(tmp_path)

    def fail(step: Progress) -> None:
        if step.done:
            raise CkptconvError("on the way")

    with pytest.raises(CkptconvError, match="on the way"):
        merge(made("fsdp2_tied_w4"), tmp_path / "out", overwrite=True, on_progress=fail)
    assert state(tmp_path) == before


def test_an_empty_folder_is_a_fine_target(made: Made, tmp_path: Path) -> None:
    (tmp_path / "out").mkdir()
    merge(made("fsdp2_w4"), tmp_path / "out")
    assert tensors(tmp_path / "out")


def test_missing_parents_are_made(made: Made, tmp_path: Path) -> None:
    merge(made("fsdp2_w4"), tmp_path / "a" / "b" / "out")
    assert [path.name for path in (tmp_path / "a" / "b").iterdir()] == ["out"]


def test_a_linked_target_is_written_where_the_link_leads(made: Made, tmp_path: Path) -> None:
    (tmp_path / "disk").mkdir()
    (tmp_path / "link").symlink_to(tmp_path / "disk", target_is_directory=True)
    merge(made("fsdp2_w4"), tmp_path / "link")
    assert (tmp_path / "link").is_symlink()
    assert tensors(tmp_path / "disk")


@pytest.mark.parametrize(
    ("target", "says"),
    [
        (".", "OUT contains the checkpoint"),
        *((target, "not a model folder") for target in (ROLE, "global_step_7", f"{ROLE}/huggingface/../")),
    ],
)
def test_a_target_that_is_the_source_or_holds_it_is_refused(
    made: Made, tmp_path: Path, target: str, says: str
) -> None:
    run = own_copy(made("fsdp2_w4"), tmp_path / "run")
    before = state(tmp_path)
    with pytest.raises(CkptconvError, match=says):
        merge(run, run / target, overwrite=True)
    assert state(tmp_path) == before


@pytest.mark.parametrize("option", ["config", "base"])
def test_a_target_that_holds_the_config_or_the_base_is_refused(
    made: Made, tmp_path: Path, option: str
) -> None:
    """--overwrite would put the finished model in their place."""
    variant = "fsdp2_w4" if option == "config" else "lora_only_w2"
    run = own_copy(made(variant), tmp_path / "run")
    shutil.copytree(made("lora_w4") / "base", tmp_path / "base")
    before = state(tmp_path)
    with pytest.raises(CkptconvError, match="OUT contains the checkpoint"):
        merge(run, tmp_path / "base", overwrite=True, **{option: tmp_path / "base"})
    assert state(tmp_path) == before


def test_a_target_that_appears_during_the_merge_is_not_replaced(made: Made, tmp_path: Path) -> None:
    target = tmp_path / "out"

    def appear(*_: object) -> None:
        target.mkdir(exist_ok=True)
        (target / "config.json").write_text("somebody else's")

    with pytest.raises(CkptconvError, match="already exists"):
        merge(made("fsdp2_w4"), target, on_progress=appear)
    assert state(tmp_path) == {"out": "", "out/config.json": hashlib.sha256(b"somebody else's").hexdigest()}
