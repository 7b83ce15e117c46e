"""The order of tensors' names."""

from __future__ import annotations

import re

_DIGITS = re.compile(r"(\d+)")


def natural(name: str) -> list[tuple[int, int, str]]:
    """A sort key by which layers.2 comes before layers.10."""
    return [(1, int(text), "") if text.isdigit() else (0, 0, text) for text in _DIGITS.split(name) if text]
