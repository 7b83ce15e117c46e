"""Draws how one tensor is sharded: rows by columns, with the glyph of the storing rank in each cell."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from itertools import pairwise
from math import prod
from typing import NamedTuple

from rich.console import RenderableType
from rich.text import Text

from ckptconv.commands.inspect import Match, Part
from ckptconv.show.ranks import colour, glyph

_WIDTH, _HEIGHT, _MOST = 48, 8, 24  # cells: width, height, and the height with many slices


class _Box(NamedTuple):
    """A box of the picture, in elements: [top, bottom) by [left, right)."""

    top: int
    bottom: int
    left: int
    right: int
    rank: int


class _Picture(NamedTuple):
    """A picture of `down` by `across` elements. `caption` describes the two directions."""

    down: int
    across: int
    boxes: list[_Box]
    caption: str


def split(match: Match, width: int) -> list[RenderableType]:
    """The lines of the picture; none for a tensor that one rank stores completely."""
    used = [part for part in match.parts if not part.copy]
    if len({part.rank for part in used}) < 2 or not prod(match.shape):
        return []
    drawn = _flat(match.shape, used) if any(part.run for part in used) else _boxed(match.shape, used)
    tops = {y for box in drawn.boxes for y in (box.top, box.bottom)}
    rows = _steps(tops, drawn.down, _HEIGHT, _MOST)
    margin = max(len(str(row)) for row, _ in rows) + 4
    room = max(min(_WIDTH, width - margin - 2), 8)
    columns = _steps({x for box in drawn.boxes for x in (box.left, box.right)}, drawn.across, room, room)
    coarse = "   (each line shows its middle row)" if len(tops | {0, drawn.down}) - 1 > _MOST else ""
    lines: list[RenderableType] = [Text(f"  {drawn.caption}{coarse}", "dim")]
    starts = {box.top for box in drawn.boxes}
    last = None
    for row, middle_row in rows:
        text = Text(f"{row if row in starts and row != last else '':>{margin - 1}} ")
        last = row
        for rank in _line(drawn.boxes, middle_row, [middle for _, middle in columns]):
            text.append(" " if rank is None else glyph(rank), "" if rank is None else colour(rank))
        lines.append(text)
    return lines


def _line(boxes: Sequence[_Box], row: int, columns: Iterable[int]) -> Iterator[int | None]:
    here = [box for box in boxes if box.top <= row < box.bottom]
    for column in columns:
        yield next((box.rank for box in here if box.left <= column < box.right), None)


def _steps(bounds: set[int], whole: int, cells: int, most: int) -> list[tuple[int, int]]:
    """Distribute the cells of one direction; returns for each cell where its interval begins, and the element it shows.

    Every interval between two bounds gets at least one cell, and the remaining cells go to the largest intervals. If there
    are more intervals than cells, each cell shows the element in its middle.
    """
    edges = sorted(bounds | {0, whole})
    lengths = [b - a for a, b in pairwise(edges)]
    if len(lengths) > most:
        return [(at * whole // most, (2 * at + 1) * whole // (2 * most)) for at in range(most)]
    cells = max(whole if whole <= cells + 4 else cells, len(lengths))
    given = [1] * len(lengths)
    exact = [length / whole * cells for length in lengths]
    for _ in range(cells - len(lengths)):
        needy = max(range(len(lengths)), key=lambda i: exact[i] - given[i])
        given[needy] += 1
    return [(edges[i], edges[i]) for i, count in enumerate(given) for _ in range(count)]


def _boxed(shape: Sequence[int], used: Sequence[Part]) -> _Picture:
    """The picture of boxes, on the two most informative dims: sharded ones first, then the last ones."""
    cut = [d for d in range(len(shape)) if len({part.offsets[d] for part in used}) > 1]
    rest = [d for d in reversed(range(len(shape))) if d not in cut]
    dims = sorted([*cut, *rest][:2])
    others = [d for d in cut if d not in dims]
    seen = [part for part in used if all(part.offsets[d] == 0 for d in others)]
    if len(dims) < 2:
        across = dims[0] if dims else None
        boxes = [
            _Box(0, 1, *((0, 1) if across is None else _reach(part, across)), part.rank) for part in seen
        ]
        return _Picture(1, 1 if across is None else shape[across], boxes, "elements →")
    down, across = dims
    boxes = [_Box(*_reach(part, down), *_reach(part, across), part.rank) for part in seen]
    caption = "rows ↓ columns →" if len(shape) == 2 else f"dim {down} ↓ dim {across} →"
    if others:
        caption += f"   (where dim {' and '.join(map(str, others))} begins; it is cut too)"
    return _Picture(shape[down], shape[across], boxes, caption)


def _reach(part: Part, dim: int) -> tuple[int, int]:
    return part.offsets[dim], part.offsets[dim] + part.sizes[dim]


def _flat(shape: Sequence[int], used: Sequence[Part]) -> _Picture:
    """The picture of runs of elements on the rows of dim 0. A run that begins and ends within a row is up to three boxes."""
    down, across = (shape[0], prod(shape[1:])) if len(shape) > 1 else (1, shape[0])
    boxes = []
    for part in used:
        low, high = _interval(part, shape)
        for row, end in ((low // across, low // across + 1), (high // across, high // across + 1)):
            begin, stop = max(low, row * across), min(high + 1, end * across)
            boxes.append(_Box(row, end, begin - row * across, stop - row * across, part.rank))
        first, last = -(-low // across), (high + 1) // across
        if first < last:
            boxes.append(_Box(first, last, 0, across, part.rank))
    caption = "elements →" if down == 1 else "rows ↓ the elements of a row →"
    return _Picture(down, across, boxes, caption)


def _interval(part: Part, shape: Sequence[int]) -> tuple[int, int]:
    """The first and the end position of a part that is a run, or a box that is contiguous."""
    if part.run:
        return part.run
    begin = part.box.position_in(tuple(shape))
    return begin, begin + part.box.volume - 1
