"""What was fetched of some objects and is kept for the next reads: few large requests in place of many small ones.

A read that finds nothing fetches more than it asked for: the end of a file at once, since archives have their directory
there, and twice as much each time when a file is read from front to back. A reader that knows what it will need says so
(`expect`), and these ranges are fetched by several threads at a time. Whatever was used longest ago goes first when the
budget is used up; a read that comes later fetches it again.
"""

from __future__ import annotations

import threading
from collections import OrderedDict
from collections.abc import Callable, Sequence
from concurrent.futures import Future
from functools import partial

from ckptconv.storage.base import Object
from ckptconv.storage.threads import Pool

BUDGET = 64 << 20  # bytes
LARGEST = 4 << 20  # bytes of one request
_LARGE = 1 << 20  # bytes; a segment of so many is of weights, which are read once
_MOST_AHEAD = 4 << 20  # bytes that a read from front to back fetches at a time
_AT_ONCE = 8  # requests of `expect` under way

Fetch = Callable[[Object, int, int], memoryview]


class _Segment:
    """Bytes [start, end) of an object, fetched or under way."""

    __slots__ = ("data", "end", "foreseen", "left", "start")

    def __init__(self, start: int, end: int, foreseen: bool) -> None:
        self.start, self.end, self.left, self.foreseen = start, end, end - start, foreseen
        self.data: Future[memoryview] = Future()


class Segments:
    """The fetched parts of all objects of one listing. Threads share it.

    Args:
        fetch: fetch(object, start, end) -> its bytes.
        least: see `Store`; also the bytes at the end of a file that are fetched together.

    Attributes:
        budget: bytes that are kept or under way.
    """

    def __init__(self, fetch: Fetch, least: int) -> None:
        self.budget = BUDGET
        self._fetch, self._least = fetch, least
        self._of: dict[str, list[_Segment]] = {}
        self._used: OrderedDict[tuple[str, int], _Segment] = OrderedDict()
        self._held = 0
        self._ahead: dict[str, tuple[int, int]] = {}  # key -> (where the last fetch ended, its size)
        self._lock = threading.Lock()
        self._pool = Pool(_AT_ONCE)

    def fill(self, item: Object, start: int, memory: memoryview) -> int:
        """Read into `memory`; see `FarFile.fill`."""
        end = min(start + len(memory), item.nbytes)
        at = start
        while at < end:
            segment, is_new = self._segment(item, at, end)
            if is_new:
                self._load(item, segment)
            data = segment.data.result()
            stop = min(end, segment.end)
            memory[at - start : stop - start] = data[at - segment.start : stop - segment.start]
            self._read(item.key, segment, stop - at)
            at = stop
        return max(0, end - start)

    def expect(self, item: Object, ranges: Sequence[tuple[int, int]]) -> None:
        """Begin to fetch ranges of an object; see `FarFile.expect`."""
        for start, end in ranges:
            at, end = start, min(end, item.nbytes)
            while at < end:
                with self._lock:
                    found = self._find(item.key, at)
                    if found is None:
                        stop = self._before_others(item.key, at, min(at + LARGEST, end))
                        segment = self._add(item, at, stop, foreseen=True)
                        self._pool.add(partial(self._load, item, segment))
                at = stop if found is None else found.end

    def _read(self, key: str, segment: _Segment, nbytes: int) -> None:
        """Note that bytes of a segment were read, and forget a foreseen one once all of it was."""
        with self._lock:
            segment.left -= nbytes
            if segment.left <= 0 and segment.end - segment.start >= _LARGE:
                self._drop(key, segment)

    def _load(self, item: Object, segment: _Segment) -> None:
        try:
            segment.data.set_result(self._fetch(item, segment.start, segment.end))
        except BaseException as error:
            with self._lock:
                self._drop(item.key, segment)
            segment.data.set_exception(error)

    def _segment(self, item: Object, at: int, end: int) -> tuple[_Segment, bool]:
        """The segment that holds the byte `at`, and whether the caller has to load it."""
        with self._lock:
            found = self._find(item.key, at)
            if found is not None:
                if not found.foreseen:
                    self._used.move_to_end((item.key, found.start))
                return found, False
            start, stop = self._extent(item, at, end)
            return self._add(item, start, stop), True

    def _extent(self, item: Object, at: int, end: int) -> tuple[int, int]:
        """What to fetch for a read of [at, end)."""
        tail = max(0, item.nbytes - self._least)
        if not self._least:
            start, stop = at, end
        elif at >= tail:
            start, stop = tail, item.nbytes
        else:
            last, size = self._ahead.get(item.key, (-1, 0))
            size = min(2 * size, _MOST_AHEAD) if last <= at <= last + size else self._least
            start, stop = at, min(max(at + size, end), at + LARGEST, item.nbytes)
            self._ahead[item.key] = stop, stop - start
        start = max([start, *(each.end for each in self._of.get(item.key, ()) if each.end <= at)])
        return start, self._before_others(item.key, at, stop)

    def _before_others(self, key: str, at: int, stop: int) -> int:
        """`stop`, or where the next segment after `at` begins if that is before."""
        return min([stop, *(each.start for each in self._of.get(key, ()) if each.start > at)])

    def _find(self, key: str, at: int) -> _Segment | None:
        return next((each for each in self._of.get(key, ()) if each.start <= at < each.end), None)

    def _add(self, item: Object, start: int, end: int, foreseen: bool = False) -> _Segment:
        segment = _Segment(start, end, foreseen)
        self._held += end - start
        if self._held > self.budget:
            self._make_room()
        self._of.setdefault(item.key, []).append(segment)
        self._used[item.key, start] = segment
        return segment

    def _make_room(self) -> None:
        """Drop what was used longest ago. What a reader foresaw goes last, in the order in which it will be read."""
        for foreseen in (False, True):
            for (key, _), segment in list(self._used.items()):
                if self._held <= self.budget:
                    return
                if segment.foreseen is foreseen:
                    self._drop(key, segment)

    def _drop(self, key: str, segment: _Segment) -> None:
        if self._used.pop((key, segment.start), None) is None:
            return
        self._held -= segment.end - segment.start
        self._of[key].remove(segment)
        if not self._of[key]:
            del self._of[key]
