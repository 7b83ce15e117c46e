"""Computes one tensor in its output dtype, a block at a time."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from ckptconv.errors import CkptconvError, Kind
from ckptconv.read.gather import Cast
from ckptconv.read.reader import CAST_BLOCK, Array, Prepared, Reader, prepare, raw_dtype
from ckptconv.tensors.dtypes import to_numpy
from ckptconv.tensors.view import View

if TYPE_CHECKING:  # many records, which most merges do not need
    from ckptconv.compute.rows import Rows
    from ckptconv.compute.sources import Source

__all__ = ["CAST_BLOCK", "Block"]


class Block:
    """Fills blocks of one tensor: it reads, combines and casts.

    Args:
        source: what fills the tensor.
        dtype: the output dtype.
    """

    def __init__(self, source: Source, dtype: str) -> None:
        base = source if isinstance(source, View) else source.base
        self._base: Prepared = prepare(base)
        self._raw, self._from, self._to = raw_dtype(base.dtype), to_numpy(base.dtype), to_numpy(dtype)
        self._rows: Rows | None = None
        if not isinstance(source, View):
            from ckptconv.compute.rows import rows_of

            self._rows = rows_of(source, self._base)
        self._copies = self._rows is None and base.dtype == dtype
        self._narrow = dtype == "float16" and base.dtype != "float16"  # only float16 has a smaller range

    def fill(self, reader: Reader, low: int, high: int, out: Array, scratch: Array) -> None:
        """Compute the elements low..high-1.

        Args:
            reader: reads the stored elements.
            low: the first element, in C order.
            high: one past the last element.
            out: the bytes to fill, (high - low) * itemsize.
            scratch: bytes of memory, at least 8 * CAST_BLOCK; a larger one makes the reads of strided views longer.

        Raises:
            CkptconvError: a file cannot be read, or the output dtype cannot hold a value.
        """
        target = out.view(self._to)
        if self._copies:
            reader.interval(self._base, low, high, target.view(self._raw))
            return
        if self._rows is None:
            reader.interval(self._base, low, high, target, Cast(self._from, self._put))
            return
        # Runs are read in pieces that stay in cache. A strided view is read in pieces as large as `scratch`, to keep the
        # reads long.
        step = len(scratch) // self._raw.itemsize if self._base.boxes else CAST_BLOCK
        for at in range(low, high, step):
            end = min(at + step, high)
            stored = scratch[: (end - at) * self._raw.itemsize].view(self._raw)
            reader.interval(self._base, at, end, stored)
            values = stored.view(self._from)
            for begin, stop in self._rows.pieces(at, end):
                part = self._rows.combined(reader, begin, stop, values[begin - at : stop - at])
                self._put(part, target[begin - low : stop - low])

    def _put(self, values: Array, part: Array) -> None:
        with np.errstate(over="ignore", invalid="ignore"):
            np.copyto(part, values, casting="unsafe")
        if self._narrow and np.isinf(part).any() and not np.isinf(values).any():
            raise CkptconvError(
                f"values do not fit in {self._to}: the largest is {np.nanmax(np.abs(values)):.3g}",
                hint="--dtype bfloat16 has the range of float32",
                kind=Kind.USAGE,
            )
