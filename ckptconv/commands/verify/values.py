"""Layer values: compares two sides tile by tile on a few threads, in fixed buffers.

The same pass collects what the layer sanity needs.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import xxhash

from ckptconv.commands.verify.records import Difference, Layer, Problem
from ckptconv.commands.verify.sanity import Sanity
from ckptconv.commands.verify.sides import Side
from ckptconv.commands.verify.structure import Matched, compared_in
from ckptconv.commands.verify.tally import Tally
from ckptconv.compute.block import CAST_BLOCK
from ckptconv.compute.tiles import Filler, Tile, tiles_of
from ckptconv.plan import Output
from ckptconv.read import workers as threads
from ckptconv.read.each import for_each_reader
from ckptconv.read.reader import Array, Reader, raw_dtype, same_place
from ckptconv.tensors.dtypes import itemsize
from ckptconv.tensors.holders import Holders
from ckptconv.tensors.view import View

BLOCK = 4 << 20  # bytes of a tile
_MOST = 8  # threads if the user names no number: each has 20 MB of buffers


@dataclass(frozen=True, slots=True)
class Task:
    """A tensor to read.

    Args:
        ours: the target's tensor.
        theirs: the reference's; None if it is not compared.
        tally: collects the results.
        look: False if only the hash is wanted.
    """

    ours: Output
    theirs: Output | None
    tally: Tally
    look: bool = True

    @property
    def nbytes(self) -> int:
        """The stored bytes that are read."""
        return _stored_bytes(self.ours) + (_stored_bytes(self.theirs) if self.theirs else 0)


def tasks_for(ours: Side, theirs: Side | None, found: Matched | None) -> list[Task]:
    """The tensors to read: all of the target's, with their counterparts.

    Args:
        ours: the target.
        theirs: the reference; None if there is none.
        found: the pairs of tensors; None if there is no reference.
    """
    if theirs is None or found is None:
        return [
            Task(o, None, Tally(n, o.shape, o.dtype, False, _holders(ours, None, o, None)))
            for n, o in ours.tensors.items()
        ]
    tasks = []
    for pair in found.matches:
        a, b = pair.ours, pair.theirs
        dtype = a.dtype if b is None else compared_in(ours, theirs, a, b)
        compared = b is not None and a.source.numel > 0
        tally = Tally(pair.name, a.shape, dtype, compared, _holders(ours, theirs, a, b))
        tasks.append(Task(a, b, tally))
    return tasks


def read(
    tasks: Sequence[Task],
    *,
    atol: float = 0.0,
    rtol: float = 0.0,
    workers: int | None = None,
    on_read: Callable[[int], None] | None = None,
) -> None:
    """Read every task's tensors once and fill its tally. Without a tolerance bits are compared, so equal NaNs are equal.

    Args:
        tasks: the tensors to read.
        atol: the allowed absolute difference.
        rtol: the allowed difference relative to the reference.
        workers: threads; None for at most 8.
        on_read: called with the bytes that were read.
    """
    for_each_reader(_tiles(tasks), lambda reader: _Worker(reader, atol, rtol, on_read).do, few(workers))


def few(workers: int | None) -> int:
    """The number of threads: the user's if one is given, else so few that their buffers stay below 200 MB."""
    return threads.count(workers) if workers else min(threads.count(), _MOST)


def _tiles(tasks: Sequence[Task]) -> Iterator[tuple[Task, Tile]]:
    for task in tasks:
        if numel := task.ours.source.numel:
            for tile in tiles_of(numel, task.tally.dtype, BLOCK):
                yield task, tile


class _Worker:
    """Reads and compares tiles with one thread's buffers; the arguments are those of `read`."""

    def __init__(
        self, reader: Reader, atol: float, rtol: float, on_read: Callable[[int], None] | None
    ) -> None:
        self._reader, self._atol, self._rtol, self._on_read = reader, atol, rtol, on_read
        scratch = np.empty(2 * BLOCK, np.uint8)
        self._sides = [(Filler(reader, scratch), np.empty(BLOCK, np.uint8)) for _ in range(2)]

    def do(self, item: tuple[Task, Tile]) -> None:
        """Read a tile of both sides, hash it, inspect the target's values, and compare."""
        task, tile = item
        dtype, raw = task.tally.dtype, raw_dtype(task.tally.dtype)
        outputs = [task.ours] if task.theirs is None else [task.ours, task.theirs]
        nbytes, before = (tile.high - tile.low) * raw.itemsize, self._reader.nbytes
        filled = []
        for output, (filler, buffer) in zip(outputs, self._sides, strict=False):
            filler.fill(output.source, dtype, tile.low, tile.high, buffer[:nbytes])
            filled.append(buffer[:nbytes].view(raw))
        for hashed, values in zip(task.tally.hashed, filled, strict=False):
            hashed[tile.number] = xxhash.xxh3_128_digest(values)
        if task.look:
            self._look(task.tally, filled, tile.low)
        if self._on_read:
            self._on_read(self._reader.nbytes - before)

    def _look(self, tally: Tally, filled: list[Array], low: int) -> None:
        """Inspect the target's values, and compare them with the reference's.

        Args:
            tally: collects the results.
            filled: the raw bits of a tile: the target's, and the reference's if there is one.
            low: the flat index of their first element.
        """
        seen = Sanity()
        for at in range(0, len(filled[0]), CAST_BLOCK):  # pieces that stay in a core's cache
            ours = filled[0][at : at + CAST_BLOCK]
            seen.add(ours, low + at, tally.dtype)
            if len(filled) == 2:
                theirs = filled[1][at : at + CAST_BLOCK]
                if not np.array_equal(ours, theirs):
                    tally.add_difference(ours, theirs, low + at, self._atol, self._rtol)
        tally.add_sanity(seen)


