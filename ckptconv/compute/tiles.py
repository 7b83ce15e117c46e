"""A tensor cut into blocks of a few megabytes, and what fills them one after another."""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple

from ckptconv.compute.block import Block
from ckptconv.compute.sources import Source
from ckptconv.read.reader import Array, Reader
from ckptconv.tensors.dtypes import itemsize


class Tile(NamedTuple):
    """Elements low..high-1 of a tensor in C order; number: which of its tiles, from 0."""

    number: int
    low: int
    high: int


def tiles_of(numel: int, dtype: str, nbytes: int) -> Iterator[Tile]:
    """Tiles of at most `nbytes` bytes in `dtype`. A tensor of no elements has one tile of none."""
    step = nbytes // itemsize(dtype)
    for number, low in enumerate(range(0, max(numel, 1), step)):
        yield Tile(number, low, min(low + step, numel))


class Filler:
    """Fills tiles of tensors, and keeps a tensor's tables until another one's turn comes. One per thread and side.

    Args:
        reader: reads the stored elements.
        scratch: bytes of memory for stored elements on their way; fillers of one thread may share it.
    """

    def __init__(self, reader: Reader, scratch: Array) -> None:
        self._reader, self._scratch = reader, scratch
        self._source: Source | None = None
        self._dtype = ""
        self._block: Block | None = None

    def fill(self, source: Source, dtype: str, low: int, high: int, out: Array) -> None:
        """Elements low..high-1 of a tensor into `out` (bytes), in `dtype`. Raises CkptconvError as `Block.fill` does."""
        if self._block is None or source is not self._source or dtype != self._dtype:
            self._block = None  # its tables go before the next ones are made
            self._source, self._dtype, self._block = source, dtype, Block(source, dtype)
        self._block.fill(self._reader, low, high, out, self._scratch)
