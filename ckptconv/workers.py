"""A few threads over one list of tasks: reading, hashing and numpy all run outside Python's lock."""

from __future__ import annotations

import os
import threading
from collections.abc import Callable, Iterable
from contextlib import AbstractContextManager
from typing import TypeVar

T = TypeVar("T")

_MOST = 16


def count(wanted: int | None = None) -> int:
    """How many threads to use: as many as asked for, else one a core, never more than 16."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return max(1, wanted or min(cores, _MOST))


def for_each(
    tasks: Iterable[T], open_worker: Callable[[], AbstractContextManager[Callable[[T], None]]], workers: int
) -> None:
    """Do every task once. Each thread enters its own `open_worker()`, which holds its buffers and files.

    The first error stops all threads and is raised here. KeyboardInterrupt passes through once they have
    stopped.
    """
    todo, lock, stop = iter(tasks), threading.Lock(), threading.Event()
    errors: list[BaseException] = []

    def work() -> None:
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

    threads = [threading.Thread(target=work, daemon=True) for _ in range(workers)]
    try:
        for thread in threads:
            thread.start()
        for thread in threads:
            while thread.is_alive():
                thread.join(0.2)  # a join without a timeout cannot be interrupted
    finally:
        stop.set()
        for thread in threads:
            if thread.ident is not None:
                thread.join()
    if errors:
        raise errors[0]
