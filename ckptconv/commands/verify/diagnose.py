"""Recognises the form of a difference: another tensor's values, a transpose, rows or columns in another order.

A second pass over the tensors that differ reduces each row and each column of both sides to a fingerprint of 64 bits: the
sum of its elements' bits, each times a random number for the element's position. Equal rows have equal fingerprints,
different rows almost never do, and the rows of a tensor have the fingerprints of the columns of its transpose.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from math import prod
from typing import NamedTuple

import numpy as np

from ckptconv.commands.verify.orders import Place, Run, describe, rotary, runs_of
from ckptconv.commands.verify.values import Task, few
from ckptconv.compute.tiles import Filler
from ckptconv.plan import Output
from ckptconv.read.each import for_each_reader
from ckptconv.read.reader import Array, Reader, raw_dtype
from ckptconv.tensors.boxes import Slice
from ckptconv.tensors.dtypes import itemsize

_TILE = 1 << 19  # bytes of a tensor at a time; as 64-bit numbers they take up to four times as much
_SCRATCH = 8 << 20  # bytes for stored elements before they are cast
_TENSORS, _ROWS = 32, 1 << 20  # the most that are examined in all


class Form(NamedTuple):
    """What a difference looks like.

    Args:
        looks_like: a sentence for the user.
        equals: the reference's tensor that has exactly these values; "" if there is none.
    """

    looks_like: str
    equals: str = ""


class _Prints(NamedTuple):
    """The fingerprints (uint64) of a tensor's rows and of its columns."""

    rows: Array
    columns: Array


def looks_like(
    tasks: Sequence[Task], workers: int | None, on_read: Callable[[int], None] | None = None
) -> dict[str, Form]:
    """Recognise the forms of the differences.

    Args:
        tasks: the tensors that were compared.
        workers: threads; None for at most 8.
        on_read: called with the bytes that were read.

    Returns:
        Tensor name -> the form of its difference, for the tensors whose difference has a known form.
    """
    found = dict(_whole(tasks))
    todo = _few([task for task in tasks if task.tally.count and task.tally.name not in found])
    prints = _all_prints(todo, workers, on_read)
    table = _Table([(task.tally.name, prints[task.tally.name][1].rows) for task in todo])
    for task in todo:
        looks_like = _form(task, *prints[task.tally.name], table)
        if looks_like:
            found[task.tally.name] = Form(looks_like)
    return found


def _whole(tasks: Sequence[Task]) -> Iterator[tuple[str, Form]]:
    """Find the tensors that have the values of another tensor of the reference, and whether the two are swapped."""
    compared = {task.tally.name: task.tally for task in tasks if task.tally.compared}
    theirs: dict[str, str] = {}
    for name, tally in compared.items():
        theirs.setdefault(tally.hash(1), name)
    for name, tally in compared.items():
        other = theirs.get(tally.hash(0))
        if not tally.count or other is None or other == name:
            continue
        swapped = compared[other].hash(0) == tally.hash(1)
        looks_like = f"swapped with {other}" if swapped else f"has the values of the reference's {other}"
        yield name, Form(looks_like, other)


def _few(tasks: Sequence[Task]) -> list[Task]:
    """The tasks to examine, up to a limit; tensors with rows longer than a tile are skipped."""
    found, rows = [], 0
    for task in tasks:
        shape = task.tally.shape
        width = shape[-1] if len(shape) > 1 else 1
        number = prod(shape) // width if width else 0
        if not number or width * itemsize(task.tally.dtype) > _TILE or rows + number > _ROWS:
            continue
        found.append(task)
        rows += number
    return found[:_TENSORS]


def _all_prints(
    tasks: Sequence[Task], workers: int | None, on_read: Callable[[int], None] | None
) -> dict[str, tuple[_Prints, _Prints]]:
    """Tensor name -> the fingerprints of our side and of the reference."""
    made: dict[str, tuple[_Prints, _Prints]] = {}
    most = max((size for task in tasks for size in _sizes(task.tally.shape)), default=0)
    factors = np.random.default_rng().integers(0, 2**64, most, np.uint64) | np.uint64(1)

    def start(reader: Reader) -> Callable[[Task], None]:
        filler = Filler(reader, np.empty(_SCRATCH, np.uint8))

        def do(task: Task) -> None:
            before, tally = reader.nbytes, task.tally
            assert task.theirs is not None
            ours, theirs = (
                _prints(side, tally.dtype, _sizes(tally.shape), factors, filler)
                for side in (task.ours, task.theirs)
            )
            made[tally.name] = ours, theirs
            if on_read:
                on_read(reader.nbytes - before)

        return do

    for_each_reader(tasks, start, few(workers))
    return made


def _sizes(shape: Sequence[int]) -> tuple[int, int]:
    """The numbers of rows and columns: the last dim has the columns; a vector is one column."""
    return (prod(shape[:-1]), shape[-1]) if len(shape) > 1 else (prod(shape), 1)


