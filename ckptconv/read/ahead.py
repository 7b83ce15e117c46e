"""Fetches from stores what the next tasks will read: exact ranges, joined to a few megabytes, several at a time.

Tasks go in batches. While the workers do one batch, the ranges of the next one are under way. A read that was not
foreseen is fetched when it comes, so what is foreseen decides on the speed alone.
"""

from __future__ import annotations

from bisect import bisect_right
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from math import prod
from typing import NamedTuple, TypeVar

from ckptconv.read.gather import overlap
from ckptconv.read.reader import Prepared
from ckptconv.tensors.intervals import boxes_of_interval, joined
from ckptconv.tensors.storage import FarFile
from ckptconv.tensors.stored_file import far_of

T = TypeVar("T")

_BATCH = 16 << 20  # bytes
_AROUND = 4 << 10  # bytes on both sides, where archives have the headers that are checked with the elements
_GAP = (
    256 << 10
)  # bytes; a request costs about as much time as reading them, so shorter gaps are read as well
_MOST_SPARSE = 4  # a box is fetched as one range if that is at most so many times as large


class Read(NamedTuple):
    """Bytes start..end-1 of a file."""

    file: str
    start: int
    end: int


def read_ahead(tasks: Iterable[T], reads: Callable[[T], Iterable[Read]], nbytes: int) -> Iterator[T]:
    """The tasks in their order; what they will read is fetched before.

    Args:
        tasks: the tasks.
        reads: the bytes that a task will read, as far as they are known.
        nbytes: memory for what was fetched and not read yet. The tasks that are being done have a part of it.
    """
    todo, queue, held = iter(tasks), deque[tuple[list[T], int]](), 0
    quarter = nbytes // 4
    while True:
        while held < quarter:
            batch, size = _batch(todo, reads, min(_BATCH, quarter))
            if not batch:
                break
            queue.append((batch, size))
            held += size
        if not queue:
            return
        batch, size = queue.popleft()
        held -= size
        yield from batch


def _batch(todo: Iterator[T], reads: Callable[[T], Iterable[Read]], most: int) -> tuple[list[T], int]:
    """The next tasks, whose fetches have begun, and the bytes that they read; no task at the end.

    Args:
        todo: the tasks.
        reads: the bytes that a task will read.
        most: the batch ends with the task that reaches so many bytes.
    """
    batch: list[T] = []
    wanted: dict[FarFile, list[tuple[int, int]]] = {}
    nbytes = 0
    for task in todo:
        batch.append(task)
        for file, start, end in reads(task):
            far = far_of(file)
            if far is not None:
                wanted.setdefault(far, []).append((max(0, start - _AROUND), end + _AROUND))
                nbytes += end - start
        if nbytes >= most:
            break
    for far, ranges in wanted.items():
        far.expect(joined(ranges, _GAP))
    return batch, nbytes


def reads_of(prepared: Prepared, low: int, high: int) -> Iterator[Read]:
    """The bytes that `Reader.interval` reads for the elements low..high-1, apart from boxes with wide gaps."""
    item = prepared.item
    for number in range(max(bisect_right(prepared.starts, low) - 1, 0), len(prepared.runs)):
        first, length, file, start = prepared.runs[number]
        if first >= high:
            break
        begin, end = max(first, low), min(first + length, high)
        if begin < end:
            yield Read(file, start + (begin - first) * item, start + (end - first) * item)
    if not prepared.boxes or low >= high:
        return
    for _, offsets, sizes in boxes_of_interval(low, high, prepared.shape):
        for number in range(bisect_right(prepared.ends, offsets[0]), len(prepared.boxes)):
            chunk = prepared.boxes[number]
            if chunk.offsets[0] >= offsets[0] + sizes[0]:
                break
            shared = overlap(chunk.offsets, chunk.sizes, offsets, sizes)
            if shared:
                corner, box = shared
                places = zip(corner, chunk.offsets, chunk.strides, strict=True)
                start = chunk.start + sum((at - first) * stride for at, first, stride in places)
                extent = (
                    sum((size - 1) * stride for size, stride in zip(box, chunk.strides, strict=True)) + item
                )
                if extent <= _MOST_SPARSE * prod(box) * item:
                    yield Read(chunk.file, start, start + extent)
