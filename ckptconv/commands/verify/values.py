"""The values of two sides, block by block through fixed buffers on a few threads; sanity in the same pass."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np

from ckptconv import workers as threads
from ckptconv.commands.verify.records import Difference, Layer, Problem
from ckptconv.commands.verify.sides import Side
from ckptconv.commands.verify.structure import Matched, compared_in
from ckptconv.commands.verify.tally import Holders, Sanity, Tally
from ckptconv.compute import CAST_BLOCK, Block, views_of
from ckptconv.dtypes import itemsize, to_numpy
from ckptconv.plan import Output
from ckptconv.read import Array, Reader, raw_dtype

BLOCK = 4 << 20  # bytes of each of a thread's two buffers


@dataclass(frozen=True, slots=True)
class Task:
    """A tensor to read: on one side, or on both to compare them."""

    ours: Output
    theirs: Output | None
    tally: Tally

    @property
    def nbytes(self) -> int:
        return _stored_bytes(self.ours) + (_stored_bytes(self.theirs) if self.theirs else 0)


class _Tile(NamedTuple):
    task: Task
    low: int
    high: int


def tasks_for(ours: Side, theirs: Side | None, found: Matched | None) -> list[Task]:
    """What has to be read: every tensor of the target, and its counterparts."""
    if theirs is None or found is None:
        return [
            Task(o, None, Tally(n, o.shape, o.dtype, False, _holders(ours, None, o, None)))
            for n, o in ours.tensors.items()
        ]
    tasks = []
    for pair in found.matches:
        a, b = pair.ours, pair.theirs
        dtype = a.dtype if b is None else compared_in(ours, theirs, a, b)
        tally = Tally(pair.name, a.shape, dtype, b is not None, _holders(ours, theirs, a, b))
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
    """Read every task once and fill its tally. Without a tolerance bits count, so equal NaN are equal."""

    @contextmanager
    def worker() -> Iterator[Callable[[_Tile], None]]:
        with Reader() as reader:
            yield _Worker(reader, atol, rtol, on_read).do

    threads.for_each(_tiles(tasks), worker, threads.count(workers))


def _tiles(tasks: Sequence[Task]) -> Iterator[_Tile]:
    for task in tasks:
        count = task.ours.source.numel
        step = BLOCK // itemsize(task.tally.dtype)
        for low in range(0, count, step):
            yield _Tile(task, low, min(low + step, count))


class _Worker:
    """One thread's buffers, and the tables of the tensor that it is at."""

    def __init__(
        self, reader: Reader, atol: float, rtol: float, on_read: Callable[[int], None] | None
    ) -> None:
        self._reader, self._atol, self._rtol, self._on_read = reader, atol, rtol, on_read
        self._buffers = np.empty(BLOCK, np.uint8), np.empty(BLOCK, np.uint8)
        self._scratch = np.empty(2 * BLOCK, np.uint8)
        self._task: Task | None = None
        self._blocks: list[Block] = []

    def do(self, tile: _Tile) -> None:
        """Fill both buffers with the tile, look at the target's values, compare."""
        task = tile.task
        dtype, raw = task.tally.dtype, raw_dtype(task.tally.dtype)
        if self._task is not task:
            sides = [task.ours] if task.theirs is None else [task.ours, task.theirs]
            self._task, self._blocks = task, [Block(side.source, dtype) for side in sides]
        nbytes, before = (tile.high - tile.low) * raw.itemsize, self._reader.nbytes
        filled = []
        for block, buffer in zip(self._blocks, self._buffers, strict=False):
            block.fill(self._reader, tile.low, tile.high, buffer[:nbytes], self._scratch)
            filled.append(buffer[:nbytes].view(raw))
        self._look(task.tally, filled, tile.low)
        if self._on_read:
            self._on_read(self._reader.nbytes - before)

    def _look(self, tally: Tally, filled: list[Array], low: int) -> None:
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
    """Layer values: which compared tensors differ."""
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
        proves = "every element has the reference's bits"
    shared = set.intersection(*(set(d.stored_rank) for d in differences)) if differences else set()
    if len(shared) == 1 and all(len(d.slices) == 1 for d in differences):
        notes.append(f"all that differs is what rank {next(iter(shared))} stores")
    if not compared:
        return Layer("values", None, proves, "no tensor has a counterpart of the same shape")
    return Layer("values", not differences, proves, found, tuple(map(_problem, differences)), tuple(notes))