def _prints(output: Output, dtype: str, sizes: tuple[int, int], factors: Array, filler: Filler) -> _Prints:
    """Compute the fingerprints of one side of a tensor.

    Args:
        output: what fills the tensor.
        dtype: the dtype in which the sides are compared.
        sizes: its numbers of rows and columns.
        factors: the random numbers (uint64) for positions, at least as many as rows and as columns.
        filler: computes the elements.
    """
    rows, width = sizes
    raw = raw_dtype(dtype)
    found = _Prints(np.empty(rows, np.uint64), np.zeros(width, np.uint64))
    step = max(_TILE // (width * raw.itemsize), 1)
    buffer = np.empty(step * width * raw.itemsize, np.uint8)
    for first in range(0, rows, step):
        last = min(first + step, rows)
        part = buffer[: (last - first) * width * raw.itemsize]
        filler.fill(output.source, dtype, first * width, last * width, part)
        bits = part.view(raw).reshape(-1, width).astype(np.uint64)
        found.rows[first:last] = (bits * factors[:width]).sum(1, dtype=np.uint64)
        found.columns[:] += (bits * factors[first:last, None]).sum(0, dtype=np.uint64)
    return found


class _Table:
    """Finds the rows of the reference by their fingerprints, among all tensors that are examined."""

    def __init__(self, held: Sequence[tuple[str, Array]]) -> None:
        self._names = [name for name, _ in held]
        self._all = _Index(np.concatenate([rows for _, rows in held]) if held else np.empty(0, np.uint64))
        lengths = [len(rows) for _, rows in held]
        self._owner = np.repeat(np.arange(len(held)), lengths)
        self._begin = np.concatenate([[0], np.cumsum(lengths)]).astype(np.int64)

    def places(self, name: str, rows: Array, own: Array) -> list[Place | None]:
        """For each row, the position of an equal row of the reference; None if there is none.

        Args:
            name: the tensor.
            rows: the fingerprints of its rows.
            own: the fingerprints of the reference's rows of the same name, which are searched first.
        """
        here, anywhere = _Index(own).find(rows), self._all.find(rows)
        places: list[Place | None] = []
        for mine, other in zip(here.tolist(), anywhere.tolist(), strict=True):
            if mine >= 0:
                places.append((name, mine))
            elif other >= 0:
                owner = int(self._owner[other])
                places.append((self._names[owner], other - int(self._begin[owner])))
            else:
                places.append(None)
        return places


class _Index:
    """Maps numbers to the first position at which each occurs."""

    def __init__(self, numbers: Array) -> None:
        self._order = np.argsort(numbers, kind="stable")
        self._sorted = numbers[self._order]

    def find(self, wanted: Array) -> Array:
        """The position of each wanted number; -1 if it does not occur."""
        if not len(self._sorted):
            return np.full(len(wanted), -1)
        at = np.minimum(np.searchsorted(self._sorted, wanted), len(self._sorted) - 1)
        return np.where(self._sorted[at] == wanted, self._order[at], -1)


def _form(task: Task, ours: _Prints, theirs: _Prints, table: _Table) -> str:
    """The sentence for one tensor's difference; "" if it has no known form."""
    name, shape = task.tally.name, task.tally.shape
    if len(shape) == 2 and shape[0] == shape[1] and np.array_equal(ours.rows, theirs.columns):
        return "it is transposed"
    parts = task.tally.holders.parts() if task.tally.holders else ()
    wrong = np.flatnonzero(ours.rows != theirs.rows)
    places = table.places(name, ours.rows[wrong], theirs.rows)
    own = {int(row): place[1] for row, place in zip(wrong, places, strict=True) if place and place[0] == name}
    if len(own) == len(wrong):
        order = np.arange(len(ours.rows))
        order[list(own)] = list(own.values())
        if text := rotary(order):
            return text
    text = describe(name, "row", runs_of(wrong, places), len(wrong), _cuts(parts, shape, 0))
    if text or len(shape) < 2:
        return text
    wrong = np.flatnonzero(ours.columns != theirs.columns)
    at = _Index(theirs.columns).find(ours.columns[wrong]).tolist()
    columns: list[Run] = runs_of(wrong, [(name, place) if place >= 0 else None for place in at])
    return describe(name, "column", columns, len(wrong), _cuts(parts, shape, len(shape) - 1))


def _cuts(parts: Sequence[Slice], shape: Sequence[int], dim: int) -> dict[tuple[int, int], int]:
    """(first, number) along a dim -> the only rank that stores exactly these rows or columns.

    Args:
        parts: the boxes that the ranks store.
        shape: the tensor's shape. The dims of a stack before the last are flattened, so its rows count through.
        dim: 0 for rows, the last dim for columns.
    """
    inner = prod(shape[1:-1]) if dim == 0 and len(shape) > 2 else 1
    ranks: dict[tuple[int, int], list[int]] = {}
    for part in parts:
        if part.sizes:
            ranks.setdefault((part.offsets[dim] * inner, part.sizes[dim] * inner), []).append(part.rank)
    return {place: held[0] for place, held in ranks.items() if len(held) == 1}
