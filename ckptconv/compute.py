"""What is not a copy: casts, and the LoRA product. Always at the root of a tensor, always by block, always bounded."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

from ckptconv.dtypes import to_numpy
from ckptconv.errors import CkptconvError
from ckptconv.read import Array, Prepared, Reader, prepare, raw_dtype, read_numpy
from ckptconv.view import Shape, View

CAST_BLOCK = 1 << 16  # elements; source and target together stay in a core's cache


@dataclass(frozen=True, slots=True)
class Fuse:
    """base + scale * (left @ right) in float32: a LoRA update, (out, in) + s * (out, r) @ (r, in)."""

    base: View
    left: View
    right: View
    scale: float

    @property
    def shape(self) -> Shape:
        return self.base.shape

    @property
    def dtype(self) -> str:
        return self.base.dtype

    @property
    def numel(self) -> int:
        return self.base.numel

    @property
    def nbytes(self) -> int:
        return self.base.nbytes


@dataclass(frozen=True, slots=True)
class Shift:
    """base + added in float32: a norm that is stored as its difference to one."""

    base: View
    added: float

    @property
    def shape(self) -> Shape:
        return self.base.shape

    @property
    def dtype(self) -> str:
        return self.base.dtype

    @property
    def numel(self) -> int:
        return self.base.numel

    @property
    def nbytes(self) -> int:
        return self.base.nbytes


Source = View | Fuse | Shift


def views_of(source: Source) -> tuple[View, ...]:
    """The stored views that a source is made of."""
    if isinstance(source, View):
        return (source,)
    return (source.base, source.left, source.right) if isinstance(source, Fuse) else (source.base,)


class Block:
    """Fills blocks of one tensor in its output dtype: read, combine, cast."""

    def __init__(self, source: Source, dtype: str) -> None:
        base = source if isinstance(source, View) else source.base
        self._base: Prepared = prepare(base)
        self._raw, self._from, self._to = raw_dtype(base.dtype), to_numpy(base.dtype), to_numpy(dtype)
        self._fuse = _FusedRows(source) if isinstance(source, Fuse) else None
        self._added = np.float32(source.added) if isinstance(source, Shift) else None
        self._copies = isinstance(source, View) and base.dtype == dtype
        self._narrow = dtype == "float16" and base.dtype != "float16"  # the one float with a smaller range

    def fill(self, reader: Reader, low: int, high: int, out: Array, scratch: Array) -> None:
        """Elements low..high-1 into `out` (bytes). scratch: at least CAST_BLOCK elements of eight bytes; more is used.

        Raises CkptconvError for values that the output dtype cannot hold.
        """
        target = out.view(self._to)
        if self._copies:
            reader.interval(self._base, low, high, target.view(self._raw))
            return
        # Runs go in pieces that stay in cache; a strided view in pieces as large as fit, so that its reads are long.
        step = len(scratch) // self._raw.itemsize if self._base.boxes else CAST_BLOCK
        for at in range(low, high, step):
            end = min(at + step, high)
            stored = scratch[: (end - at) * self._raw.itemsize].view(self._raw)
            reader.interval(self._base, at, end, stored)
            values = stored.view(self._from)
            if self._fuse is not None:
                values = self._fuse.add(reader, at, end, values)
            if self._added is not None:
                values = values.astype(np.float32) + self._added
            part = target[at - low : end - low]
            with np.errstate(over="ignore", invalid="ignore"):
                np.copyto(part, values, casting="unsafe")
            if self._narrow and np.isinf(part).any() and not np.isinf(values).any():
                raise CkptconvError(
                    f"values do not fit in {self._to}: the largest is {np.nanmax(np.abs(values)):.3g}",
                    hint="--dtype bfloat16 has the range of float32",
                )


class _FusedRows:
    """The low-rank product, a few rows at a time; `right` is small (r rows) and kept."""

    def __init__(self, fuse: Fuse) -> None:
        self._fuse = fuse
        self._right: Array | None = None

    def add(self, reader: Reader, low: int, high: int, values: Array) -> Array:
        from ckptconv.view import narrow

        fuse = self._fuse
        if self._right is None:
            self._right = read_numpy(fuse.right, reader).astype(np.float32)
        width = fuse.base.shape[1]
        first, last = low // width, -(-high // width)
        left = read_numpy(narrow(fuse.left, 0, first, last - first), reader).astype(np.float32)
        product: np.ndarray[Any, np.dtype[np.float32]] = (left @ self._right).reshape(-1)
        part = product[low - first * width : high - first * width]
        return values.astype(np.float32) + part * np.float32(fuse.scale)
