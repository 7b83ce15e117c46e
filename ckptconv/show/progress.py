"""Progress on a terminal: a line for each step, a bar for bytes. Threads report many times a second; ten are drawn."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING

from ckptconv.commands.progress import Phase, Progress
from ckptconv.show.sink import Sink
from ckptconv.show.units import seconds, size

if TYPE_CHECKING:  # rich.progress takes 5 ms to import, which a run without a terminal is spared
    from ckptconv.show.bars import Bar, Spinner

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
        self._bar: Bar | Spinner | None = None
        self._begun, self._phase, self._logged = 0.0, "", 0.0
        self.writes = ""  # what a merge writes, for the line that begins it in a log

    def __call__(self, step: Progress) -> None:
        if step.phase == "load" and self._sink.live:
            from ckptconv.show.bars import Spinner

            self._end()
            self._bar = Spinner(self._sink, step)
        elif step.phase in _LINES:
            self._end()
            text = f"{step.what} ({size(step.done)} of {size(step.total)})" if step.total else step.what
            self._sink.phase(_LINES[step.phase], text)
        elif self._sink.live:
            self._draw(step)
        else:
            self._log(step)

    def _draw(self, step: Progress) -> None:
        from ckptconv.show.bars import Bar

        if not isinstance(self._bar, Bar) or self._bar.phase != step.phase:
            self._end()
            self._bar = Bar(self._sink, step, _BARS[step.phase])
        self._bar.draw(step)

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
