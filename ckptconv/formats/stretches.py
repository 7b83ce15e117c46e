"""Reads stretches of a file at once where their parts are read one by one."""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Sequence

from ckptconv.tensors.storage import FarFile, Ranges

_AT_ONCE = 16  # stretches of an object that are fetched together
_KEPT = 2  # stretches: an archive's two ends may be in two stretches


class Stretches:
    """An open file of which some stretches will be read in parts. It is a `Ranges`.

    Args:
        handle: the open file.
        stretches: (start, end) of each, ascending and apart. Reads go through them from front to back.
    """

    def __init__(self, handle: Ranges, stretches: Sequence[tuple[int, int]]) -> None:
        self.nbytes = handle.nbytes
        self._handle, self._stretches = handle, stretches
        self._starts = [start for start, _ in stretches]
        self._read: dict[int, bytes] = {}
        if isinstance(handle, FarFile):
            handle.expect(stretches[:_AT_ONCE])

    def read(self, start: int, nbytes: int) -> bytes:
        """Read bytes; fewer at the end of the file. Raises as `OpenFile.fill` does."""
        number = bisect_right(self._starts, start) - 1
        if number < 0 or start + nbytes > self._stretches[number][1]:
            return self._handle.read(start, nbytes)
        begin, end = self._stretches[number]
        if number not in self._read:
            while len(self._read) >= _KEPT:
                del self._read[min(self._read)]
            self._read[number] = self._handle.read(begin, end - begin)
        return self._read[number][start - begin : start - begin + nbytes]
