"""A few threads over one list of tasks: reading, hashing and numpy all run outside Python's lock."""

from __future__ import annotations

import contextlib
import os
import signal
import threading
from collections.abc import Callable, Iterable, Iterator
from contextlib import AbstractContextManager
from typing import TypeVar

T = TypeVar("T")

_MOST = 16
_STOPS = {signal.SIGINT, signal.SIGTERM}


def count(wanted: int | None = None) -> int:
    """How many threads to use: as many as asked for, else one a core and one more, since one waits for the disk; never
    more than 16 by itself."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return max(1, wanted or min(cores + 1, _MOST))


def for_each(
    tasks: Iterable[T], open_worker: Callable[[], AbstractContextManager[Callable[[T], None]]], workers: int
) -> None:
    """Do every task once. Each thread enters its own `open_worker()`, which holds its buffers and files.

    The first error stops all threads and is raised here. KeyboardInterrupt passes through once they have
    stopped.
    """
    todo, lock, stop = iter(tasks), threading.Lock(), threading.Event()
    errors: list[BaseException] = []

    def work(ended: threading.Event) -> None:
        try:
            with open_worker() as do:
                while not stop.is_set():
                    with lock:
                        task = next(todo, stop)
                    if task is stop:
                        return
                    do(task)  # type: ignore[arg-type]
        except BaseException as error:
            errors.append(error)
            stop.set()
        finally:
            ended.set()

    # Events, not Thread.join: up to Python 3.12 a join that Ctrl-C interrupts takes the running thread for ended.
    started: list[threading.Event] = []
    try:
        with _held(_STOPS):
            for _ in range(workers):
                ended = threading.Event()
                threading.Thread(target=work, args=(ended,), daemon=True).start()
                started.append(ended)
        for ended in started:
            while not ended.wait(0.2):  # a wait without a timeout cannot be interrupted
                pass
    finally:
        stop.set()
        _wait_for(started)
    if errors:
        raise errors[0]


@contextlib.contextmanager
def _held(signals: set[signal.Signals]) -> Iterator[None]:
    """Block these signals while threads start, so that Ctrl-C cannot land between a start and recording the thread.

    The threads inherit the mask, so only the main thread ever gets these signals.
    """
    before = signal.pthread_sigmask(signal.SIG_BLOCK, signals)
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


def _wait_for(started: list[threading.Event]) -> None:
    """Wait for threads that were asked to stop; a second Ctrl-C must not close the files that they still use."""
    for ended in started:
        while not ended.is_set():
            with contextlib.suppress(KeyboardInterrupt):
                ended.wait(0.2)
