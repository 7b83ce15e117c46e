"""Compares the copies of a tensor on several ranks, which the placements declare to be equal."""

from __future__ import annotations

import threading
from collections.abc import Callable, Container, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

import numpy as np

from ckptconv.errors import CkptconvError, Kind
from ckptconv.read import workers as threads
from ckptconv.read.reader import Prepared, Reader, prepare, raw_dtype, same_place
from ckptconv.tensors.checkpoint import Checkpoint, StoredTensor
from ckptconv.tensors.view import Shape, View, narrow

SMALL, SMALL_IN_ALL = (
    1 << 20,
    64 << 20,
)  # bytes: of a tensor, and of copies in all, that are compared by default
BLOCK = 4 << 20  # bytes of each of the two buffers a thread has


@dataclass(frozen=True, slots=True)
class Deviation:
    """A copy that differs from the one that is used.

    Args:
        name: the tensor.
        rank: the rank that wrote the copy; -1 if it is not known.
        used: the rank that wrote the bytes that go into the model; -1 if it is not known.
        index: the first element that differs, in the whole tensor.
        count: the number of elements that differ.
        shape: of the whole tensor.
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
    """Compare the copies of tensors. Raises CkptconvError for the first tensor whose copies differ.

    everything: read every copy of every tensor. Otherwise only those that `worth_reading` names are read.
    """
    names = None if everything else worth_reading(checkpoint)
    found = deviations(checkpoint, names, workers=workers)
    if not found:
        return
    first, others = found[0], len({item.name for item in found}) - 1
    more = f", and {others} more tensor{'s' if others > 1 else ''}" if others else ""
    implied = checkpoint.tensors[first.name].implied
    raise CkptconvError(
        f"the ranks' copies of {first.name} differ{more}",
        where=first.file,
        found=f"rank {first.rank} and rank {first.used} differ in {first.count:,} elements, first at {list(first.index)}",
        wanted="the same bytes on both: "
        + (
            "both store it whole, and nothing says that either holds a part"
            if implied
            else "the trainer says that they are replicas"
        ),
        hint="the ranks drifted apart or a file is damaged; ckptconv verify checks the files' CRCs",
        kind=Kind.DAMAGED,
    )


def worth_reading(checkpoint: Checkpoint) -> set[str]:
    """The tensors whose copies are read by default.

    Small ones, at most 1 MiB per tensor and 64 MiB in all; those whose checksums in the files differ; and those that only
    equal bytes make copies, unless their checksums are equal, which the backend has compared. Of Megatron's rank files only
    what is whole on every rank, such as norms: there are untrained models of Megatron-LM whose expert parallel ranks hold
    tensor parallel parts that differ.
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
    """Every copy that differs from the used one, in the order of the tensors.

    names: the tensors to look at; None for all. on_read: gets the bytes of copies that were read.
    """
    found: dict[int, list[Deviation]] = {}
    tasks = [
        (n, name, t)
        for n, (name, t) in enumerate(checkpoint.tensors.items())
        if t.replicas and (names is None or name in names)
    ]
    if not tasks:
        return []
    rank_of, lock = checkpoint.rank_of, threading.Lock()

    @contextmanager
    def worker() -> Iterator[Callable[[tuple[int, str, StoredTensor]], None]]:
        buffers = np.empty(BLOCK, np.uint8), np.empty(BLOCK, np.uint8)
        with Reader() as reader:

            def do(task: tuple[int, str, StoredTensor]) -> None:
                number, name, tensor = task
                result = list(_of_tensor(name, tensor, rank_of, reader, buffers))
                with lock:
                    found[number] = result
                    if on_read:
                        on_read(tensor.replica_bytes)

            yield do

    threads.for_each(tasks, worker, min(threads.count(workers), max(len(tasks), 1)))
    return [item for number in sorted(found) for item in found[number]]


Buffers = tuple["np.ndarray[tuple[int], np.dtype[np.uint8]]", "np.ndarray[tuple[int], np.dtype[np.uint8]]"]


def _of_tensor(
    name: str, tensor: StoredTensor, rank_of: dict[str, int], reader: Reader, buffers: Buffers
) -> Iterator[Deviation]:
    """Copies of one part are compared together, so that the part that is used is read once."""
    groups: dict[tuple[Shape, Shape], list[View]] = {}
    for offsets, copy in tensor.replicas:
        groups.setdefault((offsets, copy.shape), []).append(copy)
    for (offsets, sizes), copies in groups.items():
        used = tensor.view
        for dim, (offset, size) in enumerate(zip(offsets, sizes, strict=True)):
            used = narrow(used, dim, offset, size)
        others = [copy for copy in copies if copy.numel and not same_place(copy, used)]
        counts, firsts = _compare(used, others, reader, buffers)
        for copy, count, first in zip(others, counts, firsts, strict=True):
            if count:
                place = np.unravel_index(first, sizes) if sizes else ()
                index = tuple(int(at) + offset for at, offset in zip(place, offsets, strict=True))
                shape = tensor.view.shape
                file = copy.files[0]
                yield Deviation(
                    name, rank_of.get(file, -1), _holder(used, first, rank_of), index, count, shape, file
                )


def _compare(
    used: View, others: Sequence[View], reader: Reader, buffers: Buffers
) -> tuple[list[int], list[int]]:
    """For each of the others: how many elements differ from `used`, and the first of them in C order."""
    raw = raw_dtype(used.dtype)
    one, two = buffers[0].view(raw), buffers[1].view(raw)
    counts, firsts = [0] * len(others), [-1] * len(others)
    left: Prepared = prepare(used)
    right = [prepare(view) for view in others]
    for low in range(0, used.numel if others else 0, len(one)):
        high = min(low + len(one), used.numel)
        size = high - low
        reader.interval(left, low, high, one[:size])
        for number, prepared in enumerate(right):
            reader.interval(prepared, low, high, two[:size])
            differs = one[:size] != two[:size]
            count = int(np.count_nonzero(differs))
            if count:
                counts[number] += count
                if firsts[number] < 0:
                    firsts[number] = low + int(np.argmax(differs))
    return counts, firsts


def _holder(used: View, first: int, rank_of: dict[str, int]) -> int:
    """The rank whose bytes are used for one element."""
    place = [int(at) for at in np.unravel_index(first, used.shape)] if used.shape else []
    for chunk in used.chunks:
        ends = [offset + size for offset, size in zip(chunk.offsets, chunk.sizes, strict=True)]
        if all(low <= at < high for low, at, high in zip(chunk.offsets, place, ends, strict=True)):
            return rank_of.get(chunk.file, -1)
    return -1
