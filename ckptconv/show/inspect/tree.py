"""Shows `--tree`: the modules, as `tree` and `du` would show them."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Literal

from rich.console import RenderableType
from rich.table import Table
from rich.text import Text

from ckptconv.commands.inspect import Node
from ckptconv.show.units import count, shape, size

_WIDE, _NARROW, _BAR, _LEAST = 110, 80, 16, 16


def tree(root: Node, width: int, depth: int | None) -> RenderableType:
    """One line per module with its parameters and bytes, and a tensor's shape and dtype if there is room.

    Args:
        root: the root of the tree.
        width: columns of the terminal.
        depth: levels to show; None for all.
    """
    lines = list(_lines(root, depth))
    cells = [_cells(node, width) for _, node in lines]
    taken = sum(max(map(len, column)) + 2 for column in zip(*cells, strict=True))
    taken += _BAR + 2 if width >= _WIDE else 0
    table = Table(box=None, padding=(0, 1), pad_edge=False, header_style="bold", show_edge=False)
    table.add_column("module", no_wrap=True)
    for name, justify in _columns(width):
        table.add_column(name, justify=justify, no_wrap=True)
    if width >= _WIDE:
        table.add_column("", no_wrap=True)
    for (guide, node), texts in zip(lines, cells, strict=True):
        bar = [_bar(node.nbytes, root.nbytes)] if width >= _WIDE else []
        table.add_row(_label(guide, node, max(width - taken, _LEAST)), *texts, *bar)
    return table


def _columns(width: int) -> list[tuple[str, Literal["left", "right"]]]:
    kind: list[tuple[str, Literal["left", "right"]]] = [("shape", "right"), ("dtype", "left")]
    return [("", "right"), *(kind if width >= _NARROW else []), ("parameters", "right"), ("size", "right")]


def _cells(node: Node, width: int) -> list[str]:
    kind = ["" if node.shape is None else shape(node.shape), node.dtype] if width >= _NARROW else []
    times = f"{node.count}×" if node.count > 1 else ""
    return [times, *kind, f"{count(node.parameters):>10}", size(node.nbytes)]


def _label(guide: str, node: Node, room: int) -> Text:
    """A name after its guides. A name that is too long continues on the next line, slightly indented."""
    name, style = node.name or "all", "" if node.shape is not None else "bold"
    room = max(room - len(guide), 8)
    text = Text.assemble((guide, "dim"), (name[:room], style))
    below = guide.replace("├─ ", "│  ").replace("└─ ", "   ") + "  "
    for at in range(room, len(name), room - 2):
        text.append("\n").append(below, "dim").append(name[at : at + room - 2], style)
    return text


def _lines(node: Node, depth: int | None, before: str = "", own: str = "") -> Iterator[tuple[str, Node]]:
    """Yield (guides before the name, node) from the root down, to `depth` levels below it."""
    yield own, node
    if depth is not None and depth <= 0:
        return
    for number, child in enumerate(node.children):
        last = number == len(node.children) - 1
        guide, below = ("└─ ", "   ") if last else ("├─ ", "│  ")
        yield from _lines(child, None if depth is None else depth - 1, before + below, before + guide)


def _bar(nbytes: int, whole: int) -> Text:
    cells = round(nbytes / whole * _BAR) if whole else 0
    return Text("█" * cells, "cyan") if cells or not nbytes else Text("▏", "cyan")
