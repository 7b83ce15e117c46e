"""Reads stretches of a file at once where their parts are read one by one."""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Sequence

from ckptconv.formats.open_file import read_at
from ckptconv.tensors.far import FarFile, Handle, size_of

_AT_ONCE = 16  # stretches of an object that are fetched together
_KEPT = 2  # stretches: an archive's two ends may be in two stretches


class Stretches:
    """An open file of which some stretches will be read in parts.

    Args:
        path: the file, for error messages.
        handle: the open file.
        stretches: (start, end) of each, ascending and apart. Reads go through them from front to back.
    """

    def __init__(self, path: str, handle: Handle, stretches: Sequence[tuple[int, int]]) -> None:
        self.nbytes = size_of(handle)
        self._path, self._handle, self._stretches = path, handle, stretches
        self._starts = [start for start, _ in stretches]
        self._read: dict[int, bytes] = {}
        if isinstance(handle, FarFile):
            handle.expect(stretches[:_AT_ONCE])

    def read(self, start: int, nbytes: int) -> bytes:
        """Read bytes; fewer at the end of the file. Raises as `read_at` does."""
        number = bisect_right(self._starts, start) - 1
        if number < 0 or start + nbytes > self._stretches[number][1]:
            return read_at(self._handle, nbytes, start, self._path)
        begin, end = self._stretches[number]
        if number not in self._read:
            while len(self._read) >= _KEPT:
                del self._read[min(self._read)]
            self._read[number] = read_at(self._handle, end - begin, begin, self._path)
        return self._read[number][start - begin : start - begin + nbytes]
