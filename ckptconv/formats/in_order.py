"""Does one thing for many files, in order: where it waits for a slow disk, for several files at a time.

Most checkpoints lie in the page cache or on a disk that answers within microseconds, and threads would only take time. So
the first file tells how long one takes.
"""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from typing import TYPE_CHECKING, TypeVar

if TYPE_CHECKING:
    from concurrent.futures import Future, ThreadPoolExecutor

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


def _by_threads(do: Callable[[S], T], left: Iterator[S]) -> Iterator[T]:
    from concurrent.futures import ThreadPoolExecutor  # imports logging; a fast disk does not need it

    pool: ThreadPoolExecutor | None = None
    under_way: deque[Future[T]] = deque()
    try:
        for file in left:
            pool = pool or ThreadPoolExecutor(_THREADS, thread_name_prefix="open")
            under_way.append(pool.submit(do, file))
            if len(under_way) == _AHEAD:
                yield under_way.popleft().result()
        while under_way:
            yield under_way.popleft().result()
    finally:
        if pool is not None:
            pool.shutdown(wait=False, cancel_futures=True)
