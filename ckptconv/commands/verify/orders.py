"""Describes in words how the rows of a tensor are permuted relative to the reference."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import NamedTuple

import numpy as np

from ckptconv.commands.verify.records import span
from ckptconv.read.reader import Array

Place = tuple[str, int]  # a tensor of the reference, and a row of it
_LONGEST_HEAD = 1024
_SHOWN = 4


class Run(NamedTuple):
    """Rows first .. first+length-1 that are `name`'s rows from `source` on."""

    first: int
    length: int
    name: str
    source: int


def runs_of(rows: Iterable[int], places: Sequence[Place | None]) -> list[Run]:
    """Neighbouring rows whose places are neighbours too."""
    runs: list[Run] = []
    for row, place in zip(map(int, rows), places, strict=True):
        if place is None:
            continue
        name, source = place
        if runs:
            last = runs[-1]
            if (last.first + last.length, last.name, last.source + last.length) == (row, name, source):
                runs[-1] = last._replace(length=last.length + 1)
                continue
        runs.append(Run(row, 1, name, source))
    return runs


def rotary(order: Array) -> str:
    """What to say where `order` (row i is the reference's row order[i]) turns one form of rotary embeddings into the
    other: pairs that are neighbours, or the two halves of a head. "" for any other order."""
    rows = len(order)
    for head in range(4, min(rows, _LONGEST_HEAD) + 1, 2):
        if rows % head:
            continue
        half, begin = head // 2, np.arange(0, rows, head)[:, None]
        pairs = (begin + np.arange(head).reshape(2, half).T.reshape(-1)).reshape(-1)
        if np.array_equal(order, pairs):
            return f"heads of {head} rows are in RoPE's interleaved order, the reference's in halves"
        if np.array_equal(order[pairs], np.arange(rows)):
            return f"heads of {head} rows are in halves, as RoPE wants it; the reference's are interleaved"
    return ""


def describe(
    name: str, word: str, runs: Sequence[Run], wrong: int, cuts: Mapping[tuple[int, int], int]
) -> str:
    """Where the rows (or columns) that differ are found in the reference; "" where fewer than half of them are.

    cuts: (first, number) -> the rank that stores just these.
    """
    found = sum(run.length for run in runs)
    if found * 2 < wrong or not found:
        return ""
    own = all(run.name == name for run in runs)
    if len(runs) > max(_SHOWN, found // 2):  # hardly two neighbours together
        return f"the same {word}s in another order" if own and found == wrong else ""
    longest = sorted(runs, key=lambda run: -run.length)[:_SHOWN]
    text = "; ".join(_run(name, word, run, cuts) for run in sorted(longest))
    return text + (f"; and {len(runs) - _SHOWN} more pieces" if len(runs) > _SHOWN else "")


def _run(name: str, word: str, run: Run, cuts: Mapping[tuple[int, int], int]) -> str:
    ours, theirs = cuts.get((run.first, run.length)), cuts.get((run.source, run.length))
    if run.name == name and ours is not None and theirs is not None and ours != theirs:
        return f"in the place of rank {ours}'s slice stands rank {theirs}'s"
    here, there = (span(word, first, first + run.length - 1) for first in (run.first, run.source))
    return f"{here} {'are' if run.length > 1 else 'is'} the reference's {'' if run.name == name else run.name + ' '}{there}"
