"""Shows which rank stores what: a bar over the model's parts for each rank or group of ranks."""

from __future__ import annotations

from rich.console import RenderableType
from rich.table import Table
from rich.text import Text

from ckptconv.commands.inspect import Inspection
from ckptconv.show.ranks import Ranks, colour, coordinates_text, coverage, grouped, spans
from ckptconv.show.units import size

_MOST = 16
_BAR = 40


def shard_map(found: Inspection, width: int) -> list[RenderableType]:
    """The bars, below a line that names the model's parts from left to right, and a legend."""
    table = Table.grid(padding=(0, 2))
    for _ in range(2):
        table.add_column(no_wrap=True)
    table.add_column(no_wrap=True)
    table.add_column(justify="right", no_wrap=True)
    groups = grouped(found.ranks, _MOST)
    names = [Text(f"  {_named(group)}", colour(group.ranks[0].rank)) for group in groups]
    where = [coordinates_text(group.ranks, found.ranks) for group in groups]
    sizes = [_size(group) for group in groups]
    taken = max(n.cell_len for n in names) + max(map(len, where)) + max(map(len, sizes)) + 8
    cells = max(min(_BAR, len(found.parts) * 2, width - taken), 8)
    for group, name, coordinate, nbytes in zip(groups, names, where, sizes, strict=True):
        table.add_row(name, coordinate, coverage(group.parts, group.ranks[0].rank, cells), nbytes)
    legend = Text("  share of a part:  ░ under 25%  ▒ under 50%  ▓ under 75%  █ 75% or more", "dim")
    return [*_title(found.parts, width), table, legend]


def _title(parts: tuple[str, ...], width: int) -> list[Text]:
    """The names of the model's parts from left to right. Lines break only between parts."""
    lines = [Text.assemble(("which rank stores what", "bold"), "   ")]
    names = _spans(parts)
    for number, name in enumerate(names):
        title = f" {name}{',' if number < len(names) - 1 else ''}"
        if lines[-1].cell_len + len(title) > width and number:
            lines.append(Text(" " * 25))
        lines[-1].append(title)
    return lines


def _named(group: Ranks) -> str:
    numbers = [rank.rank for rank in group.ranks]
    return f"rank {numbers[0]}" if len(numbers) == 1 else f"ranks {spans(numbers)}"


def _size(group: Ranks) -> str:
    if len(group.ranks) == 1:
        (rank,) = group.ranks
        return size(rank.nbytes) + (f"  + {size(rank.copies)} copies" if rank.copies else "")
    held = [rank.nbytes for rank in group.ranks]
    if not any(held) and not any(rank.copies for rank in group.ranks):
        return "nothing"
    if group.together:
        return f"{len(held)}× {size(sum(held))} in all"
    low, high = size(min(held)), size(max(held))
    copies = sum(rank.copies for rank in group.ranks) // len(held)
    each = low if low == high else f"{low}–{high}" if low.split()[1] != high.split()[1] else _range(low, high)
    return f"{len(held)}× {each}" + (f"  + {size(copies)} copies" if copies else "")


def _range(low: str, high: str) -> str:
    return f"{low.split()[0]}–{high}"


def _spans(parts: tuple[str, ...]) -> list[str]:
    """The parts with consecutive numbers joined: "visual", "visual 0–31", "embedding", "layers 0–27", "head"."""
    found: list[str] = []
    numbers: dict[str, list[int]] = {}
    for part in parts:
        stack, _, number = part.rpartition(" ") if not part.isdigit() else ("layers", "", part)
        if not (stack and number.isdigit()):
            found.append(part)
            continue
        if stack not in numbers:
            found.append(stack)
        numbers.setdefault(stack, []).append(int(number))
    texts = []
    for name in dict.fromkeys(found):
        held = numbers.get(name)
        texts.append(
            name if held is None else f"{name} {held[0]}–{held[-1]}" if len(held) > 1 else f"{name} {held[0]}"
        )
    return texts
