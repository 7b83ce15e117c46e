"""Gives each rank the same colour and glyph on every screen, and describes many ranks in a few words."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping, Sequence
from itertools import pairwise
from math import prod
from typing import TYPE_CHECKING, NamedTuple

from rich.text import Text

if TYPE_CHECKING:
    from ckptconv.commands.inspect import RankMap, Row, Slice

_COLOURS = ("cyan", "magenta", "yellow", "green", "blue", "red", "bright_cyan", "bright_magenta")
_GLYPHS = "0123456789abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ"
_SHADES = "·░▒▓█"


def colour(rank: int) -> str:
    """A rank's colour."""
    return _COLOURS[rank % len(_COLOURS)]


def glyph(rank: int) -> str:
    """A rank's glyph. There are 62 glyphs, so rank 62 gets the first one again."""
    return _GLYPHS[rank % len(_GLYPHS)]


def coverage(shares: Sequence[float], rank: int, width: int) -> Text:
    """A bar over the parts of a model: a fuller glyph means that the rank stores more of that part.

    Args:
        shares: for each part, the share of its bytes that the rank stores, 0 to 1.
        rank: the rank, for its colour.
        width: cells of the bar.
    """
    text = Text()
    for column in range(width):
        low, high = (
            column * len(shares) // width,
            max((column + 1) * len(shares) // width, column * len(shares) // width + 1),
        )
        share = max(shares[low:high], default=0.0)
        text.append(_SHADES[_shade(share)], colour(rank) if share > 0 else "dim")
    return text


def _shade(share: float) -> int:
    return 0 if share <= 0 else min(1 + int(share * 4), 4)


class Ranks(NamedTuple):
    """Ranks that share one bar.

    Args:
        ranks: the ranks.
        parts: for each part of the model, the share of its bytes that they store, 0 to 1.
        together: True if the bar shows the union of what they store; False if each rank stores the same parts.
    """

    ranks: tuple[RankMap, ...]
    parts: tuple[float, ...]
    together: bool = False


def grouped(ranks: Sequence[RankMap], most: int) -> list[Ranks]:
    """Group ranks into at most `most` bars: one per rank if they fit, else per equal bar, mesh coordinate or range."""
    if len(ranks) <= most:
        return [Ranks((rank,), rank.parts) for rank in ranks]
    alike: dict[tuple[int, ...], list[RankMap]] = defaultdict(list)
    for rank in ranks:
        alike[tuple(map(_shade, rank.parts))].append(rank)
    if len(alike) <= most:
        return [Ranks(tuple(same), same[0].parts) for same in alike.values()]
    return [_together(some) for some in _by_coordinate(ranks, most) or _by_number(ranks, most)]


def _together(ranks: Sequence[RankMap]) -> Ranks:
    parts = tuple(min(sum(shares), 1.0) for shares in zip(*(rank.parts for rank in ranks), strict=True))
    return Ranks(tuple(ranks), parts, len(ranks) > 1)


def _by_coordinate(ranks: Sequence[RankMap], most: int) -> list[list[RankMap]]:
    """Group by the first mesh dims, as many as give at most `most` groups; [] if coordinates are not known."""
    if not all(rank.coordinate for rank in ranks):
        return []
    for dims in range(len(ranks[0].coordinate), 0, -1):
        groups: dict[tuple[int, ...], list[RankMap]] = defaultdict(list)
        for rank in ranks:
            groups[tuple(rank.coordinate.values())[:dims]].append(rank)
        if len(groups) <= most:
            return list(groups.values())
    return []


def _by_number(ranks: Sequence[RankMap], most: int) -> list[Sequence[RankMap]]:
    each = 1
    while each * most < len(ranks):
        each *= 2
    return [ranks[at : at + each] for at in range(0, len(ranks), each)]


def coordinate_text(coordinate: Mapping[str, int]) -> str:
    """A coordinate as text: "pp0 tp1"."""
    return " ".join(f"{_before_number(name)}{at}" for name, at in coordinate.items())


def coordinates_text(ranks: Sequence[RankMap], of: Sequence[RankMap]) -> str:
    """The coordinates of some ranks as text: "pp0 tp*". A star means that they have every index of that dim.

    Args:
        ranks: the ranks to describe.
        of: all ranks.
    """
    texts = []
    for name in ranks[0].coordinate:
        here = sorted({rank.coordinate.get(name, 0) for rank in ranks})
        every = {rank.coordinate.get(name, 0) for rank in of}
        all_of_it = len(here) > 1 and len(here) == len(every)
        texts.append(f"{_before_number(name)}{'*' if all_of_it else spans(here)}")
    return " ".join(texts)


def _before_number(name: str) -> str:
    return f"{name}=" if name[-1:].isdigit() else name


def spans(numbers: Sequence[int], most: int = 3) -> str:
    """Numbers in a short form: [0, 1, 2, 5] -> "0-2, 5", and [0, 8, 16, 24, 32] -> "0, 8, .. 32".

    Others are cut to the first `most` spans and the number of the rest.
    """
    found: list[list[int]] = []
    for number in numbers:
        if found and found[-1][1] == number - 1:
            found[-1][1] = number
        else:
            found.append([number, number])
    texts = [str(low) if low == high else f"{low}-{high}" for low, high in found]
    if len(texts) <= most:
        return ", ".join(texts)
    steps = {b[0] - a[0] for a, b in pairwise(found)}
    lengths = {high - low for low, high in found}
    if len(steps) == len(lengths) == 1:
        return f"{texts[0]}, {texts[1]}, .. {texts[-1]}"
    return f"{', '.join(texts[: most - 1])}, … ({len(numbers)})"


def is_flat(row: Row) -> bool:
    """True for a tensor whose slices are runs of elements, by its placement or because its boxes follow each other."""
    if row.placement or len(row.cut_dims) < 2:
        return "flat" in row.placement
    return all(piece.box.is_contiguous_in(row.shape) for piece in row.slices if not piece.copy)


def picture(row: Row, width: int = 32) -> Text:
    """A picture of which rank stores which part along the sharded dim: `▏0▬▬▬▬▏1▬▬▬▬`; one bar if no dim is sharded."""
    used = [piece for piece in row.slices if not piece.copy]
    dims = row.cut_dims
    if not dims or len(used) < 2:
        return Text(_ranks(row.ranks, width) if row.ranks else "empty", style="dim")
    if is_flat(row):
        return _of_runs(used, row, width)
    if len(dims) > 1:
        return _counted(f"{len(used)} blocks", sorted({piece.rank for piece in used}), width)
    # Tensors of one row may be sharded in the same way over different ranks (pipeline stages).
    if len(row.ranks) > len({piece.rank for piece in row.slices}):
        return _counted(f"{len(used)} slices", row.ranks, width)
    return _segments([(piece.rank, piece.sizes[dims[0]]) for piece in used], row.shape[dims[0]], width)


def _of_runs(used: list[Slice], row: Row, width: int) -> Text:
    """The picture of a flat partition: one run per rank, which may consist of several boxes."""
    runs: dict[int, int] = defaultdict(int)
    for piece in used:
        runs[piece.rank] += prod(piece.sizes)
    if len(row.ranks) > len(runs):
        return _counted(f"{len(runs)} runs", row.ranks, width)
    return _segments(list(runs.items()), prod(row.shape), width)


def _segments(parts: list[tuple[int, int]], whole: int, width: int) -> Text:
    text = Text()
    each = max(width // len(parts), 1)
    if each < max(len(str(rank)) for rank, _ in parts) + 2:
        return _counted(f"{len(parts)} slices", sorted({rank for rank, _ in parts}), width)
    begin = 0
    for rank, length in parts:
        begin += length
        cells = max(round(begin / whole * width) - len(text), 3)
        label = str(rank)[: cells - 1]
        text.append("▏" + label + "▬" * (cells - 1 - len(label)), colour(rank))
    return text


def _counted(what: str, ranks: Sequence[int], width: int) -> Text:
    return Text(f"{what} on {_ranks(ranks, width - len(what) - 4)}", "dim")


def _ranks(ranks: Sequence[int], width: int) -> str:
    """The ranks, or their number if the list is too long."""
    text = f"rank {ranks[0]}" if len(ranks) == 1 else f"ranks {spans(ranks)}"
    return text if len(text) <= width else f"{len(ranks)} ranks"
