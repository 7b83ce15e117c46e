"""Gathers the parts of pages at the ends of blocks until a page is complete.

A write past the page cache consists of whole pages. The rests at the two ends of each block would be small writes that wait
for the large ones in flight, which cost half of the time of a merge. So they wait in memory, about one page per block, and
are written together.
"""

from __future__ import annotations

import threading
from collections.abc import Callable

PAGE = 4096
_MOST = 2048  # pages (8 MiB), about as much as the buffers of a worker


class Pages:
    """Gathers pieces of one file from several threads.

    Args:
        write: write(data, offset) writes pages to the file.
    """

    def __init__(self, write: Callable[[memoryview, int], None]) -> None:
        self._write = write
        self._lock = threading.Lock()
        self._pages: dict[int, bytearray] = {}
        self._missing: dict[int, int] = {}  # page number -> bytes of it that are still missing

    def add(self, data: memoryview, offset: int) -> None:
        """Keep a piece of any length; each byte of the file is added once. Complete pages are written once many wait."""
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
        """Write all pages that are left. `nbytes` is the size of the file, whose last page may be shorter."""
        with self._lock:
            last = nbytes // PAGE
            if last in self._pages:
                del self._pages[last][nbytes % PAGE :]
            self._flush(list(self._pages))

    def _flush(self, numbers: list[int]) -> None:
        """Write and forget these pages; adjacent ones go in one write."""
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
