"""Looks at a disk find what pathlib's methods find: links, broken links, pipes and folders that do not exist too."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

import pytest

from ckptconv.errors import CkptconvError
from ckptconv.tensors.look import (
    are_same,
    bytes_below,
    entries,
    exists,
    files_below,
    is_dir,
    is_far,
    is_file,
    link_to,
    matching,
    names_in,
    opened,
    paths_in,
    read_bytes,
    size_of,
    stamp,
)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Files, folders, links to both, a link to nothing, a link to itself, and a pipe."""
    root = tmp_path / "run"
    (root / "step_10" / "deep").mkdir(parents=True)
    (root / "step_2").mkdir()
    (root / ".hidden").write_bytes(b"h")
    (root / "file").write_bytes(b"content")
    (root / "step_10" / "a.pt").write_bytes(b"a" * 10)
    (root / "step_10" / "deep" / "b.pt").write_bytes(b"b" * 100)
    (root / "link").symlink_to("file")
    (root / "newest").symlink_to("step_10")
    (root / "broken").symlink_to("nothing/at/all")
    (root / "circle").symlink_to("circle")
    os.mkfifo(root / "pipe")
    return root


def everything(folder: Path) -> list[Path]:
    names = ("none", "file/below", "none/below", "broken/below", "newest/a.pt", ".")
    return [folder, *folder.rglob("*"), *(folder / name for name in names)]


def found(look: Callable[[Path], object], path: Path) -> object:
    """What a look returns, or the kind of its error."""
    try:
        return look(path)
    except OSError as error:
        return type(error)


def test_every_name_looks_as_for_pathlib(folder: Path) -> None:
    for path in everything(folder):
        for look, method in (
            (exists, Path.exists),
            (is_file, Path.is_file),
            (is_dir, Path.is_dir),
            (lambda path: sorted(names_in(path)), lambda path: sorted(os.listdir(path))),
            (paths_in, lambda path: sorted(path.iterdir())),
            (size_of, lambda path: path.stat().st_size),
            (lambda path: stamp(path).changed, lambda path: path.stat().st_mtime_ns),
            (link_to, lambda path: path.readlink() if path.is_symlink() else None),
            (lambda path: are_same(path, folder / "file"), lambda path: path.samefile(folder / "file")),
        ):
            assert found(look, path) == found(method, path), (look, path)
        assert not is_far(path)


@pytest.mark.parametrize(
    "pattern",
    ["*", "*.pt", "step_*", "step_*/*.pt", "*/deep/b.pt", "newest/*", "none/*", "file/*", "step_?", "[fl]i*",
     "broken", "link", "step_10", "*/broken"],
)  # fmt: skip
def test_patterns_match_as_pathlib_matches_them(folder: Path, pattern: str) -> None:
    assert sorted(matching(folder, pattern)) == sorted(folder.glob(pattern))
    assert matching(folder / "none", pattern) == matching(folder / "file", pattern) == []


def test_a_folder_is_walked_without_its_links_to_folders(folder: Path) -> None:
    inside = {path for path in folder.rglob("*") if path.is_symlink() or not path.is_dir()}
    assert set(map(Path, files_below(folder))) == inside - {folder / "newest"}
    assert set(map(Path, files_below(folder, lambda below: below.name == "deep"))) == {
        path for path in inside - {folder / "newest"} if path.parent.name != "deep"
    }
    assert bytes_below(folder) == sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())
    assert list(files_below(folder / "none")) == []


def test_entries_tell_files_from_folders(folder: Path) -> None:
    found = {entry.name: (entry.is_folder, entry.is_regular) for entry in entries(folder)}
    assert found.pop("newest") == (False, False)
    assert {name: kind for name, kind in found.items() if any(kind)} == {
        "step_2": (True, False),
        "step_10": (True, False),
        "file": (False, True),
        "link": (False, True),
        ".hidden": (False, True),
    }


def test_a_range_and_a_whole_file_are_read(folder: Path) -> None:
    with opened(folder / "link") as file:
        assert (file.nbytes, file.read(3, 2), file.read(5, 100), file.read(7, 1)) == (7, b"te", b"nt", b"")
        memory = memoryview(bytearray(4))
        assert file.fill(5, memory) == 2
        assert bytes(memory) == b"nt\0\0"
    assert read_bytes(folder / "file") == b"content"


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("pipe", "not a settings file, but a folder, a pipe or a device"),
        ("step_2", "not a settings file, but a folder, a pipe or a device"),
        ("broken", "cannot be read: No such file"),
        ("circle", "cannot be read: Too many levels"),
        ("file/below", "cannot be read: Not a directory"),
    ],
)
def test_what_is_no_regular_file_is_not_opened(folder: Path, name: str, message: str) -> None:
    with pytest.raises(CkptconvError, match=message), opened(folder / name, "a settings file"):
        pass


def test_a_file_is_closed_after_an_error(folder: Path) -> None:
    before = len(os.listdir("/proc/self/fd"))
    for name in ("file", "pipe", "step_2"):
        with pytest.raises(CkptconvError), opened(folder / name):
            raise CkptconvError("stop")
    assert len(os.listdir("/proc/self/fd")) == before
