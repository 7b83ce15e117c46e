"""Shows a verification on the screen: the layers, the problems, where values differ, the last line."""

from __future__ import annotations

import shlex
from typing import Any

from rich.console import Group, RenderableType
from rich.padding import Padding
from rich.table import Table
from rich.text import Text

from ckptconv.commands.verify import Difference, Layer, Verified
from ckptconv.show.lines import Hanging, Name
from ckptconv.show.ranks import colour
from ckptconv.show.sink import NO, OK, plain
from ckptconv.show.units import seconds, shape, size

_RANKS = 8
_WIDE, _MIDDLE = 140, 80  # columns for a difference on one line, on three lines


def command(found: Verified) -> str:
    """The command line for this verification."""
    against = ["--against", str(found.against)] if found.against else []
    return shlex.join(["ckptconv", "verify", str(found.target), *against])


def record(found: Verified) -> dict[str, Any]:
    """The result as plain data for --json."""
    return {"ok": found.ok, "code": int(found.code), **plain(found)}


def screen(found: Verified, width: int, most: int = 20) -> RenderableType:
    """The whole screen.

    Args:
        found: the result.
        width: columns of the terminal.
        most: the most lines of each kind; a report to a file has room for more.
    """
    parts: list[RenderableType] = [_layers(found)]
    named = {item.name for item in found.differences}
    for layer in found.layers:
        parts += _problems(layer, named if layer.name == "values" else set(), most)
    if found.differences:
        parts += [Text(), _differences(found, width, most), *_hints(found, most)]
    return Group(*parts, Text(), Hanging(_verdict(found), 2))


def _layers(found: Verified) -> Table:
    table = Table.grid(padding=(0, 2))
    table.add_column(justify="right", style="bold", no_wrap=True)
    table.add_column(no_wrap=True)
    table.add_column(overflow="fold")
    for layer in found.layers:
        summary = Text(layer.found)
        if layer.ok and layer.proves:
            summary.append(f" – {layer.proves}", "dim")
        table.add_row(layer.name, _mark(layer.ok), summary)
        for note in layer.notes:
            table.add_row("", "", Text(note, "dim"))
    return table


def _mark(ok: bool | None) -> Text:
    return Text("–", "dim") if ok is None else Text(OK, "green") if ok else Text(NO, "red")


def _problems(layer: Layer, shown_below: set[str], most: int) -> list[RenderableType]:
    """One line per problem or group of equal problems. Tensors that differ are in their own table."""
    groups: dict[tuple[str, str, str], list[str]] = {}
    for problem in layer.problems:
        if problem.name not in shown_below:
            groups.setdefault((problem.what, problem.where, problem.hint), []).append(problem.name)
    lines: list[RenderableType] = []
    for (what, place, hint), names in list(groups.items())[:most]:
        more = f" and {len(names) - 1} more" if len(names) > 1 else ""
        where = f"  ({place})" if place else ""
        lines.append(
            Hanging(Text.assemble((f"{NO} ", "red"), (names[0], "bold"), f"{more}  {what}{where}"), 2)
        )
        if hint:
            lines.append(Padding(Text.assemble(("hint  ", "dim"), (hint, "dim")), (0, 0, 0, 4)))
    left = len(groups) - most
    return [*lines, Text(f"  and {left} more (--json lists all)", "dim")] if left > 0 else lines


def _differences(found: Verified, width: int, most: int) -> RenderableType:
    """A table of differences, or two or three lines per tensor on a narrow terminal. Moved layers are only counted."""
    listed = [item for item in found.differences if item.moved is None]
    shown, more = listed[:most], len(listed) - most
    rest = [Text(f"and {more} more (--json lists all)", "dim")] if more > 0 else []
    if moved := len(found.differences) - len(listed):
        rest.append(Text(f"and {moved} that are in another layer, see above (--json lists all)", "dim"))
    if not shown or width < _WIDE:
        return Group(*(_lines(item, width) for item in shown), *rest)
    table = Table(box=None, padding=(0, 1), pad_edge=False, header_style="bold")
    table.add_column("differs")
    for title in ("shape", "elements", "max |Δ|", "mean |Δ|", "relative"):
        table.add_column(title, justify="right", no_wrap=True)
    table.add_column("where", no_wrap=True)
    for item in shown:
        table.add_row(
            Name(item.name), shape(item.shape), f"{item.count:,}", *_numbers(item).values(), _picture(item)
        )
    return Group(table, *rest)


