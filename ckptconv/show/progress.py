"""Progress on a terminal: a line for each step, a bar for bytes. Threads report many times a second; ten are drawn."""

from __future__ import annotations

import time

from rich.markup import escape
from rich.progress import BarColumn, TaskID, TextColumn, TimeRemainingColumn
from rich.progress import Progress as RichProgress

from ckptconv.commands.progress import Phase, Progress
from ckptconv.show.sink import Sink
from ckptconv.show.units import seconds, size

_REDRAWN = 0.1  # seconds
_LOGGED = 30.0  # seconds between two lines of a log that is no terminal
_LINES: dict[Phase, str] = {
    "download": "Download",
    "hash": "Hashing",
    "load": "Loading",
    "run": "Running",
    "upload": "Pushing",
}
_BARS: dict[Phase, str] = {"write": "Writing", "check": "Checking", "read": "Checking"}


class ProgressShown:
    """What a command passes as `on_progress`. A bar is drawn on a terminal alone, and removed at the end of its phase."""

    def __init__(self, sink: Sink) -> None:
        self._sink = sink
        self._bar: _Bar | _Spinner | None = None
        self._begun, self._phase, self._logged = 0.0, "", 0.0
        self.writes = ""  # what a merge writes, for the line that begins it in a log

    def __call__(self, step: Progress) -> None:
        if step.phase == "load" and self._sink.live:
            self._end()
            self._bar = _Spinner(self._sink, step)
        elif step.phase in _LINES:
            self._end()
            text = f"{step.what} ({size(step.done)} of {size(step.total)})" if step.total else step.what
            self._sink.phase(_LINES[step.phase], text)
        elif self._sink.live:
            if not isinstance(self._bar, _Bar) or self._bar.phase != step.phase:
                self._end()
                self._bar = _Bar(self._sink, step)
            self._bar.draw(step)
        else:
            self._log(step)

    def _log(self, step: Progress) -> None:
        """A line each half a minute, so that whoever reads a batch job's log sees that it goes on."""
        now = time.monotonic()
        if step.phase != self._phase or not step.done:  # each step of a run begins with 0
            self._begun, self._phase, self._logged = now, step.phase, now
            if step.phase == "write" and self.writes:
                self._sink.phase(_BARS["write"], self.writes)
        if now - self._logged < _LOGGED or not step.total:
            return
        self._logged = now
        rate = step.done / max(now - self._begun, 1e-9)
        left = f", {seconds((step.total - step.done) / rate)} left" if rate else ""
        parts = f"{step.done / step.total:.0%}  {size(step.done)} of {size(step.total)}  {size(rate)}/s{left}"
        self._sink.phase(_BARS[step.phase], f"{parts}  {step.what}".rstrip())

    def __enter__(self) -> ProgressShown:
        return self

    def __exit__(self, *_: object) -> None:
        self._end()

    def _end(self) -> None:
        if self._bar is not None:
            self._bar.end()
            self._bar = None


class _Spinner:
    """Something that moves while torch and transformers are imported, which takes seconds."""

    def __init__(self, sink: Sink, step: Progress) -> None:
        self._status = sink.err.status(f"Loading   {escape(step.what)}")
        self._status.start()

    def end(self) -> None:
        self._status.stop()


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
