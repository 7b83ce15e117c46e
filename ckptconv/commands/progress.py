"""How far a call is: the one record that merge, verify and push report while they run, and what counts the bytes for it."""

from __future__ import annotations

import threading
from collections.abc import Callable
from functools import partial
from typing import Literal, NamedTuple

Phase = Literal["download", "hash", "write", "check", "read", "load", "run", "upload"]


class Progress(NamedTuple):
    """How far a call is. `merge`, `verify` and `push` hand one to `on_progress` whenever something has moved.

    Calls come from worker threads, one at a time. An exception that is raised in one stops the work.

    Args:
        phase: what is being done. "download": files of a repository are downloaded. "hash": a source is compared with
            the hashes of its receipt. "write": tensors are written. "check": what was written is read again.
            "read": `verify` reads values. "load": torch and transformers are imported. "run": `verify` runs the model.
            "upload": `push` checks and sends a folder.
        done: bytes so far in this phase; a phase that is counted in bytes begins with 0.
        total: bytes of the whole phase; None where they are not known. It grows where more has to be read.
        what: the file that the bytes belong to, or a sentence where the phase is not counted in bytes.

    Example:
        >>> def show(step: ckptconv.Progress) -> None:
        ...     print(step.phase, step.done, step.total, step.what)
        >>> merged = ckptconv.merge("checkpoints/run", "model", on_progress=show)
    """

    phase: Phase
    done: int = 0
    total: int | None = None
    what: str = ""


OnProgress = Callable[[Progress], None]


def teller(on_progress: OnProgress | None, phase: Phase) -> Callable[[str], None]:
    """What reports a sentence about a phase that is not counted in bytes."""
    return partial(_tell, on_progress, phase)


def _tell(on_progress: OnProgress | None, phase: Phase, what: str) -> None:
    if on_progress is not None:
        on_progress(Progress(phase, what=what))


class Meter:
    """Counts the bytes of one phase, from any thread, and reports each change."""

    def __init__(self, on_progress: OnProgress | None, phase: Phase, total: int) -> None:
        self.done = 0
        self._on_progress, self._phase, self._total = on_progress, phase, total
        self._lock = threading.Lock()
        self.add(0)

    def add(self, nbytes: int, file: str = "") -> None:
        """Report that so many more bytes, of `file`, are done."""
        with self._lock:
            self.done += nbytes
            if self._on_progress is not None:
                total = max(self._total, self.done)
                self._on_progress(Progress(self._phase, self.done, total, file))
