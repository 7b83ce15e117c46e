"""What one pass over a tensor collects: where it differs, whether its values are plausible, and its hash."""

from __future__ import annotations

import threading
from dataclasses import dataclass, field
from math import fsum, prod
from typing import Any

import numpy as np

from ckptconv.commands.verify.records import Difference
from ckptconv.commands.verify.sanity import Sanity
from ckptconv.copy.hashing import combine
from ckptconv.read.reader import Array
from ckptconv.tensors.dtypes import to_numpy
from ckptconv.tensors.holders import Holders
from ckptconv.tensors.view import Shape

BUCKETS = 32  # parts of a dim for which it is recorded whether they differ


@dataclass(slots=True)
class Tally:
    """Everything that was collected of one tensor. Threads add to it under its lock.

    Args:
        name: the tensor.
        shape: its shape.
        dtype: the dtype in which both sides are compared.
        compared: whether there are two sides.
        holders: which rank stores which element, if that is known.
        hashed: for the target and the reference, tile number -> digest.
        sanity: what was seen of the target's values.
        count: the number of elements that differ.
        nonfinite: how many of them are NaN or Inf on a side.
        within: the largest |difference| that the tolerance allowed.
    """

    name: str
    shape: Shape
    dtype: str
    compared: bool
    holders: Holders | None = None
    hashed: tuple[dict[int, bytes], dict[int, bytes]] = field(default_factory=lambda: ({}, {}))
    sanity: Sanity = field(default_factory=Sanity)
    count: int = 0
    nonfinite: int = 0
    within: float = 0.0
    _sums: list[float] = field(default_factory=list)
    _largest: tuple[float, int] = (0.0, -1)
    _relative: float = 0.0
    _ends: tuple[int, int] = (-1, -1)
    _rows: set[int] = field(default_factory=set)
    _columns: set[int] = field(default_factory=set)
    _column_ends: tuple[int, int] = (-1, -1)
    _ranks: set[int] = field(default_factory=set)
    _lock: Any = field(default_factory=threading.Lock)

    def add_sanity(self, seen: Sanity) -> None:
        """Add what one thread saw of a part of the tensor."""
        with self._lock:
            self.sanity.merge(seen)

    def hash(self, side: int = 0) -> str:
        """The hash of the target's values (0) or the reference's (1), once all of the tensor was read; "" if it is empty.

        Only tensors of the same shape and dtype can have equal hashes.
        """
        digests = self.hashed[side]
        return (
            f"{self.dtype} {self.shape} {combine([digests[n] for n in sorted(digests)])}" if digests else ""
        )

    def add_difference(self, ours: Array, theirs: Array, at: int, atol: float, rtol: float) -> None:
        """Add two pieces of raw bits that differ.

        Args:
            ours: the target's elements, as unsigned integers.
            theirs: the reference's.
            at: the flat index of their first element.
            atol: the allowed absolute difference.
            rtol: the allowed relative difference.
        """
        bad = ours != theirs
        places = None
        if np.count_nonzero(bad) * 4 < len(bad):  # few differ, so only those are computed
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
        """Record where elements differ. Parts and ranks that are known to differ are not looked up again.

        Args:
            flat: the flat indices of the elements that differ.
            delta: |difference| of the elements that were compared; 0 where they are equal or not finite.
            top: the flat index of the largest difference.
        """
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
        if len(self.shape) > 1:
            self._place_columns(flat)
        if self.holders is not None:
            self._ranks |= self.holders.of(flat, self._ranks)

    def _place_columns(self, flat: Array) -> None:
        """Record which parts of the last dim have the elements at these flat indices."""
        width = self.shape[-1]
        buckets = min(width, BUCKETS)
        if len(self._columns) == buckets and self._column_ends == (0, width - 1):
            return
        columns = flat % width
        low, high = int(columns.min()), int(columns.max())
        if self._column_ends[0] >= 0:
            low, high = min(low, self._column_ends[0]), max(high, self._column_ends[1])
        self._column_ends = low, high
        self._columns.update(np.unique(columns * buckets // width).tolist())

    def row_of(self, flat: int) -> int:
        """The index along dim 0 of the element with this flat index."""
        return flat // max(prod(self.shape[1:]), 1)

    def difference(self) -> Difference | None:
        """The record of how the tensor differs; None if it does not."""
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
            first_column=max(self._column_ends[0], 0),
            last_column=max(self._column_ends[1], 0),
            columns=tuple(bucket in self._columns for bucket in range(min(self.shape[-1], BUCKETS)))
            if len(self.shape) > 1
            else (),
            slices=tuple(holders.part(rank) for rank in sorted(self._ranks)) if holders else (),
        )


def _numbers(raw: Array, dtype: str) -> Array:
    """The values of raw bits, in a dtype in which numpy computes fast."""
    if dtype == "bfloat16":  # the upper half of a float32
        return (raw.astype(np.uint32) << np.uint32(16)).view(np.float32)
    values = raw.view(to_numpy(dtype))
    return values if dtype in ("float32", "float64", "complex64") else values.astype(_wide(dtype))


def _wide(dtype: str) -> Any:
    """The dtype in which values are subtracted."""
    return np.complex128 if dtype.startswith("complex") else np.float64
