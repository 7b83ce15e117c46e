"""Converts stored values to float32: floats are cast, float8 codes are multiplied by their scales."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

import numpy as np

from ckptconv.compute.sources import Computed, Scales
from ckptconv.read.reader import Array, Reader, read_numpy
from ckptconv.tensors.dtypes import to_numpy
from ckptconv.tensors.view import Shape

if TYPE_CHECKING:
    from ckptconv.compute.sources import Floats

# (reader, position of the first value in C order, stored values) -> a new array of float32 values.
Plain = Callable[[Reader, int, Array], "Floats"]


def plain_values(source: Computed) -> Plain:
    """The function that converts stored elements of `source.base` to float32. Each thread has its own."""
    if source.scales is not None:
        return _Dequantise(source.scales, source.base.shape, source.base.dtype)
    return lambda _, __, values: values.astype(np.float32)


class _Dequantise:
    """Computes code * scale. It keeps the scales, which are small (usually one per 128 x 128 elements)."""

    def __init__(self, scales: Scales, shape: Shape, dtype: str) -> None:
        self._scales, self._shape = scales, shape
        codes = np.arange(256, dtype=np.uint8).view(to_numpy(dtype))
        self._values: Floats = codes.astype(np.float32)  # a lookup table, since numpy converts float8 slowly
        self._factors: Floats | None = None

    def __call__(self, reader: Reader, low: int, values: Array) -> Floats:
        plain: Floats = self._values[values.view(np.uint8)]
        if self._factors is None:
            self._factors = read_numpy(self._scales.view, reader).astype(np.float32)
        rows, columns = self._scales.block
        if not rows:
            plain *= self._factors.reshape(-1)[0]
            return plain
        height, width = self._shape[-2:]
        table = self._factors.reshape(-1, self._factors.shape[-1])  # (all block rows, block columns)
        per_matrix = self._factors.shape[-2]
        high = low + len(plain)
        for row, stop in _runs(low // width, -(-high // width), height, rows):
            matrix, within = divmod(row, height)
            factors = np.repeat(table[matrix * per_matrix + within // rows], columns)[:width]
            begin, end = max(row * width, low), min(stop * width, high)
            if (end - begin) == (stop - row) * width:
                plain[begin - low : end - low].reshape(-1, width)[:] *= factors
                continue
            plain[begin - low : end - low] *= np.tile(factors, stop - row)[begin - row * width :][
                : end - begin
            ]
        return plain


def _runs(first: int, last: int, height: int, rows: int) -> list[tuple[int, int]]:
    """The rows first..last-1, cut at the end of each block of `rows` rows and of each matrix of `height` rows."""
    runs = []
    while first < last:
        matrix, within = divmod(first, height)
        stop = min(last, matrix * height + min((within // rows + 1) * rows, height))
        runs.append((first, stop))
        first = stop
    return runs
