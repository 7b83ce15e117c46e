"""Computes the values of a tensor in float32, a few rows at a time."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from ckptconv.compute.dequantise import plain_values
from ckptconv.compute.sources import (
    Added,
    Computed,
    Decomposed,
    Dequantised,
    Fuse,
    Rewritten,
    Scaled,
    Shift,
    Summed,
)
from ckptconv.read.reader import CAST_BLOCK, Array, Prepared, Reader, prepare, raw_dtype, read_numpy
from ckptconv.tensors.dtypes import to_numpy
from ckptconv.tensors.view import View, select

if TYPE_CHECKING:
    from ckptconv.compute.sources import Floats


def rows_of(source: Computed, base: Prepared) -> Rows:
    """The object that computes a source, whose base is prepared for reading as `base`."""
    if isinstance(source, Dequantised):
        return PlainRows(source)
    if isinstance(source, Rewritten):
        return RewrittenRows(source)
    if isinstance(source, Shift):
        return ShiftedRows(source)
    if isinstance(source, Scaled):
        return ScaledRows(source)
    if isinstance(source, Added):
        return AddedRows(source)
    if isinstance(source, Summed):
        return SummedRows(source)
    if isinstance(source, Decomposed):
        return DecomposedRows(source, base)
    assert isinstance(source, Fuse)
    return FusedRows(source, base)


class Rows:
    """A tensor as rows of `width` elements in C order, and an update that is added to them. Each thread has its own."""

    def __init__(self, source: Computed, width: int) -> None:
        self.width, self.count = width, source.base.numel // width if width else 0
        self.plain = plain_values(source)

    def blocks(self, first: int, last: int) -> list[tuple[int, int]]:
        """The rows first..last-1 in blocks that stay in cache, as [first, last) each."""
        step = max(CAST_BLOCK // self.width, 1)
        return [(row, min(row + step, last)) for row in range(first, last, step)]

    def pieces(self, low: int, high: int) -> list[tuple[int, int]]:
        """The elements low..high-1 in pieces that stay in cache, cut between rows, as [low, high) each."""
        rows = self.blocks(low // self.width, -(-high // self.width))
        return [(max(first * self.width, low), min(last * self.width, high)) for first, last in rows]

    def combined(self, reader: Reader, low: int, high: int, values: Array) -> Array:
        """The new values of the elements low..high-1.

        Args:
            reader: reads what is added.
            low: the first element, in C order.
            high: one past the last element.
            values: the stored elements of the base at these positions.
        """
        first, last = low // self.width, -(-high // self.width)
        part = self.update(reader, first, last)[low - first * self.width : high - first * self.width]
        part += self.plain(reader, low, values)
        return part

    def update(self, reader: Reader, first: int, last: int) -> Floats:
        """The values that are added to the rows first..last-1, flattened."""
        raise NotImplementedError


class PlainRows(Rows):
    """The base alone: nothing is added."""

    def __init__(self, source: Dequantised) -> None:
        super().__init__(source, source.shape[-1] if source.shape else 1)

    def combined(self, reader: Reader, low: int, high: int, values: Array) -> Array:
        return self.plain(reader, low, values)


class RewrittenRows(Rows):
    """The base with some rows replaced by those of another tensor."""

    def __init__(self, source: Rewritten) -> None:
        super().__init__(source, source.shape[-1])
        self._order = np.argsort(np.array(source.indices))  # sorts the new rows by their index in base
        self._indices, self._rows = np.array(source.indices)[self._order], _Other(source.rows)

    def combined(self, reader: Reader, low: int, high: int, values: Array) -> Array:
        part: Floats = self.plain(reader, low, values)
        first, last = np.searchsorted(self._indices, (low // self.width, -(-high // self.width)))
        for number in range(first, last):
            begin = int(self._indices[number]) * self.width
            start, stop = max(begin, low), min(begin + self.width, high)
            at = int(self._order[number]) * self.width - begin
            part[start - low : stop - low] = self._rows.read(reader, at + start, at + stop)
        return part


class ShiftedRows(Rows):
    """The base plus a number, which is added to every element."""

    def __init__(self, source: Shift) -> None:
        super().__init__(source, 1)
        self._added = source.added

    def update(self, reader: Reader, first: int, last: int) -> Floats:
        return np.full(last - first, self._added, np.float32)


class ScaledRows(Rows):
    """The base times a number."""

    def __init__(self, source: Scaled) -> None:
        super().__init__(source, 1)
        self._factor = np.float32(source.factor)

    def combined(self, reader: Reader, low: int, high: int, values: Array) -> Array:
        return self.plain(reader, low, values) * self._factor


class AddedRows(Rows):
    """The base plus another tensor, times a scale."""

    def __init__(self, source: Added) -> None:
        super().__init__(source, 1)
        self._left, self._scale = _Other(source.left), np.float32(source.scale)

    def update(self, reader: Reader, first: int, last: int) -> Floats:
        values = self._left.read(reader, first, last)
        values *= self._scale
        return values


class SummedRows(Rows):
    """The base plus further parts, in their order."""

    def __init__(self, source: Summed) -> None:
        super().__init__(source, 1)
        self._parts = [_Other(part) for part in source.parts]

    def combined(self, reader: Reader, low: int, high: int, values: Array) -> Array:
        total = self.plain(reader, low, values)
        for part in self._parts:
            total = total + part.read(reader, low, high)
        return total


class _Other:
    """A second tensor next to the base, read as float32."""

    def __init__(self, view: View) -> None:
        self._prepared, self._raw, self._dtype = prepare(view), raw_dtype(view.dtype), to_numpy(view.dtype)

    def read(self, reader: Reader, low: int, high: int) -> Floats:
        """The elements low..high-1, in C order."""
        raw = np.empty(high - low, self._raw)
        reader.interval(self._prepared, low, high, raw)
        values: Floats = raw.view(self._dtype).astype(np.float32)
        return values


class FusedRows(Rows):
    """The base plus scale * left @ right. `right` (r rows) stays in memory, for a stack one expert at a time."""

    def __init__(self, source: Fuse, base: Prepared) -> None:
        *stack, self._rank, width = source.right.shape
        super().__init__(source, width)
        self._source, self._base, self._left = source, base, _Other(source.left)
        self._each = max(self.count // (stack[0] if stack else 1), 1)  # rows per expert
        self._right: tuple[int, Floats] | None = None

    def update(self, reader: Reader, first: int, last: int) -> Floats:
        left = self._left.read(reader, first * self._rank, last * self._rank).reshape(-1, self._rank)
        product: Floats = np.empty((last - first, self.width), np.float32)
        for expert in range(first // self._each, (last - 1) // self._each + 1):
            begin, end = max(expert * self._each, first) - first, min((expert + 1) * self._each, last) - first
            np.matmul(left[begin:end], self._right_of(expert, reader), out=product[begin:end])
        product *= np.float32(self._source.scale)
        return product.reshape(-1)

    def _right_of(self, expert: int, reader: Reader) -> Floats:
        if self._right is None or self._right[0] != expert:
            view = self._source.right
            one = view if len(view.shape) == 2 else select(view, 0, expert)
            self._right = expert, read_numpy(one, reader).astype(np.float32)
        return self._right[1]

    def whole(self, reader: Reader, first: int, last: int, values: Array | None = None) -> Floats:
        """The updated rows first..last-1, as (rows, width).

        Args:
            reader: reads the stored elements.
            first: the first row.
            last: one past the last row.
            values: the base's stored elements of these rows; None to read them.
        """
        if values is None:
            raw = np.empty((last - first) * self.width, raw_dtype(self._source.base.dtype))
            reader.interval(self._base, first * self.width, last * self.width, raw)
            values = raw.view(to_numpy(self._source.base.dtype))
        rows = self.update(reader, first, last)
        rows += self.plain(reader, first * self.width, values)
        return rows.reshape(last - first, self.width)


class DecomposedRows(FusedRows):
    """DoRA. The length of a row needs the whole row, and the lengths of columns need one more pass over the weight."""

    def __init__(self, source: Decomposed, base: Prepared) -> None:
        super().__init__(source, base)
        self._by_column, self._lengths, self._view = source.by_column, source.lengths, source.magnitude
        self._magnitude: Floats | None = None

    def combined(self, reader: Reader, low: int, high: int, values: Array) -> Array:
        first, last = low // self.width, -(-high // self.width)
        complete = high - low == (last - first) * self.width
        rows = self.whole(reader, first, last, values if complete else None)
        if self._magnitude is None:
            self._magnitude = read_numpy(self._view, reader).astype(np.float32).reshape(-1)
        with np.errstate(
            divide="ignore", invalid="ignore"
        ):  # a row of zeros has length 0: the result is nan, as in PEFT
            if self._by_column:
                rows *= self._magnitude / self._lengths.get(lambda: self._columns(reader))
            else:
                lengths = np.sqrt(np.square(rows, dtype=np.float64).sum(1)).astype(np.float32)
                rows *= (self._magnitude[first:last] / lengths)[:, None]
        return rows.reshape(-1)[low - first * self.width : high - first * self.width]

    def _columns(self, reader: Reader) -> Floats:
        squares = np.zeros(self.width, np.float64)
        for first, last in self.blocks(0, self.count):
            squares += np.square(self.whole(reader, first, last), dtype=np.float64).sum(0)
        found: Floats = np.sqrt(squares).astype(np.float32)
        return found
