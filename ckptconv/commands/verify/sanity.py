"""Counts over a tensor's bits: NaN, Inf, and whether it is one value all over."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from ckptconv.read.reader import Array
from ckptconv.tensors.dtypes import FLOAT_BITS


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
        bits = FLOAT_BITS.get(dtype)
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
        """Add the counts of another thread for the same tensor."""
        self.nan += other.nan
        self.inf += other.inf
        self.first = min((n for n in (self.first, other.first) if n >= 0), default=-1)
        self.largest = max(self.largest, other.largest)
        if other.one is not None:
            self.same = self.same and other.same and self.one in (None, other.one)
            self.one = other.one if self.one is None else self.one
