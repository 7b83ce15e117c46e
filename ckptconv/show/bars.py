"""What moves on a terminal while a command works: a bar for bytes, and a spinner where nothing can be counted."""

from __future__ import annotations

import time

from rich.markup import escape
from rich.progress import BarColumn, TaskID, TextColumn, TimeRemainingColumn
from rich.progress import Progress as RichProgress

from ckptconv.commands.progress import Progress
from ckptconv.show.sink import Sink
from ckptconv.show.units import size

_REDRAWN = 0.1  # seconds


class Spinner:
    """Something that moves while torch and transformers are imported, which takes seconds."""

    def __init__(self, sink: Sink, step: Progress) -> None:
        self._status = sink.err.status(f"Loading   {escape(step.what)}")
        self._status.start()

    def end(self) -> None:
        self._status.stop()


class Bar:
    """The bar of one phase. The rate counts from here on.

    Args:
        sink: where it is drawn.
        first: the first report of the phase.
        word: what is drawn before the bar.
    """

    def __init__(self, sink: Sink, first: Progress, word: str) -> None:
        self.phase = first.phase
        names = [] if first.phase == "read" else [TextColumn("{task.fields[file]}", markup=False)]
        self._begun, self._last = time.monotonic(), 0.0
        self._drawn = RichProgress(
            TextColumn(f"[bold]{word:<9}[/bold]"),
            *names,
            BarColumn(24),
            TextColumn("{task.percentage:>3.0f}%"),
            TextColumn("{task.fields[rate]}", markup=False),
            TimeRemainingColumn(compact=True),
            console=sink.err,
            transient=True,
        )
        self._task: TaskID = self._drawn.add_task("", total=first.total, file="", rate="")
        self._drawn.start()

    def draw(self, step: Progress) -> None:
        now = time.monotonic()
        if now - self._last < _REDRAWN:
            return
        self._last = now
        rate = f"{size(step.done / max(now - self._begun, 1e-9))}/s" if step.done else ""
        self._drawn.update(self._task, completed=step.done, total=step.total, file=step.what, rate=rate)

    def end(self) -> None:
        self._drawn.stop()
