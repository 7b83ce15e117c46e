"""Reading views from files: damage is named, and values are compared in place or block by block."""

from __future__ import annotations

from pathlib import Path

import pytest

from ckptconv.errors import CkptconvError
from ckptconv.read.reader import read_numpy, same_place, same_values
from ckptconv.tensors import view as algebra
from ckptconv.tensors.view import View, stored


def test_a_file_that_ends_early_is_named(tmp_path: Path) -> None:
    (tmp_path / "short").write_bytes(bytes(10))
    with pytest.raises(CkptconvError, match="the file ends before its tensors do") as error:
        read_numpy(stored(str(tmp_path / "short"), 4, (4,), "float32"))
    assert error.value.where == str(tmp_path / "short")


def test_a_file_that_is_gone_is_named(tmp_path: Path) -> None:
    with pytest.raises(CkptconvError, match="cannot be opened"):
        read_numpy(stored(str(tmp_path / "gone"), 0, (4,), "float32"))


def test_more_files_than_may_be_open_are_read(tmp_path: Path) -> None:
    for i in range(140):
        (tmp_path / str(i)).write_bytes(bytes([i]))
    view = algebra.cat([stored(str(tmp_path / str(i)), 0, (1,), "uint8") for i in range(140)] * 2, 0)
    assert read_numpy(view).tolist() == list(range(140)) * 2


@pytest.fixture
def twins(tmp_path: Path) -> tuple[View, View]:
    """Two files with the same 300 bytes."""
    content = bytes(range(100)) * 3
    for name in ("a", "b"):
        (tmp_path / name).write_bytes(content)
    return stored(str(tmp_path / "a"), 0, (30, 10), "uint8"), stored(
        str(tmp_path / "b"), 0, (30, 10), "uint8"
    )


def test_values_are_compared_block_by_block(twins: tuple[View, View]) -> None:
    a, b = twins
    assert not same_place(a, b)
    assert same_values(a, b, block=7)
    Path(b.files[0]).write_bytes(Path(a.files[0]).read_bytes()[:-1] + b"!")
    assert not same_values(a, b, block=7)
    assert same_values(algebra.narrow(a, 0, 0, 29), algebra.narrow(b, 0, 0, 29), block=7)
    assert not same_values(a, algebra.unflatten(a, 0, (3, 10)))


def test_one_place_needs_no_reading() -> None:
    view = algebra.cat([stored("gone", 0, (2,), "float32"), stored("away", 0, (3,), "float32")], 0)
    assert same_values(view, algebra.cat(algebra.split(view, 0, (2, 3)), 0))
