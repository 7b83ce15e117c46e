"""How a rank looks, everywhere the same: one colour and one glyph."""

from __future__ import annotations

from collections.abc import Sequence

from rich.text import Text

from ckptconv.commands.inspect import Row, Slice

_COLOURS = ("cyan", "magenta", "yellow", "green", "blue", "red", "bright_cyan", "bright_magenta")
_SHADES = "·░▒▓█"


def colour(rank: int) -> str:
    """A rank's colour."""
    return _COLOURS[rank % len(_COLOURS)]


def coverage(shares: Sequence[float], rank: int, width: int) -> Text:
    """A bar over the model's parts: the fuller the glyph, the more of that part the rank stores."""
    text = Text()
    for column in range(width):
        low, high = (
            column * len(shares) // width,
            max((column + 1) * len(shares) // width, column * len(shares) // width + 1),
        )
        share = max(shares[low:high], default=0.0)
        glyph = _SHADES[0] if share <= 0 else _SHADES[min(1 + int(share * 4), 4)]
        text.append(glyph, colour(rank) if share > 0 else "dim")
    return text


def picture(row: Row, width: int = 32) -> Text:
    """Who holds which part of a tensor along the dim that is cut: `▏0▬▬▬▬▏1▬▬▬▬`; the whole of it where nothing is."""
    used = [piece for piece in row.slices if not piece.copy]
    dims = row.cut_dims
    if not dims or len(used) < 2:
        return Text(_ranks(list(row.ranks)) if row.ranks else "empty", style="dim")
    if len(dims) > 1:
        return Text(f"{len(used)} boxes on {_ranks(sorted({piece.rank for piece in used}))}", style="dim")
    # Tensors of one row may be cut alike by other ranks each: pipeline stages.
    if len(row.ranks) > len({piece.rank for piece in row.slices}):
        return Text(f"{len(used)} slices on {_ranks(list(row.ranks))}", style="dim")
    return _segments(used, dims[0], row.shape[dims[0]], width)


def _segments(used: list[Slice], dim: int, whole: int, width: int) -> Text:
    text = Text()
    each = max(width // len(used), 1)
    if each < max(len(str(piece.rank)) for piece in used) + 2:
        return Text(f"{len(used)} slices on {_ranks(sorted({piece.rank for piece in used}))}", style="dim")
    for piece in used:
        cells = max(round(piece.sizes[dim] / whole * width), 3)
        label = str(piece.rank)[: cells - 1]
        text.append("▏" + label + "▬" * (cells - 1 - len(label)), colour(piece.rank))
    return text


def _ranks(ranks: list[int]) -> str:
    if len(ranks) == 1:
        return f"rank {ranks[0]}"
    if ranks == list(range(ranks[0], ranks[-1] + 1)):
        return f"ranks {ranks[0]}-{ranks[-1]}"
    shown = ", ".join(map(str, ranks[:6]))
    return f"ranks {shown}{', …' if len(ranks) > 6 else ''}"
