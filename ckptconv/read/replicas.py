"""Compares the copies of a tensor that several ranks stored, and that its placements declare to be equal."""

from __future__ import annotations

import threading
from collections.abc import Callable, Container, Iterator, Mapping, Sequence
from dataclasses import dataclass
from operator import add
from typing import NamedTuple

import numpy as np

from ckptconv.errors import CkptconvError, Kind
from ckptconv.read import workers as threads
from ckptconv.read.each import for_each_reader
from ckptconv.read.reader import Reader, prepare, raw_dtype, same_place
from ckptconv.tensors.checkpoint import Checkpoint, StoredTensor
from ckptconv.tensors.view import Shape, View, narrow

SMALL = 1 << 20  # bytes of a tensor whose copies are compared by default
SMALL_IN_ALL = 64 << 20  # bytes of all copies that are compared by default
BLOCK = 4 << 20  # bytes of each of a thread's two buffers


@dataclass(frozen=True, slots=True)
class Deviation:
    """A copy that differs from the one that is used.

    Args:
        name: the tensor.
        rank: the rank that wrote the copy; -1 if it is not known.
        used: the rank that wrote the bytes that go into the model; -1 if it is not known.
        index: the first element that differs, in the whole tensor.
        count: the number of elements that differ.
        shape: the shape of the whole tensor.
        file: the file of the copy.
    """

    name: str
    rank: int
    used: int
    index: Shape
    count: int
    shape: Shape
    file: str


def require_equal(checkpoint: Checkpoint, *, everything: bool = True, workers: int | None = None) -> None:
    """Compare the copies of tensors.

    Args:
        checkpoint: the checkpoint.
        everything: read every copy of every tensor; otherwise only those of the tensors in `worth_reading`.
        workers: threads; None for one per core and one more.

    Raises:
        CkptconvError: names the first tensor whose copies differ.
    """
    names = None if everything else worth_reading(checkpoint)
    differing = deviations(checkpoint, names, workers=workers)
    if not differing:
        return
    first, others = differing[0], len({item.name for item in differing}) - 1
    more = f", and {others} more tensor{'s' if others > 1 else ''}" if others else ""
    if checkpoint.tensors[first.name].implied:
        why = "both store it whole, and nothing says that either holds a part"
    else:
        why = "the trainer says that they are replicas"
    raise CkptconvError(
        f"the ranks' copies of {first.name} differ{more}",
        where=first.file,
        found=f"rank {first.rank} and rank {first.used} differ in {first.count:,} elements, first at {list(first.index)}",
        wanted=f"the same bytes on both: {why}",
        hint="the ranks drifted apart or a file is damaged; ckptconv verify checks the files' CRCs",
        kind=Kind.DAMAGED,
    )


def worth_reading(checkpoint: Checkpoint) -> set[str]:
    """The tensors whose copies are read by default.

    These are small tensors (at most 1 MiB each, 64 MiB of copies in all), tensors whose checksums differ, and tensors that
    no mesh declares to be replicated, unless the backend has found their checksums equal. Of Megatron's rank files, only
    tensors that are whole on every rank, such as norms, are read: in untrained models of Megatron-LM the expert parallel
    ranks hold tensor parallel parts that differ.
    """
    names, left = set(), SMALL_IN_ALL
    for name, tensor in checkpoint.tensors.items():
        if not tensor.replicas:
            continue
        if checkpoint.naming == "megatron" and tensor.placement:
            continue
        if tensor.equal is False or (tensor.implied and tensor.equal is None):
            names.add(name)
        elif tensor.view.nbytes <= SMALL and tensor.replica_bytes <= left:
            names.add(name)
            left -= tensor.replica_bytes
    return names


