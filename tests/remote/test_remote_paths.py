"""A folder in a store looks like the same folder on a disk, for every function of `tensors.look`. No server needed."""

from __future__ import annotations

import os
import pickle
from collections.abc import Iterable
from pathlib import Path, PurePosixPath

import pytest

from ckptconv.errors import CkptconvError
from ckptconv.storage.address import Address
from ckptconv.storage.base import Listed, Object
from ckptconv.storage.errors import Unavailable
from ckptconv.storage.path import StorePath
from ckptconv.storage.tree import Tree
from ckptconv.tensors.look import (
    are_same,
    bytes_below,
    entries,
    exists,
    files_below,
    is_dir,
    is_file,
    link_to,
    matching,
    names_in,
    opened,
    paths_in,
    read_bytes,
    resolved,
    size_of,
)
from ckptconv.tensors.stored_file import StoredFile, far_of, path_of

NAMES = {
    "run/latest": b"2",
    "run/step_1/a.pt": b"one",
    "run/step_1/deep/er/b.json": b"{}",
    "run/step_2/a.pt": bytes(range(256)) * 1000,
    "run/step_2/c.safetensors": b"",
    "run/file.tar.gz": b"x",
    "other/z": b"z",
}


class Memory:
    """`Store` of a few objects; counts what it is asked."""

    address = Address("s3", "bucket", "")
    least = 64 << 10

    def __init__(self) -> None:
        self.asked: list[str] = []
        self.items = {key: Object(key, len(data), 10**18, key) for key, data in NAMES.items()}

    def below(self, key: str) -> list[Object]:
        self.asked.append(f"below {key}")
        return [item for name, item in self.items.items() if name.startswith(f"{key}/")]

    def inside(self, key: str) -> Listed:
        self.asked.append(f"inside {key}")
        names = [
            name[len(key) :].lstrip("/") for name in self.items if name.startswith(f"{key}/" if key else "")
        ]
        objects = [self.items[f"{key}/{name}".lstrip("/")] for name in names if "/" not in name]
        folders = sorted({name.split("/")[0] for name in names if "/" in name})
        return Listed(objects, [f"{key}/{name}".lstrip("/") for name in folders])

    def look(self, key: str) -> Object | None:
        self.asked.append(f"look {key}")
        return self.items.get(key)

    def fetch(self, item: Object, start: int, end: int) -> memoryview:
        self.asked.append(f"fetch {item.key}")
        return memoryview(NAMES[item.key][start:end])


@pytest.fixture
def store() -> Memory:
    return Memory()


@pytest.fixture
def far(store: Memory) -> StorePath:
    return StorePath(Tree(store, "run"), "run")


@pytest.fixture
def near(tmp_path: Path) -> Path:
    for name, data in NAMES.items():
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_bytes(data)
    return tmp_path / "run"


def test_what_is_there(far: StorePath, near: Path) -> None:
    for name in (
        "",
        "latest",
        "step_1",
        "step_1/a.pt",
        "step_1/deep",
        "step_3",
        "step_3/x",
        "latest/x",
        "step_2/deep",
    ):
        one, other = far / name, near / name
        for what in (exists, is_file, is_dir, link_to):
            assert what(one) == what(other), (what, name)
        assert are_same(one, far / name)
        if other.is_file():
            assert read_bytes(one) == read_bytes(other) == other.read_bytes()
            assert size_of(one) == size_of(other) == other.stat().st_size


def test_names(far: StorePath, near: Path) -> None:
    for name in ("", "step_1/a.pt", "file.tar.gz"):
        one, other = far / name, near / name
        assert (one.name, one.stem, one.suffix, one.suffixes) == (
            other.name,
            other.stem,
            other.suffix,
            other.suffixes,
        )
        assert one.with_name("b").name == other.with_name("b").name
        assert not name or one.parent.name == other.parent.name
        assert (one.parent / "x").relative_to(one.parent) == PurePosixPath("x")
    assert str(far / "step_1" / "a.pt") == "s3://bucket/run/step_1/a.pt"
    assert f"{far}" == "s3://bucket/run"
    assert [str(path) for path in (far / "a").parents] == ["s3://bucket/run", "s3://bucket"]
    assert far.parent.parent == far.parent
    assert far.joinpath("a", "b") == far / "a/b"
    assert (far / "a").is_relative_to(far)
    assert resolved(far) == far.absolute() == far.expanduser() == far


