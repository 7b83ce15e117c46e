"""Blocks at awkward offsets, by several threads, past the page cache and through it: the same file."""

from __future__ import annotations

import errno
import os
import random
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest

from ckptconv.copy import output_file
from ckptconv.copy.output_file import PAGE, OutputFile, block_buffer, in_place
from ckptconv.read.workers import for_each

BLOCK = 1 << 20
HEADER = b"h" * 2_504


def write(path: Path, data: bytes, threads: int = 3) -> None:
    """`data` after the header, in blocks of uneven sizes, in any order."""
    cuts = sorted({0, len(data), *random.Random(1).sample(range(len(data)), 20), *range(0, len(data), BLOCK)})
    blocks = list(pairwise(cuts))
    random.Random(2).shuffle(blocks)
    file = OutputFile(path, HEADER, len(HEADER) + len(data))

    @contextmanager
    def open_worker() -> Iterator[Callable[[tuple[int, int]], None]]:
        buffer = block_buffer(BLOCK)

        def put(block: tuple[int, int]) -> None:
            low, high = block
            part = in_place(buffer, len(HEADER) + low, high - low)
            part[:] = np.frombuffer(data[low:high], np.uint8)
            file.write(part, len(HEADER) + low)

        yield put

    for_each(blocks, open_worker, threads)
    file.finish()


@pytest.fixture
def data() -> bytes:
    return random.Random(0).randbytes(9 * BLOCK + 12_345)


def check(path: Path, data: bytes) -> None:
    assert path.read_bytes() == HEADER + data


@pytest.mark.parametrize("try_", range(3))
def test_every_byte_is_in_its_place(tmp_path: Path, data: bytes, try_: int) -> None:
    write(tmp_path / "file", data)
    check(tmp_path / "file", data)


@pytest.mark.skipif(not hasattr(os, "O_DIRECT"), reason="no O_DIRECT here")
def test_the_middle_of_large_blocks_goes_past_the_cache_where_that_is_known_to_pay(
    tmp_path: Path, data: bytes, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(output_file, "_LOCAL", {output_file.file_system(tmp_path.stat().st_dev)})
    (tmp_path / "probe").touch()
    try:
        os.close(os.open(tmp_path / "probe", os.O_WRONLY | os.O_DIRECT))
    except OSError:
        pytest.skip("this file system has no O_DIRECT")
    past: list[int] = []
    real = OutputFile._past_cache

    def counted(self: OutputFile, handle: int, view: memoryview, offset: int) -> int:
        assert offset % PAGE == 0
        assert len(view) % PAGE == 0
        past.append(len(view))
        return real(self, handle, view, offset)

    monkeypatch.setattr(OutputFile, "_past_cache", counted)
    write(tmp_path / "file", data)
    check(tmp_path / "file", data)
    assert sum(past) > len(data) // 2


@pytest.mark.parametrize("short", [0, PAGE])
def test_a_file_system_that_wants_it_otherwise_gets_it_through_the_cache(
    tmp_path: Path, data: bytes, monkeypatch: pytest.MonkeyPatch, short: int
) -> None:
    """EINVAL at once, or after a part of a block."""
    real = os.pwrite
    opened = output_file._open_direct

    def picky(handle: int, view: memoryview, offset: int) -> int:
        if handle in direct:
            if short and len(view) > short and offset % (2 * PAGE) == 0:
                return real(handle, view[:short], offset)
            raise OSError(errno.EINVAL, "Invalid argument")
        return real(handle, view, offset)

    direct: set[int] = set()

    def open_direct(path: Path) -> int:
        handle = opened(path)
        if handle is None:  # a file system without it: an ordinary handle in its place
            handle = os.open(path, os.O_WRONLY)
        direct.add(handle)
        return handle

    monkeypatch.setattr(output_file, "_open_direct", open_direct)
    monkeypatch.setattr(os, "pwrite", picky)
    write(tmp_path / "file", data)
    monkeypatch.undo()
    check(tmp_path / "file", data)


def test_a_full_disk_is_an_error_on_either_way(
    tmp_path: Path, data: bytes, monkeypatch: pytest.MonkeyPatch
) -> None:
    real = os.pwrite

    def full(handle: int, view: memoryview, offset: int) -> int:
        if offset > 4 * BLOCK:
            raise OSError(errno.ENOSPC, "No space left on device")
        return real(handle, view, offset)

    monkeypatch.setattr(os, "pwrite", full)
    with pytest.raises(OSError, match="No space"):
        write(tmp_path / "file", data)
