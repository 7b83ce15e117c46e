"""A bar of bytes on a terminal; elsewhere nothing. Threads report many times a second, it is redrawn ten times a second."""

from __future__ import annotations

import threading
import time

from rich.progress import BarColumn, Progress, TaskID, TextColumn, TimeRemainingColumn

from ckptconv.show.sink import Sink
from ckptconv.show.units import size

_REDRAWN = 0.1  # seconds


class Bar:
    """One bar for one phase. It appears with `begin`, or with the first bytes; after `end` it is not drawn again.

    word: of the phase. names: whether the file is shown that the bytes belong to. The rate counts from here on.
    """

    def __init__(self, sink: Sink, word: str, names: bool = False) -> None:
        self._sink, self._word, self._names = sink, word, names
        self._silent = not sink.live
        self._lock = threading.Lock()
        self._begun, self._last, self._done = time.monotonic(), 0.0, 0
        self._progress: Progress | None = None
        self._task = TaskID(0)

    def begin(self, total: int | None) -> None:
        if self._silent:
            return
        names = [TextColumn("{task.fields[file]}", markup=False)] if self._names else []
        self._progress = Progress(
            TextColumn(f"[bold]{self._word:<9}[/bold]"),
            *names,
            BarColumn(24),
            TextColumn("{task.percentage:>3.0f}%"),
            TextColumn("{task.fields[rate]}", markup=False),
            TimeRemainingColumn(compact=True),
            console=self._sink.err,
            transient=True,
        )
        self._task = self._progress.add_task("", total=total, file="", rate="")
        self._progress.start()

    def add(self, nbytes: int, file: str) -> None:
        """Add bytes that were just processed."""
        with self._lock:
            self._draw(self._done + nbytes, None, file)

    def at(self, done: int, total: int) -> None:
        """Set the number of bytes processed so far, of `total`."""
        with self._lock:
            self._draw(done, total, "")

    def end(self) -> None:
        self._silent = True
        if self._progress is not None:
            self._progress.stop()
            self._progress = None

    def _draw(self, done: int, total: int | None, file: str) -> None:
        self._done = done
        now = time.monotonic()
        if self._silent or now - self._last < _REDRAWN:
            return
        self._last = now
        if self._progress is None:
            self.begin(total)
        if self._progress is not None:
            rate = f"{size(done / max(now - self._begun, 1e-9))}/s"
            self._progress.update(self._task, completed=done, total=total, file=file, rate=rate)