def test_folders(far: StorePath, near: Path) -> None:
    def names(paths: Iterable[Path], root: Path) -> list[str]:
        return [path.relative_to(root).as_posix() for path in paths]

    assert sorted(names_in(far)) == sorted(names_in(near))
    assert names(paths_in(far), far) == names(paths_in(near), near)
    for pattern in ("*", "step_*", "step_*/a.pt", "*.gz", "step_1/deep", "none*", "step_?/*", "*/*/x"):
        assert names(matching(far, pattern), far) == names(matching(near, pattern), near), pattern
    for folder in (far, far / "step_1", far / "none"):
        here = near / folder.relative_to(far)
        below = [f"{near}{file.removeprefix(str(far))}" for file in files_below(folder)]
        assert sorted(below) == sorted(files_below(here))
        assert bytes_below(folder) == bytes_below(here)
    assert {entry[1:] for entry in entries(far)} == {entry[1:] for entry in entries(near)}
    for look in (names_in, paths_in, read_bytes, size_of):
        with pytest.raises(FileNotFoundError):
            look(far / "none")


def test_order_and_equality(far: StorePath) -> None:
    again = StorePath(Tree(Memory(), "run"), "run")
    assert far == again
    assert {far: 1}[again] == 1
    assert sorted([far / "b", far / "a"]) == [far / "a", far / "b"]
    assert far != Path("/bucket/run")
    assert sorted([(far / "b"), Path("/x")])


def test_open_files(far: StorePath, near: Path) -> None:
    for name in ("step_2/a.pt", "step_2/c.safetensors", "step_1/deep/er/b.json"):
        with opened(far / name) as one, opened(near / name) as other:
            assert one.nbytes == other.nbytes == len(NAMES[f"run/{name}"])
            for start, nbytes in ((0, 7), (max(0, one.nbytes - 2), 10), (one.nbytes, 1)):
                assert one.read(start, nbytes) == other.read(start, nbytes)
    with pytest.raises(CkptconvError, match="cannot be read: No such file"), opened(far / "none"):
        pass


def test_a_place_that_is_handed_on_as_text_is_still_read_from_the_store(far: StorePath) -> None:
    text = str(far / "step_2" / "a.pt")
    assert isinstance(text, StoredFile)
    assert str(text) is text
    found = far_of(text)
    assert found is not None
    assert found.read(250, 10) == NAMES["run/step_2/a.pt"][250:260]
    assert found.read(255_990, 100) == NAMES["run/step_2/a.pt"][255_990:]
    assert path_of(text) == far / "step_2" / "a.pt"
    assert far_of(str(far / "step_1")) is None


def test_a_folder_is_listed_once(store: Memory, far: StorePath) -> None:
    for _ in range(3):
        list(files_below(far))
        assert exists(far / "step_1" / "none") is False
        size_of(far / "step_2" / "a.pt")
    assert sorted(store.asked) == ["below run/step_1", "below run/step_2", "inside run"]


def test_a_run_lists_only_the_steps_that_are_looked_at(store: Memory, far: StorePath) -> None:
    assert [path.name for path in paths_in(far) if is_dir(path)] == ["step_1", "step_2"]
    assert store.asked == ["inside run"]
    assert is_file(far / "step_2" / "a.pt")
    assert store.asked == ["inside run", "below run/step_2"]


def test_what_needs_a_file_on_a_disk_is_refused(far: StorePath) -> None:
    for touch in (os.stat, os.listdir, open, Path.is_file, Path.exists, Path.read_bytes, Path.resolve):
        with pytest.raises(CkptconvError, match="needs a file on a disk"):
            touch(far)


def test_a_stored_file_is_pickled_as_text() -> None:
    assert pickle.loads(pickle.dumps(StoredFile("/a/b"))) == "/a/b"


def test_a_folder_above_that_cannot_be_listed(store: Memory, monkeypatch: pytest.MonkeyPatch) -> None:
    """It may be forbidden, and counts as empty. If the store fails, what is in it is not known."""
    far = StorePath(Tree(store, "run/step_1"), "run/step_1")
    list_it = store.inside

    def inside(key: str) -> Listed:
        if key == "run":
            raise failure
        return list_it(key)

    monkeypatch.setattr(store, "inside", inside)
    failure: CkptconvError = Unavailable("S3 fails")
    assert is_file(far / "a.pt")
    with pytest.raises(CkptconvError, match="S3 fails"):
        is_file(far.parent / "latest")
    failure = CkptconvError("S3 does not let these credentials read here")
    assert not is_file(far.parent / "latest")
