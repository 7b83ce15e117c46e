"""Compares two files byte by byte."""

from __future__ import annotations

from pathlib import Path

_BLOCK = 1 << 20  # bytes


def same_bytes(one: Path, other: Path) -> bool:
    """True if two files, on a disk or in a store, have the same bytes.

    Raises:
        OSError, CkptconvError: a file cannot be read.
    """
    if one.stat().st_size != other.stat().st_size:
        return False
    with one.open("rb") as first, other.open("rb") as second:
        while block := first.read(_BLOCK):
            if block != second.read(_BLOCK):
                return False
    return True
