"""Does one thing for many files, in order: where it waits for a slow disk, for several files at a time.

Most checkpoints lie in the page cache or on a disk that answers within microseconds, and threads would only take time. So
the first file tells how long one takes.
"""

from __future__ import annotations

import queue
import threading
import time
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from typing import Generic, TypeVar

S = TypeVar("S")
T = TypeVar("T")

_THREADS = 16
_AHEAD = 2 * _THREADS  # results that wait for their turn, at most
_SLOW = 0.001  # seconds that one file waits


def in_order(do: Callable[[S], T], files: Sequence[S]) -> Iterator[T]:
    """Yield do(file) for every file, in their order.

    Args:
        do: reads a file; several threads may call it at a time.
        files: the files.

    Raises:
        Exception: what `do` raises for a file, once its turn has come. No further file is begun then.
    """
    left = iter(files)
    for file in left:
        begun, used = time.perf_counter(), time.thread_time()
        done = do(file)
        waited = time.perf_counter() - begun - (time.thread_time() - used)
        yield done
        if waited > _SLOW:
            yield from _by_threads(do, left)


class _Task(Generic[S, T]):
    """One file that a thread will read, and what came of it."""

    def __init__(self, file: S) -> None:
        self.is_wanted = True
        self._file, self._done = file, threading.Event()
        self._result: T
        self._error: BaseException | None = None

    def run(self, do: Callable[[S], T]) -> None:
        try:
            self._result = do(self._file)
        except BaseException as error:
            self._error = error
        self._done.set()

    def result(self) -> T:
        self._done.wait()
        if self._error is not None:
            raise self._error
        return self._result


def _by_threads(do: Callable[[S], T], left: Iterator[S]) -> Iterator[T]:
    todo: queue.SimpleQueue[_Task[S, T] | None] = queue.SimpleQueue()
    under_way: deque[_Task[S, T]] = deque()
    started = 0
    try:
        for file in left:
            if started < _THREADS:
                # A daemon: Ctrl-C does not wait for a disk that answers late.
                threading.Thread(target=_work, args=(do, todo), name="open", daemon=True).start()
                started += 1
            under_way.append(_Task(file))
            todo.put(under_way[-1])
            if len(under_way) == _AHEAD:
                yield under_way.popleft().result()
        while under_way:
            yield under_way.popleft().result()
    finally:
        for task in under_way:
            task.is_wanted = False
        for _ in range(started):
            todo.put(None)


def _work(do: Callable[[S], T], todo: queue.SimpleQueue[_Task[S, T] | None]) -> None:
    while (task := todo.get()) is not None:
        if task.is_wanted:
            task.run(do)
