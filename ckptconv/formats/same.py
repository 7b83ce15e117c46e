"""Compares two files byte by byte."""

from __future__ import annotations

from pathlib import Path

from ckptconv.tensors.look import opened

_BLOCK = 1 << 20  # bytes


def same_bytes(one: Path, other: Path) -> bool:
    """True if two files, on a disk or in a store, have the same bytes.

    Raises:
        CkptconvError: a file cannot be read.
    """
    with opened(one, "a file") as first, opened(other, "a file") as second:
        if first.nbytes != second.nbytes:
            return False
        starts = range(0, first.nbytes, _BLOCK)
        return all(first.read(start, _BLOCK) == second.read(start, _BLOCK) for start in starts)