def _lines(item: Difference, width: int) -> Text:
    """One difference on its own lines: its name, the numbers, the picture."""
    number = "   ".join(f"{title} {value}" for title, value in _numbers(item).items())
    break_ = "   " if width >= _MIDDLE else "\n  "
    text = Text.assemble((item.name, "bold"), f"\n  {item.count:,} of {shape(item.shape)}{break_}{number}")
    return text.append("\n  ").append(_picture(item))


def _numbers(item: Difference) -> dict[str, str]:
    """The numbers of a difference as text; "NaN" if no difference is finite."""
    values = {"max |Δ|": item.max_abs, "mean |Δ|": item.mean_abs, "relative": item.max_rel}
    if item.count == item.nonfinite:
        return dict.fromkeys(values, "NaN")
    return {title: f"{value:.3g}" for title, value in values.items()}


def _picture(item: Difference) -> Text:
    """A picture of the parts that differ, along the rows, or along the columns if that is more precise."""
    by_columns = all(item.rows) and not all(item.columns)
    text = Text().append("columns " if by_columns else "rows ", "dim")
    for differs in item.columns if by_columns else item.rows:
        text.append("█" if differs else "░", "red" if differs else "dim")
    return text


def _hints(found: Verified, most: int) -> list[RenderableType]:
    """Hints on the cause of a difference and the rank that stored it. Equal hints share a line."""
    groups: dict[tuple[str, tuple[int, ...], str], list[Difference]] = {}
    for item in found.differences:
        part = not _is_all(item)  # if all of a tensor differs, naming every rank tells nothing
        if item.moved is None and (item.looks_like or (item.slices and part)):
            groups.setdefault((item.where, item.stored_rank, item.looks_like), []).append(item)
    table = Table.grid(padding=(0, 2))
    table.add_column(style="dim", no_wrap=True)
    table.add_column(overflow="fold")
    for (place, ranks, looks_like), items in list(groups.items())[:most]:
        more = f" and {len(items) - 1} more" if len(items) > 1 else ""
        text = Text.assemble((items[0].name, "bold"), f"{more}: {place}")
        if ranks:
            text.append(": the slice of rank " if len(ranks) == 1 else ": the slices of ranks ")
        for number, rank in enumerate(ranks[:_RANKS]):
            text.append(", " if number else "").append(str(rank), colour(rank))
        text.append(f" and {len(ranks) - _RANKS} more" if len(ranks) > _RANKS else "")
        table.add_row("  hint", text.append(f"; {looks_like}" if looks_like else ""))
    left = len(groups) - most
    return [table, Text(f"  and {left} more (--json lists all)", "dim")] if left > 0 else [table]


def _is_all(item: Difference) -> bool:
    return len(item.slices) > 1 and all(item.rows) and all(item.columns)


def _verdict(found: Verified) -> Text:
    what = f"{found.target}" + (f" against {found.against}" if found.against else "")
    tail = f"   {size(found.read)} read   {seconds(found.seconds)}"
    if not found.ok:
        bad = [layer.name for layer in found.layers if layer.ok is False]
        result = f"problems in: {', '.join(bad)}" if bad else "nothing could be checked"
        return Text.assemble((f"{NO} ", "red"), (what, "bold"), f"   {result}{tail}")
    mark = Text(f"{OK} ", "green")
    if found.misread_by:
        mark = Text("! ", "yellow")
        tail = f", but {', '.join(found.misread_by)} would misread it{tail}"
    elif found.is_edited:
        mark = Text("! ", "yellow")
        tail = f", but files next to the weights are not those that the merge wrote{tail}"
    if found.against:
        result = (
            f"{found.equal:,} of {found.compared:,} tensors equal"
            if found.compared
            else "no values were compared"
        )
        return Text.assemble(mark, (what, "bold"), f"   {result}{tail}")
    return Text.assemble(mark, (what, "bold"), f"   {found.tensors:,} tensors{tail}")
