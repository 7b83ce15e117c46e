"""The parts of pages at the ends of blocks, gathered until a page is whole.

A write past the page cache is in whole pages. What is left over at a block's two ends would each be a small write of its
own, and each would wait for the large ones that are under way: half of the time of a merge. Here they wait in memory, a
page for every block or so, and are written together.
"""

from __future__ import annotations

import threading
from collections.abc import Callable

PAGE = 4096
_MOST = 2048  # pages, 8 MiB: as much as a worker's buffers


class Pages:
    """Pieces of one file, from several threads. write(data, offset) puts whole pages into the file."""

    def __init__(self, write: Callable[[memoryview, int], None]) -> None:
        self._write = write
        self._lock = threading.Lock()
        self._pages: dict[int, bytearray] = {}
        self._missing: dict[int, int] = {}  # bytes of a page that have not come yet

    def add(self, data: memoryview, offset: int) -> None:
        """Keep a piece of any length; no byte of the file comes twice. Writes what is whole when there is much."""
        with self._lock:
            while data:
                number, begin = divmod(offset, PAGE)
                piece = data[: PAGE - begin]
                page = self._pages.setdefault(number, bytearray(PAGE))
                page[begin : begin + len(piece)] = piece
                self._missing[number] = self._missing.get(number, PAGE) - len(piece)
                data, offset = data[len(piece) :], offset + len(piece)
            if len(self._pages) > _MOST:
                self._flush([number for number, missing in self._missing.items() if not missing])

    def finish(self, nbytes: int) -> None:
        """Write everything that is left. nbytes: of the whole file, whose last page may be a part of one."""
        with self._lock:
            last = nbytes // PAGE
            if last in self._pages:
                del self._pages[last][nbytes % PAGE :]
            self._flush(list(self._pages))

    def _flush(self, numbers: list[int]) -> None:
        """Write these pages, neighbours together, and let go of them."""
        run, begin = bytearray(), 0
        for number in sorted(numbers):
            if number * PAGE != begin + len(run):
                self._put(run, begin)
                run, begin = bytearray(), number * PAGE
            run += self._pages.pop(number)
            del self._missing[number]
        self._put(run, begin)

    def _put(self, run: bytearray, offset: int) -> None:
        if run:
            self._write(memoryview(run), offset)