def values_layer(tasks: Sequence[Task], differences: Sequence[Difference], atol: float, rtol: float) -> Layer:
    """Layer values.

    Args:
        tasks: the tensors that were read.
        differences: those that differ.
        atol: the allowed absolute difference.
        rtol: the allowed difference relative to the reference.
    """
    compared = [task for task in tasks if task.tally.compared]
    equal = len(compared) - len(differences)
    found = f"{equal:,} of {len(compared):,} equal"
    notes = []
    if atol or rtol:
        proves = f"every element is within {atol:g} + {rtol:g} × |reference| of the reference's"
        within = max((task.tally.within for task in compared), default=0.0)
        if within:
            notes.append(f"the largest |Δ| within the tolerance is {within:.3g}")
    else:
        proves = "every value is bit-identical to the reference"
    shared = set.intersection(*(set(d.stored_rank) for d in differences)) if differences else set()
    if len(shared) == 1 and all(len(d.slices) == 1 for d in differences):
        asked = ": is its file of the same step?" if len(differences) > 1 else ""
        notes.append(f"all differences are in the slices of rank {next(iter(shared))}{asked}")
    notes += _moved_layers(differences)
    notes += _rounding({task.tally.name: task for task in compared}, differences)
    if not compared:
        return Layer(
            "values", None, proves, "no tensor has a counterpart of the same shape with elements in it"
        )
    if all(_is_one(task) for task in compared):
        return Layer(
            "values", None, proves, "both sides are the same bytes of the same files: nothing was compared"
        )
    return Layer("values", not differences, proves, found, tuple(map(_problem, differences)), tuple(notes))


def _is_one(task: Task) -> bool:
    """True if target and reference are read from the same bytes."""
    ours, theirs = task.ours.source, None if task.theirs is None else task.theirs.source
    return isinstance(ours, View) and isinstance(theirs, View) and same_place(ours, theirs)


def _moved_layers(differences: Sequence[Difference]) -> list[str]:
    """Sentences about layers whose tensors are in another layer of the reference."""
    moved = Counter(item.moved for item in differences if item.moved)
    notes = []
    for (here, there), number in moved.items():
        if (there, here) not in moved:
            notes.append(f"{here} equals {there} of the reference: {number:,} tensors")
        elif here < there:
            notes.append(f"{here} and {there} are swapped: {number:,} tensors")
    return notes


_HALF_STEP = {
    "bfloat16": 2.0**-8,
    "float16": 2.0**-11,
}  # relative to a value, the most that rounding moves it


def _rounding(tasks: Mapping[str, Task], differences: Sequence[Difference]) -> list[str]:
    """A sentence if all differences come from rounding one side to a shorter dtype; [] if they do not."""
    shorter = set()
    for item in differences:
        ours, theirs = tasks[item.name].ours, tasks[item.name].theirs
        dtype = "" if theirs is None else min(ours.dtype, theirs.dtype, key=itemsize)
        if theirs is None or ours.dtype == theirs.dtype or item.nonfinite:
            return []
        if item.max_rel > 1.01 * _HALF_STEP.get(dtype, 0):
            return []
        shorter.add(dtype)
    return [f"all differences come from rounding to {' and '.join(sorted(shorter))}"] if shorter else []


def _problem(found: Difference) -> Problem:
    """The problem that reports one difference."""
    total = int(np.prod(found.shape, dtype=np.int64))
    what = f"{found.count:,} of {total:,} elements differ"
    if found.count > found.nonfinite:
        what += f", by up to {found.max_abs:.3g}"
    if found.nonfinite:
        what += f", {found.nonfinite:,} of them NaN or Inf on one side"
    where = found.where
    if found.slices:
        ranks = ", ".join(str(part.rank) for part in found.slices)
        where += f", stored by rank{'s' if len(found.slices) > 1 else ''} {ranks}"
    return Problem(found.name, what, where, found.looks_like)


def _holders(ours: Side, theirs: Side | None, a: Output, b: Output | None) -> Holders | None:
    """Which rank stores which element, by a trainer's checkpoint on either side, else by a receipt, else None."""
    sides = [(side, output) for side, output in ((ours, a), (theirs, b)) if side and output]
    for side, output in sides:
        if side.rank_of:
            return Holders.of_view(output.source.views[0], output.shape, side.rank_of)
    for side, output in sides:
        if parts := side.cuts.get(output.name):
            return Holders.of_parts(parts, output.shape)
    return None


def _stored_bytes(output: Output) -> int:
    return sum(view.nbytes for view in output.source.views)
