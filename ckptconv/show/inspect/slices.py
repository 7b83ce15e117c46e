"""Shows `--tensor`: each rank's part of a tensor as a table, and a picture of the sharding."""

from __future__ import annotations

import os

from rich.console import Group, RenderableType
from rich.padding import Padding
from rich.table import Table
from rich.text import Text

from ckptconv.commands.inspect import Inspection, Match, Part
from ckptconv.show.ranks import colour, coordinate_text, glyph, spans
from ckptconv.show.split import split
from ckptconv.show.units import shape, size

_MATCHES, _PARTS, _NARROW = 12, 24, 80


def slices(found: Inspection, width: int) -> RenderableType:
    """Every tensor that matches, with its parts and its picture."""
    matches = found.matches or ()
    names = sum(len(match.names) for match in matches)
    lines: list[RenderableType] = [Text(f"{names} tensor{'s' * (names != 1)} of {found.tensors}", "dim")]
    for match in matches[:_MATCHES]:
        lines += [Text(), _title(match), Text()]
        if not found.is_sharded and len(match.parts) == 1:
            lines.append(_file(match.parts[0], found))
        else:
            picture = split(match, width)
            lines += [*_table(match, found, width), *([Text(), *picture] if picture else [])]
    more = names - sum(len(match.names) for match in matches[:_MATCHES])
    if more > 0:
        lines += [Text(), Text(f"and {more} more match (--json lists all)", "dim")]
    return Group(*lines)


def _title(match: Match) -> RenderableType:
    cut = f"  {match.placement}" if match.placement else ""
    text = Text.assemble(
        (match.pattern, "bold"), f"  {shape(match.shape)}  {match.dtype}  {size(match.nbytes)}{cut}"
    )
    if len(match.names) == 1:
        return text
    how = "sharded the same way" if len(match.parts) > 1 else "of the same shape"
    return Group(
        text, Text(f"{len(match.names)} tensors {how}: {match.names[0]} to {match.names[-1]}", "dim")
    )


def _file(part: Part, found: Inspection) -> RenderableType:
    return Padding(Text(f"stored in {_relative(part.file, found)}, from byte {part.start:,}"), (0, 0, 0, 2))


def _table(match: Match, found: Inspection, width: int) -> list[RenderableType]:
    """A table with a row for each part. On a narrow terminal the files follow below it."""
    table = Table(box=None, padding=(0, 1), pad_edge=False, header_style="bold", show_edge=False)
    has_coordinates = any(part.coordinate for part in match.parts)
    copies = any(part.copy for part in match.parts)
    table.add_column("rank", justify="right", no_wrap=True)
    if has_coordinates:
        table.add_column("mesh", no_wrap=True)
    table.add_column("offsets", no_wrap=True)
    table.add_column("sizes", no_wrap=True)
    table.add_column("bytes", justify="right", no_wrap=True)
    if copies:
        table.add_column("", no_wrap=True)
    if width >= _NARROW:
        table.add_column("file", overflow="fold", ratio=1)
    for part in match.parts[:_PARTS]:
        cells: list[RenderableType] = [_rank(part.rank)]
        if has_coordinates:
            cells.append(coordinate_text(part.coordinate))
        cells += [_offsets(part), _sizes(part), size(part.nbytes)]
        if copies:
            cells.append(Text("copy", "dim") if part.copy else "used")
        if width >= _NARROW:
            cells.append(Text(_relative(part.file, found)))
        table.add_row(*cells)
    more = match.parts[_PARTS:]
    lines: list[RenderableType] = [table]
    if more:
        left = spans(sorted({part.rank for part in more}))
        lines.append(Text(f"and {len(more)} more parts on ranks {left} (--json lists all)", "dim"))
    if width < _NARROW:
        files = {part.file: part.rank for part in match.parts[:_PARTS]}
        lines += [Text.assemble(_rank(rank), f" {_relative(file, found)}") for file, rank in files.items()]
    return lines


def _rank(rank: int) -> Text:
    """The number of the rank, and its glyph in the picture if that differs."""
    number = str(rank)
    return Text(number if number == glyph(rank) else f"{glyph(rank)} {number}", colour(rank))


def _offsets(part: Part) -> str:
    return f"element {part.run[0]:,}" if part.run else ", ".join(f"{n:,}" for n in part.offsets) or "–"


def _sizes(part: Part) -> str:
    return f"{part.run[1] - part.run[0] + 1:,} in a run" if part.run else shape(part.sizes)


def _relative(file: str, found: Inspection) -> str:
    root = os.path.join(str(found.root), "")
    return file.removeprefix(root) if file.startswith(root) else file
