"""A verification on the screen: a line a layer, what differs and where, the verdict."""

from __future__ import annotations

import threading
import time
from types import TracebackType

from rich.console import Group, RenderableType
from rich.progress import BarColumn, Progress, TaskID, TextColumn, TimeRemainingColumn
from rich.table import Table
from rich.text import Text

from ckptconv.commands.verify import Difference, Layer, Verified
from ckptconv.show.ranks import colour
from ckptconv.show.sink import NO, OK, Sink
from ckptconv.show.units import seconds, shape, size

_MAX_ROWS = 20


def screen(found: Verified, width: int) -> RenderableType:
    """The whole screen for a terminal of `width` columns."""
    parts: list[RenderableType] = [_layers(found)]
    for layer in found.layers:
        parts += _problems(layer)
    if found.differences:
        parts += [Text(), _differences(found), *_hints(found)]
    return Group(*parts, Text(), _verdict(found))


def _layers(found: Verified) -> Table:
    table = Table.grid(padding=(0, 2))
    table.add_column(justify="right", style="bold", no_wrap=True)
    table.add_column(no_wrap=True)
    table.add_column(overflow="fold")
    for layer in found.layers:
        said = Text(layer.found)
        if layer.ok and layer.proves:
            said.append(f" – {layer.proves}", "dim")
        table.add_row(layer.name, _mark(layer.ok), said)
        for note in layer.notes:
            table.add_row("", "", Text(note, "dim"))
    return table


def _mark(ok: bool | None) -> Text:
    return Text("–", "dim") if ok is None else Text(OK, "green") if ok else Text(NO, "red")


def _problems(layer: Layer) -> list[RenderableType]:
    lines: list[RenderableType] = []
    for problem in layer.problems[:_MAX_ROWS]:
        where = f"  ({problem.where})" if problem.where else ""
        lines.append(Text.assemble((f"{NO} ", "red"), (problem.name, "bold"), f"  {problem.what}{where}"))
        if problem.hint:
            lines.append(Text(f"    hint   {problem.hint}", "dim"))
    more = len(layer.problems) - _MAX_ROWS
    return [*lines, Text(f"  and {more} more (--json lists all)", "dim")] if more > 0 else lines


def _differences(found: Verified) -> Table:
    table = Table(box=None, padding=(0, 1), pad_edge=False, header_style="bold")
    table.add_column("differs", overflow="fold", ratio=1)
    table.add_column("shape", justify="right", no_wrap=True)
    table.add_column("elements", justify="right", no_wrap=True)
    table.add_column("max |Δ|", justify="right", no_wrap=True)
    table.add_column("where, by rows", no_wrap=True)
    for item in found.differences[:_MAX_ROWS]:
        table.add_row(
            Text(item.name), shape(item.shape), f"{item.count:,}", f"{item.max_abs:.3g}", _rows(item)
        )
    more = len(found.differences) - _MAX_ROWS
    if more > 0:
        table.add_row(Text(f"and {more} more (--json lists all)", "dim"))
    return table


def _rows(item: Difference) -> Text:
    text = Text()
    for differs in item.rows:
        text.append("█" if differs else "░", "red" if differs else "dim")
    return text


def _hints(found: Verified) -> list[RenderableType]:
    lines: list[RenderableType] = []
    for item in found.differences[:_MAX_ROWS]:
        if not item.slices:
            continue
        text = Text.assemble(
            ("  hint: ", "dim"), f"{item.name}, rows {item.first_row}–{item.last_row}: the slice of "
        )
        for number, part in enumerate(item.slices[:4]):
            text.append(", " if number else "").append(f"rank {part.rank}", colour(part.rank))
        lines.append(text)
    return lines


def _verdict(found: Verified) -> Text:
    what = f"{found.target}" + (f" against {found.against}" if found.against else "")
    tail = f"   {size(found.read)} read   {seconds(found.seconds)}"
    if not found.ok:
        bad = [layer.name for layer in found.layers if layer.ok is False]
        return Text.assemble((f"{NO} ", "red"), (what, "bold"), f"   not right: {', '.join(bad)}{tail}")
    if found.against:
        return Text.assemble(
            (f"{OK} ", "green"), (what, "bold"), f"   {found.equal} of {found.compared} tensors equal{tail}"
        )
    return Text.assemble((f"{OK} ", "green"), (what, "bold"), f"   {found.tensors} tensors{tail}")


class Checking:
    """The bar while values are read; on no terminal, nothing."""

    def __init__(self, sink: Sink) -> None:
        self._lock, self._last, self._begun = threading.Lock(), 0.0, time.monotonic()
        self._task: TaskID | None = None
        self._progress = None
        if sink.live:
            self._progress = Progress(
                TextColumn("[bold]Checking [/bold]"),
                BarColumn(24),
                TextColumn("{task.percentage:>3.0f}%"),
                TextColumn("{task.fields[rate]}", markup=False),
                TimeRemainingColumn(compact=True),
                console=sink.err,
                transient=True,
            )

    def on_bytes(self, done: int, total: int) -> None:
        """Called by the workers with bytes read so far and in all."""
        with self._lock:
            now = time.monotonic()
            if self._progress is None or now - self._last < 0.1:
                return
            self._last = now
            if self._task is None:
                self._task = self._progress.add_task("", total=total, rate="")
            rate = f"{size(done / max(now - self._begun, 1e-9))}/s"
            self._progress.update(self._task, completed=done, total=total, rate=rate)

    def __enter__(self) -> Checking:
        if self._progress is not None:
            self._progress.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._progress is not None:
            self._progress.stop()
