"""What one streaming pass gathers of a tensor: where it differs, and whether its values are sane."""

from __future__ import annotations

import threading
from dataclasses import dataclass, field
from functools import cached_property
from math import fsum, prod
from typing import Any, NamedTuple

import numpy as np

from ckptconv.commands.verify.records import Difference, Slice
from ckptconv.dtypes import to_numpy
from ckptconv.read import Array
from ckptconv.view import Shape, View

BUCKETS = 32


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


class Holders:
    """Which rank stores which elements of a tensor, from its view's chunks."""

    def __init__(self, view: View, shape: Shape, rank_of: dict[str, int]) -> None:
        self._view, self._from, self._shape, self._rank_of = view, view.shape, shape, rank_of

    @cached_property
    def _boxes(self) -> dict[int, list[tuple[Shape, Shape]]]:
        """Rank -> the corners of its boxes; made for the few tensors that are asked about."""
        boxes: dict[int, list[tuple[Shape, Shape]]] = {}
        for chunk in self._view.chunks:
            ends = tuple(o + s for o, s in zip(chunk.offsets, chunk.sizes, strict=True))
            if chunk.file in self._rank_of:
                boxes.setdefault(self._rank_of[chunk.file], []).append((chunk.offsets, ends))
        return boxes

    def of(self, flat: Array, known: set[int]) -> set[int]:
        """The ranks, beyond those known, that store any of the elements at these ascending flat indices."""
        ranks = [rank for rank in self._boxes if rank not in known]
        if not self._from or not ranks:
            return set(ranks)
        places = np.unravel_index(flat, self._from)
        low, high = int(places[0][0]), int(places[0][-1])
        return {
            rank
            for rank in ranks
            for begin, end in self._boxes[rank]
            if begin[0] <= high and end[0] > low and _any_inside(places, begin, end)
        }

    def part(self, rank: int) -> Slice:
        """The box that the rank stores; whole rows where the tensor has another shape than its source."""
        boxes = self._boxes[rank]
        begin = tuple(map(min, zip(*(low for low, _ in boxes), strict=True)))
        end = tuple(map(max, zip(*(high for _, high in boxes), strict=True)))
        if self._from == self._shape or not self._shape:
            return Slice(rank, begin, tuple(e - b for b, e in zip(begin, end, strict=True)))
        width = prod(self._shape[1:])
        first, last = (int(np.ravel_multi_index(at, self._from)) for at in (begin, tuple(e - 1 for e in end)))
        rows = last // width - first // width + 1
        return Slice(rank, (first // width, *(0 for _ in self._shape[1:])), (rows, *self._shape[1:]))


def _any_inside(places: tuple[Array, ...], begin: Shape, end: Shape) -> bool:
    inside = np.ones(len(places[0]), bool)
    for place, low, high in zip(places, begin, end, strict=True):
        inside &= (place >= low) & (place < high)
    return bool(inside.any())


@dataclass(slots=True)
class Tally:
    """Everything gathered of one tensor; threads add to it under its lock."""

    name: str
    shape: Shape
    dtype: str
    compared: bool
    holders: Holders | None = None
    sanity: Sanity = field(default_factory=Sanity)
    count: int = 0
    nonfinite: int = 0
    within: float = 0.0  # the largest |difference| that a tolerance let through
    _sums: list[float] = field(default_factory=list)
    _largest: tuple[float, int] = (0.0, -1)
    _relative: float = 0.0
    _ends: tuple[int, int] = (-1, -1)
    _rows: set[int] = field(default_factory=set)
    _ranks: set[int] = field(default_factory=set)
    _lock: Any = field(default_factory=threading.Lock)

    def add_sanity(self, seen: Sanity) -> None:
        """What one thread saw of a part of the tensor."""
        with self._lock:
            self.sanity.merge(seen)

    def add_difference(self, ours: Array, theirs: Array, at: int, atol: float, rtol: float) -> None:
        """Two pieces of raw bits that are not the same; `at`: the flat index of their first element."""
        bad = ours != theirs
        places = None
        if np.count_nonzero(bad) * 4 < len(bad):  # few differ: only these are looked at
            places = np.flatnonzero(bad)
            ours, theirs, bad = ours[places], theirs[places], bad[places]
        a, b = _numbers(ours, self.dtype), _numbers(theirs, self.dtype)
        within = 0.0
        with np.errstate(all="ignore"):
            delta, size = np.abs(np.subtract(a, b, dtype=_wide(self.dtype))), np.abs(b)
            finite = np.isfinite(delta)
            if atol or rtol:
                close = bad & finite & (delta <= atol + rtol * size)
                within = float(delta.max(initial=0.0, where=close))
                bad = bad & ~close
            delta[~(bad & finite)] = 0.0
            relative = float(np.divide(delta, size, where=size > 0, out=np.zeros_like(delta)).max())
        with self._lock:
            self.within = max(self.within, within)
            if bad.any():
                self.count += int(np.count_nonzero(bad))
                self.nonfinite += int(np.count_nonzero(bad & ~finite))
                self._relative = max(self._relative, relative)
                self._sums.append(float(delta.sum()))
                flat = np.flatnonzero(bad) if places is None else places[bad]
                self._place(
                    flat + at,
                    delta,
                    at + int(np.argmax(delta) if places is None else places[np.argmax(delta)]),
                )

    def _place(self, flat: Array, delta: Array, top: int) -> None:
        """Where it differs: ends, largest, parts of dim 0, ranks. Parts and ranks that are known are not looked for."""
        first, last = int(flat[0]), int(flat[-1])
        self._ends = (first if self._ends[0] < 0 else min(first, self._ends[0]), max(last, self._ends[1]))
        largest = float(delta.max())
        if largest and (-largest, top) < (-self._largest[0], self._largest[1]):
            self._largest = (largest, top)
        rows = self.shape[0] if self.shape else 1
        width, buckets = prod(self.shape[1:]), min(rows, BUCKETS)
        spanned = range(first // width * buckets // rows, last // width * buckets // rows + 1)
        if not self._rows.issuperset(spanned):
            self._rows.update(np.unique(flat // width * buckets // rows).tolist())
        if self.holders is not None:
            self._ranks |= self.holders.of(flat, self._ranks)

    def row_of(self, flat: int) -> int:
        """The index along dim 0 of an element."""
        return flat // max(prod(self.shape[1:]), 1)

    def difference(self) -> Difference | None:
        """The record of it, or None where there is none."""
        if not self.count:
            return None
        buckets = min(self.shape[0] if self.shape else 1, BUCKETS)
        at = self._largest[1] if self._largest[1] >= 0 else self._ends[0]
        holders = self.holders
        return Difference(
            name=self.name,
            shape=self.shape,
            dtype=self.dtype,
            count=self.count,
            nonfinite=self.nonfinite,
            max_abs=self._largest[0],
            mean_abs=fsum(self._sums) / prod(self.shape),
            max_rel=self._relative,
            at=tuple(int(n) for n in np.unravel_index(at, self.shape)) if self.shape else (),
            first_row=self.row_of(self._ends[0]),
            last_row=self.row_of(self._ends[1]),
            rows=tuple(bucket in self._rows for bucket in range(buckets)),
            slices=tuple(holders.part(rank) for rank in sorted(self._ranks)) if holders else (),
        )


def _numbers(raw: Array, dtype: str) -> Array:
    """The values of raw bits, in a dtype that numpy is quick with."""
    if dtype == "bfloat16":  # the upper half of a float32
        return (raw.astype(np.uint32) << np.uint32(16)).view(np.float32)
    values = raw.view(to_numpy(dtype))
    return values if dtype in ("float32", "float64", "complex64") else values.astype(_wide(dtype))


def _wide(dtype: str) -> Any:
    """What values are subtracted in."""
    return np.complex128 if dtype.startswith("complex") else np.float64
