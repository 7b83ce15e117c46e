"""Runs a list of tasks on a few threads. Reading, hashing and numpy release the GIL, so threads are enough."""

from __future__ import annotations

import contextlib
import mmap
import os
import signal
import threading
from collections.abc import Callable, Iterable, Iterator
from contextlib import AbstractContextManager
from typing import TypeVar

T = TypeVar("T")

_MOST = 16
_ROOM = 16 << 20  # bytes of address space for one thread: twice the usual stack
_STOPS = {
    signal.SIGINT,
    signal.SIGTERM,
    signal.SIGALRM,
}  # SIGALRM: `__main__` asks for one of the others again


def count(wanted: int | None = None) -> int:
    """The number of threads to use: the wanted number if one is given, else at most 16, one per core and one more.

    The one more keeps the cores busy while a thread waits for the disk.
    """
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return max(1, wanted or min(cores + 1, _MOST))


def for_each(
    tasks: Iterable[T], open_worker: Callable[[], AbstractContextManager[Callable[[T], None]]], workers: int
) -> None:
    """Do every task once, each on one of several threads.

    Args:
        tasks: the tasks; threads take them in order.
        open_worker: each thread enters its own; it owns the thread's buffers and files, and yields the function that does
            one task.
        workers: the number of threads.

    Raises:
        BaseException: the first error of a thread, once all threads have stopped. KeyboardInterrupt is raised then too.
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

    # We wait for events, not with Thread.join: up to Python 3.12 a join that Ctrl-C interrupts marks the thread as ended.
    started: list[threading.Event] = []
    _require_room(workers)
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


def _require_room(threads: int) -> None:
    """Check that so many threads find the address space to begin.

    Thread.start waits for ever for a thread that ends with a MemoryError before it is counted as started.

    Raises:
        MemoryError: `ulimit -v`, or a container, leaves less.
    """
    try:
        mmap.mmap(-1, threads * _ROOM).close()
    except OSError as error:
        raise MemoryError(f"no address space for {threads} threads") from error


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
