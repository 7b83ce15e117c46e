"""Formats numbers and places for people: decimal bytes, seconds, shapes, addresses."""

from __future__ import annotations

import re
from collections.abc import Sequence

_ADDRESS = re.compile(r"^(s3|gs|az|hf):/(?=[^/])", re.IGNORECASE)


def size(nbytes: float) -> str:
    """A size in bytes as text: 1187432448 -> "1.19 GB". It has three digits and powers of 1000, as disks use them."""
    value, units = float(nbytes), ("B", "kB", "MB", "GB", "TB")
    for unit in units:
        if value < 999.5 or unit == "TB":
            break
        value /= 1000
    if unit == "B":
        return f"{int(value)} B"
    return (
        f"{value:.0f} {unit}"
        if value >= 99.95
        else f"{value:.1f} {unit}"
        if value >= 9.995
        else f"{value:.2f} {unit}"
    )


def count(number: int) -> str:
    """A number as text: 494032768 -> "494 M"."""
    for limit, unit in ((1e12, "T"), (1e9, "B"), (1e6, "M")):
        if number >= limit:
            value = number / limit
            return f"{value:.0f} {unit}" if value >= 99.5 else f"{value:.2f} {unit}"
    return f"{number:,}"


def seconds(value: float) -> str:
    """A time in seconds as text: 0.84 -> "0.84 s", 75 -> "1:15"."""
    if value < 10:
        return f"{value:.2f} s"
    return f"{value:.1f} s" if value < 60 else f"{int(value) // 60}:{int(value) % 60:02d}"


def shape(sizes: Sequence[int]) -> str:
    """A shape as text: (4096, 1024) -> "4096×1024", () -> "scalar"."""
    return "×".join(map(str, sizes)) or "scalar"


def as_typed(place: object) -> str:
    """A path, or an address of a store as the user writes it: pathlib makes one slash of its two."""
    return _ADDRESS.sub(r"\1://", str(place))