def sanity_layer(tasks: Sequence[Task]) -> Layer:
    """Layer sanity: NaN, Inf, and matrices of one value. A norm of ones or a bias of zeros is normal."""
    problems, flat = [], {"zeros": 0, "ones": 0, "one value": 0}
    unused = []
    for task in tasks:
        tally, seen = task.tally, task.tally.sanity
        if seen.nan or seen.inf:
            parts = [f"{n:,} {word}" for n, word in ((seen.nan, "NaN"), (seen.inf, "Inf")) if n]
            where = f"first in row {tally.row_of(seen.first):,}" + _held(tally, seen.first)
            problems.append(Problem(tally.name, f"holds {' and '.join(parts)}", where))
        elif seen.one is not None and (seen.same or not seen.largest):
            number = _constant(seen.one, tally.dtype)
            word = "zeros" if number == 0 else "ones" if number == 1 else "one value"
            if "lora_B" in tally.name or "lora_embedding_B" in tally.name:
                unused.append(tally.name)
            elif sum(size > 1 for size in tally.shape) > 1:
                said = f"is {number:g} in every element"
                problems.append(Problem(tally.name, said, hint="was it trained, and was all of it saved?"))
            else:
                flat[word] += 1
    notes = [
        f"{n:,} vector{'s' if n > 1 else ''} of {word} (norms and biases may be)"
        for word, n in flat.items()
        if n
    ]
    if unused:
        notes.append(
            f"{len(unused):,} LoRA B factors are constant: these adapters change nothing ({unused[0]})"
        )
    floats = sum(task.tally.sanity.one is not None for task in tasks)
    proves = "no NaN, no Inf, and no matrix of a single value"
    found = f"{floats:,} float tensors" + (f", {len(problems):,} of them strange" if problems else "")
    return Layer("sanity", not problems, proves, found, tuple(problems), tuple(notes))


def _constant(bits: int, dtype: str) -> float:
    return float(np.array([bits], raw_dtype(dtype)).view(to_numpy(dtype))[0])


def _held(tally: Tally, flat: int) -> str:
    ranks = sorted(tally.holders.of(np.array([flat]), set())) if tally.holders else []
    return f", stored by rank {ranks[0]}" if ranks else ""


def _problem(found: Difference) -> Problem:
    total = int(np.prod(found.shape, dtype=np.int64))
    what = f"{found.count:,} of {total:,} elements differ"
    if found.count > found.nonfinite:
        what += f", by up to {found.max_abs:.3g}"
    if found.nonfinite:
        what += f", {found.nonfinite:,} of them NaN or Inf on one side"
    one = found.first_row == found.last_row
    where = f"row {found.first_row:,}" if one else f"rows {found.first_row:,}–{found.last_row:,}"
    if found.slices:
        ranks = ", ".join(str(part.rank) for part in found.slices)
        where += f", stored by rank{'s' if len(found.slices) > 1 else ''} {ranks}"
    return Problem(found.name, what, where)


def _holders(ours: Side, theirs: Side | None, a: Output, b: Output | None) -> Holders | None:
    for side, output in ((ours, a), (theirs, b)):
        if side is not None and output is not None and side.planned:
            return Holders(views_of(output.source)[0], output.shape, side.rank_of)
    return None


def _stored_bytes(output: Output) -> int:
    return sum(view.nbytes for view in views_of(output.source))