def deviations(
    checkpoint: Checkpoint,
    names: Container[str] | None = None,
    *,
    workers: int | None = None,
    on_read: Callable[[int], None] | None = None,
) -> list[Deviation]:
    """Every copy that differs from the one that is used.

    Args:
        checkpoint: the checkpoint.
        names: the tensors to compare; None for all.
        workers: threads; None for one per core and one more.
        on_read: called with the bytes of the copies of each tensor after it was compared, by one thread at a time.

    Returns:
        The copies that differ, in the order of the checkpoint's tensors.
    """
    tasks = [
        _Task(number, name, tensor)
        for number, (name, tensor) in enumerate(checkpoint.tensors.items())
        if tensor.replicas and (names is None or name in names)
    ]
    results: dict[int, list[Deviation]] = {}
    rank_of, lock = checkpoint.rank_of, threading.Lock()

    def start(reader: Reader) -> Callable[[_Task], None]:
        comparer = _Comparer(reader, rank_of)

        def do(task: _Task) -> None:
            result = list(comparer.deviations(task.name, task.tensor))
            with lock:
                results[task.number] = result
                if on_read:
                    on_read(task.tensor.replica_bytes)

        return do

    if tasks:
        for_each_reader(tasks, start, min(threads.count(workers), len(tasks)))
    return [item for number in sorted(results) for item in results[number]]


class _Task(NamedTuple):
    """One tensor to compare: its number, name, and views."""

    number: int
    name: str
    tensor: StoredTensor


class _Comparer:
    """Compares the copies of one tensor after another, with one thread's reader and two buffers.

    Args:
        reader: reads both copies.
        rank_of: file -> the rank that wrote it.
    """

    def __init__(self, reader: Reader, rank_of: Mapping[str, int]) -> None:
        self._reader, self._rank_of = reader, rank_of
        self._used, self._copy = np.empty(BLOCK, np.uint8), np.empty(BLOCK, np.uint8)

    def deviations(self, name: str, tensor: StoredTensor) -> Iterator[Deviation]:
        """Compare all copies of each part of a tensor together, so that the used part is read once."""
        groups: dict[tuple[Shape, Shape], list[View]] = {}
        for offsets, copy in tensor.replicas:
            groups.setdefault((offsets, copy.shape), []).append(copy)
        for (offsets, sizes), copies in groups.items():
            used = tensor.view
            for dim, (offset, size) in enumerate(zip(offsets, sizes, strict=True)):
                used = narrow(used, dim, offset, size)
            others = [copy for copy in copies if copy.numel and not same_place(copy, used)]
            for copy, (count, first) in zip(others, self._differences(used, others), strict=True):
                if count:
                    index = _position(first, sizes)
                    yield Deviation(
                        name,
                        rank=self._rank_of.get(copy.files[0], -1),
                        used=self._holder(used, index),
                        index=tuple(at + offset for at, offset in zip(index, offsets, strict=True)),
                        count=count,
                        shape=tensor.view.shape,
                        file=copy.files[0],
                    )

    def _differences(self, used: View, others: Sequence[View]) -> list[tuple[int, int]]:
        """For each copy: the number of elements that differ from `used`, and the first of them in C order."""
        raw = raw_dtype(used.dtype)
        one, two = self._used.view(raw), self._copy.view(raw)
        counts, firsts = [0] * len(others), [-1] * len(others)
        left, right = prepare(used), [prepare(view) for view in others]
        for low in range(0, used.numel if others else 0, len(one)):
            high = min(low + len(one), used.numel)
            size = high - low
            self._reader.interval(left, low, high, one[:size])
            for number, prepared in enumerate(right):
                self._reader.interval(prepared, low, high, two[:size])
                differs = one[:size] != two[:size]
                count = int(np.count_nonzero(differs))
                if count:
                    counts[number] += count
                    if firsts[number] < 0:
                        firsts[number] = low + int(np.argmax(differs))
        return list(zip(counts, firsts, strict=True))

    def _holder(self, used: View, index: Shape) -> int:
        """The rank whose bytes are used for one element; -1 if it is not known."""
        for chunk in used.chunks:
            ends = map(add, chunk.offsets, chunk.sizes)
            if all(low <= at < end for low, at, end in zip(chunk.offsets, index, ends, strict=True)):
                return self._rank_of.get(chunk.file, -1)
        return -1


def _position(number: int, sizes: Shape) -> Shape:
    """The index of an element in a box, from its number in C order."""
    return tuple(int(at) for at in np.unravel_index(number, sizes)) if sizes else ()
