"""Cuts a tensor into tiles of a few megabytes, and fills them one after another."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING, NamedTuple

from ckptconv.compute.block import Block
from ckptconv.read.reader import Array, Reader
from ckptconv.tensors.dtypes import itemsize

if TYPE_CHECKING:
    from ckptconv.compute.sources import Source


class Tile(NamedTuple):
    """The elements low..high-1 of a tensor in C order. `number` counts the tensor's tiles from 0."""

    number: int
    low: int
    high: int


def tiles_of(numel: int, dtype: str, nbytes: int) -> Iterator[Tile]:
    """Cut a tensor into tiles.

    Args:
        numel: the number of elements. A tensor without elements has one empty tile.
        dtype: the output dtype.
        nbytes: the largest size of a tile in the output dtype, in bytes.
    """
    step = nbytes // itemsize(dtype)
    for number, low in enumerate(range(0, max(numel, 1), step)):
        yield Tile(number, low, min(low + step, numel))


class Filler:
    """Fills tiles of tensors, and keeps the tables of a tensor until it is asked for another one.

    Each thread has its own, or two for a comparison of two sides.

    Args:
        reader: reads the stored elements.
        scratch: bytes of memory for stored elements before they are cast; fillers of one thread may share it.
    """

    def __init__(self, reader: Reader, scratch: Array) -> None:
        self._reader, self._scratch = reader, scratch
        self._source: Source | None = None
        self._dtype = ""
        self._block: Block | None = None

    def fill(self, source: Source, dtype: str, low: int, high: int, out: Array) -> None:
        """Compute the elements low..high-1 of a tensor.

        Args:
            source: what fills the tensor.
            dtype: the output dtype.
            low: the first element, in C order.
            high: one past the last element.
            out: the bytes to fill, (high - low) * itemsize.

        Raises:
            CkptconvError: as `Block.fill` does.
        """
        if self._block is None or source is not self._source or dtype != self._dtype:
            self._block = None  # this frees its tables before the next ones are built
            self._source, self._dtype, self._block = source, dtype, Block(source, dtype)
        self._block.fill(self._reader, low, high, out, self._scratch)
