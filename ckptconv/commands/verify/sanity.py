"""Counts over a tensor's bits: NaN, Inf, and whether it is one value all over."""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

import numpy as np

from ckptconv.read.reader import Array


class _Bits(NamedTuple):
    """A float dtype's bits: all but the sign, the first magnitude that is not finite, infinity (0: none)."""

    mask: int
    first: int
    infinity: int


_FLOATS = {
    "float16": _Bits(0x7FFF, 0x7C00, 0x7C00),
    "bfloat16": _Bits(0x7FFF, 0x7F80, 0x7F80),
    "float32": _Bits(0x7FFF_FFFF, 0x7F80_0000, 0x7F80_0000),
    "float64": _Bits(0x7FFF_FFFF_FFFF_FFFF, 0x7FF0_0000_0000_0000, 0x7FF0_0000_0000_0000),
    "float8_e5m2": _Bits(0x7F, 0x7C, 0x7C),
    "float8_e4m3fn": _Bits(0x7F, 0x7F, 0),
}


@dataclass(slots=True)
class Sanity:
    """Counts over one tensor's bits.

    first: the flat index of the first NaN or Inf. largest: of all magnitudes. one: an element; same: all are it.
    """

    nan: int = 0
    inf: int = 0
    first: int = -1
    largest: int = 0
    one: int | None = None
    same: bool = True

    @property
    def is_flat(self) -> bool:
        """One value all over; 0 and -0 are one. Of floats only."""
        return self.one is not None and (self.same or not self.largest)

    def add(self, raw: Array, at: int, dtype: str) -> None:
        """A piece's raw bits; `at`: the flat index of its first element. Floats only."""
        bits = _FLOATS.get(dtype)
        if bits is None or not raw.size:
            return
        magnitude = raw & raw.dtype.type(bits.mask)
        largest = int(magnitude.max())
        self.largest = max(self.largest, largest)
        if self.one is None:
            self.one = int(raw[0])
        if self.same:
            self.same = int(raw.min()) == self.one == int(raw.max())
        if largest >= bits.first:
            strange = np.flatnonzero(magnitude >= bits.first)
            inf = int(np.count_nonzero(magnitude[strange] == bits.infinity)) if bits.infinity else 0
            self.inf += inf
            self.nan += len(strange) - inf
            here = at + int(strange[0])
            self.first = here if self.first < 0 else min(self.first, here)

    def merge(self, other: Sanity) -> None:
        """Take in what another thread saw of the same tensor."""
        self.nan += other.nan
        self.inf += other.inf
        self.first = min((n for n in (self.first, other.first) if n >= 0), default=-1)
        self.largest = max(self.largest, other.largest)
        if other.one is not None:
            self.same = self.same and other.same and self.one in (None, other.one)
            self.one = other.one if self.one is None else self.one
