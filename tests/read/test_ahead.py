"""What is fetched from a store before it is read: never more than the memory for it."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import pytest

from ckptconv.read.ahead import Read, read_ahead
from ckptconv.tensors.storage import FarFile
from ckptconv.tensors.stored_file import StoredFile

TASK = 1 << 20  # bytes that one task reads


class Recorded(FarFile):
    """An object that records what is expected of it."""

    path = Path("s3:/bucket/file")

    def __init__(self) -> None:
        self.expected = 0

    def fill(self, start: int, memory: memoryview) -> int:
        raise NotImplementedError

    def expect(self, ranges: Sequence[tuple[int, int]]) -> None:
        self.expected += sum(end - start for start, end in ranges)


@pytest.mark.parametrize("nbytes", [6 << 20, 16 << 20, 64 << 20, 256 << 20])
def test_what_is_under_way_fits_into_the_memory_for_it(nbytes: int) -> None:
    """The tasks of one batch may be in work when the next ones are fetched."""
    far = Recorded()
    file = StoredFile("s3://bucket/file", far)
    done, most = 0, 0
    for task in read_ahead(
        range(400), lambda task: [Read(file, 2 * task * TASK, (2 * task + 1) * TASK)], nbytes
    ):
        assert task == done
        most = max(most, far.expected - done * TASK)
        done += 1
    assert done == 400
    assert most <= nbytes
    assert most >= min(nbytes, 64 << 20) // 4, "enough is under way"
