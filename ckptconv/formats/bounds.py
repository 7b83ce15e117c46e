"""Limits on untrusted names, shapes and offsets, checked at the input boundary."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, TypeGuard

from ckptconv.errors import CkptconvError, Kind

MOST_DIMS = 64  # the limit of torch and numpy
MOST_RANKS = 1 << 20
_LARGEST = 1 << 63
_LONGEST_NAME = 1000
_LONGEST_FILE_NAME = 255  # bytes


def check_name(name: Any, where: object) -> str:
    """Return the name of a tensor if it is one printable line.

    Raises:
        CkptconvError: the name is not a string, is longer than 1,000 characters, or has unprintable characters.
    """
    if not isinstance(name, str):
        raise CkptconvError(
            "a tensor's name is not a string", where=where, found=type(name).__name__, kind=Kind.DAMAGED
        )
    if len(name) > _LONGEST_NAME or not name.isprintable():
        raise CkptconvError(
            "a tensor's name is too long or has unprintable characters",
            where=where,
            found=ascii(name[:80]),
            wanted=f"one line of at most {_LONGEST_NAME:,} characters",
            kind=Kind.DAMAGED,
        )
    return name


def is_file_name(name: Any) -> bool:
    """Return True if the name is a bare file name: it has no path separator and at most 255 bytes."""
    return (
        isinstance(name, str)
        and name.isprintable()
        and 0 < len(name.encode()) <= _LONGEST_FILE_NAME
        and "/" not in name
        and name not in (".", "..")
    )


def is_shape(value: Any) -> TypeGuard[Sequence[int]]:
    """Return True for a list or tuple of at most 64 integers, each from 0 to 2^63 - 1."""
    return (
        isinstance(value, tuple | list)
        and len(value) <= MOST_DIMS
        and all(type(n) is int and 0 <= n < _LARGEST for n in value)
    )


def is_range(start: Any, length: Any) -> bool:
    """Return True for two integers, each from 0 to 2^63 - 1."""
    return type(start) is int and type(length) is int and 0 <= start < _LARGEST and 0 <= length < _LARGEST


def whole_numbers(value: Any, what: str, where: object = None) -> tuple[int, ...]:
    """Return a shape, strides or offsets as a tuple.

    Args:
        value: the untrusted value.
        what: a description of the value, which begins the error message.
        where: the file or the tensor, for the error message.

    Raises:
        CkptconvError: the value is not a list or tuple of at most 64 integers, each from 0 to 2^63 - 1.
    """
    if not is_shape(value):
        raise CkptconvError(
            f"{what} is not made of whole numbers",
            where=where,
            found=value,
            wanted=f"at most {MOST_DIMS}, each from 0 to 2^63 - 1",
            kind=Kind.DAMAGED,
        )
    return tuple(value)


def check_ranks(count: int, where: object) -> None:
    """Raise CkptconvError for more than 2^20 ranks, because code lists the ranks one by one."""
    if count > MOST_RANKS:
        raise CkptconvError(
            "too many ranks or files",
            where=where,
            found=f"{count:,}",
            wanted=f"{MOST_RANKS:,}",
            kind=Kind.UNSUPPORTED,
        )
