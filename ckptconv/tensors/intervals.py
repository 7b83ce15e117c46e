"""Intervals: which boxes of a row-major array one consists of, and which of them are read together."""

from __future__ import annotations

from collections.abc import Iterable
from math import prod

Shape = tuple[int, ...]


def boxes_of_interval(low: int, high: int, sizes: Shape) -> list[tuple[int, Shape, Shape]]:
    """The boxes of a row-major array that together hold its flat positions low..high-1.

    Args:
        low: the first flat position.
        high: one past the last.
        sizes: the shape of the array.

    Returns:
        (flat position of the first element, offsets, sizes) of each box, in order.
    """
    if not sizes:
        return [(0, (), ())] if low < high else []
    if len(sizes) == 1:
        return [(low, (low,), (high - low,))]
    inner = prod(sizes[1:])
    boxes: list[tuple[int, Shape, Shape]] = []
    row, last = low // inner, (high - 1) // inner
    whole_from, whole_to = -(-low // inner), high // inner
    if row == last and whole_from >= whole_to:  # the interval is within one row
        return _in_row(row, low, high, sizes, inner)
    if low % inner:
        boxes += _in_row(row, low, (row + 1) * inner, sizes, inner)
    if whole_to > whole_from:
        offsets = (whole_from,) + (0,) * (len(sizes) - 1)
        boxes.append((whole_from * inner, offsets, (whole_to - whole_from, *sizes[1:])))
    if high % inner:
        boxes += _in_row(last, last * inner, high, sizes, inner)
    return boxes


def joined(ranges: Iterable[tuple[int, int]], gap: int) -> list[tuple[int, int]]:
    """Ranges (start, end) in order; those that are at most `gap` apart as one."""
    found: list[tuple[int, int]] = []
    for start, end in sorted(ranges):
        if found and start - found[-1][1] <= gap:
            found[-1] = found[-1][0], max(end, found[-1][1])
        else:
            found.append((start, end))
    return found


def _in_row(row: int, low: int, high: int, sizes: Shape, inner: int) -> list[tuple[int, Shape, Shape]]:
    base = row * inner
    boxes = boxes_of_interval(low - base, high - base, sizes[1:])
    return [(base + at, (row, *offsets), (1, *box)) for at, offsets, box in boxes]
