"""Threads that wait for a store. They are daemons: a stop does not wait for a server that does not answer."""

from __future__ import annotations

import queue
import threading
from collections.abc import Callable
from typing import TypeVar

T = TypeVar("T")
Work = Callable[[], None]


class Pool:
    """Runs functions on a few threads, which start with the first function and end with the pool.

    Args:
        count: the number of threads.
    """

    def __init__(self, count: int) -> None:
        self._count, self._started = count, 0
        self._todo: queue.SimpleQueue[Work | None] = queue.SimpleQueue()

    def add(self, work: Work) -> None:
        """Run a function, which must not raise, when a thread is free. Callers hold a lock."""
        if self._started < self._count:
            self._started += 1
            threading.Thread(target=_run, args=(self._todo,), name="fetch", daemon=True).start()
        self._todo.put(work)

    def __del__(self) -> None:
        for _ in range(self._started):
            self._todo.put(None)


def _run(todo: queue.SimpleQueue[Work | None]) -> None:
    while (work := todo.get()) is not None:
        work()
        del work  # it may hold the pool


def interruptible(step: Callable[[], T]) -> T:
    """What a step returns or raises. In the main thread it runs on another one, so that Ctrl-C is heard meanwhile."""
    if threading.current_thread() is not threading.main_thread():
        return step()
    done = threading.Event()
    results: list[T] = []
    errors: list[BaseException] = []

    def run() -> None:
        try:
            results.append(step())
        except BaseException as error:
            errors.append(error)
        finally:
            done.set()

    threading.Thread(target=run, name="ask", daemon=True).start()
    while not done.wait(0.2):  # a wait without a timeout cannot be interrupted
        pass
    if errors:
        raise errors[0]
    return results[0]
