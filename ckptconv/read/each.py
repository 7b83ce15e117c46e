"""Does every task once, on a few threads that each have their own Reader."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from typing import TypeVar

from ckptconv.read import workers as threads
from ckptconv.read.reader import Reader

T = TypeVar("T")


def for_each_reader(tasks: Iterable[T], start: Callable[[Reader], Callable[[T], None]], workers: int) -> None:
    """Do every task once, each on one of several threads.

    Args:
        tasks: the tasks; threads take them in order.
        start: called once per thread with the thread's Reader. It allocates the thread's buffers, and returns the function
            that does one task.
        workers: the number of threads.

    Raises:
        BaseException: as `workers.for_each` does.
    """

    @contextmanager
    def worker() -> Iterator[Callable[[T], None]]:
        with Reader() as reader:
            yield start(reader)

    threads.for_each(tasks, worker, workers)
