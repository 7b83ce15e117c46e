"""Progress on a terminal: a line for each step, a bar for bytes. Threads report many times a second; ten are drawn."""

from __future__ import annotations

import time

from rich.progress import BarColumn, TaskID, TextColumn, TimeRemainingColumn
from rich.progress import Progress as RichProgress

from ckptconv.commands.progress import Phase, Progress
from ckptconv.show.sink import Sink
from ckptconv.show.units import size

_REDRAWN = 0.1  # seconds
_LINES: dict[Phase, str] = {
    "download": "Download",
    "hash": "Hashing",
    "run": "Running",
    "upload": "Pushing",
}
_BARS: dict[Phase, str] = {"write": "Writing", "check": "Checking", "read": "Checking"}


class ProgressShown:
    """What a command passes as `on_progress`. A bar is drawn on a terminal alone, and removed at the end of its phase."""

    def __init__(self, sink: Sink) -> None:
        self._sink = sink
        self._bar: _Bar | None = None

    def __call__(self, step: Progress) -> None:
        if step.phase in _LINES:
            self._end()
            text = f"{step.what} ({size(step.done)} of {size(step.total)})" if step.total else step.what
            self._sink.phase(_LINES[step.phase], text)
        elif self._sink.live:
            if self._bar is None or self._bar.phase != step.phase:
                self._end()
                self._bar = _Bar(self._sink, step)
            self._bar.draw(step)

    def __enter__(self) -> ProgressShown:
        return self

    def __exit__(self, *_: object) -> None:
        self._end()

    def _end(self) -> None:
        if self._bar is not None:
            self._bar.end()
            self._bar = None


class _Bar:
    """The bar of one phase. The rate counts from here on."""

    def __init__(self, sink: Sink, first: Progress) -> None:
        self.phase = first.phase
        names = [] if first.phase == "read" else [TextColumn("{task.fields[file]}", markup=False)]
        self._begun, self._last = time.monotonic(), 0.0
        self._drawn = RichProgress(
            TextColumn(f"[bold]{_BARS[first.phase]:<9}[/bold]"),
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
