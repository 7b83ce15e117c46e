"""Shows the tensors: equal layers share a row, which tells how they are sharded and which ranks store each part."""

from __future__ import annotations

from rich.console import RenderableType
from rich.table import Table

from ckptconv.commands.inspect import Inspection, Row
from ckptconv.show.lines import Name
from ckptconv.show.ranks import is_flat, picture
from ckptconv.show.units import shape, size

_WIDE, _WIDER = 100, 140


def tensors(found: Inspection, width: int) -> RenderableType:
    """A table with one row per name pattern, and more columns on a wide terminal."""
    table = Table(box=None, padding=(0, 1), pad_edge=False, header_style="bold", show_edge=False)
    sharded = found.is_sharded
    table.add_column("tensor")
    table.add_column("", justify="right", no_wrap=True)
    table.add_column("shape", justify="right", no_wrap=True)
    table.add_column("dtype", no_wrap=True)
    if not sharded or width >= _WIDER:
        table.add_column("size", justify="right", no_wrap=True)
    if sharded:
        table.add_column("sharded", no_wrap=True)
        if width >= _WIDE:
            table.add_column("ranks", no_wrap=True)
    for row in found.rows:
        cells: list[RenderableType] = [
            Name(row.pattern), f"{row.count:,}×" if row.count > 1 else "", shape(row.shape), row.dtype,
        ]  # fmt: skip
        if not sharded or width >= _WIDER:
            cells.append(size(row.nbytes))
        if sharded:
            cells.append(_cut(row))
            if width >= _WIDE:
                cells.append(picture(row, 28 if width < 180 else 56))
        table.add_row(*cells)
    return table


def _cut(row: Row) -> str:
    if not row.cut_dims:
        return "replicated" if any(piece.copy for piece in row.slices) else "full"
    return "flat" if is_flat(row) else "dim " + ", ".join(map(str, row.cut_dims))
