"""Describes in words how the rows of a tensor are permuted relative to the reference."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import NamedTuple

import numpy as np

from ckptconv.commands.verify.records import span
from ckptconv.read.reader import Array

Place = tuple[str, int]  # a tensor of the reference, and a row of it
_LONGEST_HEAD = 1024  # rows of an attention head
_SHOWN = 4  # runs that a sentence names


class Run(NamedTuple):
    """Rows that are contiguous in both tensors.

    Args:
        first: the first row.
        length: the number of rows.
        name: the reference's tensor that has the same rows.
        source: the first of them in that tensor.
    """

    first: int
    length: int
    name: str
    source: int


def runs_of(rows: Iterable[int], places: Sequence[Place | None]) -> list[Run]:
    """Group adjacent rows whose positions in the reference are adjacent too.

    Args:
        rows: the rows that differ, in order.
        places: for each of them, where the reference has an equal row; None if nowhere.
    """
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
    """Recognise a permutation between the two layouts of rotary embeddings: interleaved pairs, and the halves of a head.

    Sources: transformers, convert_llama_weights_to_hf.py (permute); megatron/core/models/common/embeddings/rope_utils.py
    (rotary_interleaved).

    Args:
        order: row i is the reference's row order[i].

    Returns:
        A sentence; "" for any other permutation.
    """
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
    """Say where the rows or columns that differ are in the reference.

    Args:
        name: the tensor.
        word: "row" or "column".
        runs: those that are somewhere in the reference.
        wrong: the number of rows or columns that differ.
        cuts: (first, number) -> the rank that stores exactly these.

    Returns:
        A sentence; "" if the reference has fewer than half of them.
    """
    found = sum(run.length for run in runs)
    if found * 2 < wrong or not found:
        return ""
    own = all(run.name == name for run in runs)
    if len(runs) > max(_SHOWN, found // 2):  # almost no two rows are still adjacent
        return f"the same {word}s in another order" if own and found == wrong else ""
    longest = sorted(runs, key=lambda run: -run.length)[:_SHOWN]
    text = "; ".join(_run(name, word, run, cuts) for run in sorted(longest))
    return text + (f"; and {len(runs) - _SHOWN} more pieces" if len(runs) > _SHOWN else "")


def _run(name: str, word: str, run: Run, cuts: Mapping[tuple[int, int], int]) -> str:
    ours, theirs = cuts.get((run.first, run.length)), cuts.get((run.source, run.length))
    if run.name == name and ours is not None and theirs is not None and ours != theirs:
        return f"rank {theirs}'s slice is in the place of rank {ours}'s"
    here, there = (span(word, first, first + run.length - 1) for first in (run.first, run.source))
    return f"{here} {'are' if run.length > 1 else 'is'} the reference's {'' if run.name == name else run.name + ' '}{there}"
