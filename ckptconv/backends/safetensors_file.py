"""One safetensors file, from its header alone.

Format: safetensors README, "Format": eight bytes of header length, a JSON header, then the data.
"""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

from ckptconv.dtypes import from_safetensors, itemsize
from ckptconv.errors import CkptconvError
from ckptconv.view import View, stored

_MAX_HEADER = 100_000_000


def read_header(path: Path) -> tuple[dict[str, View], dict[str, str]]:
    """The tensors of one safetensors file as views, and its `__metadata__`."""
    size = os.path.getsize(path)
    with open(path, "rb") as file:
        length = int.from_bytes(file.read(8), "little")
        if size < 8 or length > min(size - 8, _MAX_HEADER):
            raise CkptconvError(
                "not a safetensors file, or a truncated one", where=path, found=f"{size:,} bytes"
            )
        data = file.read(length)
    try:
        header = json.loads(data)
    except ValueError as error:
        raise CkptconvError("a safetensors header that is not JSON", where=path) from error
    if not isinstance(header, dict):
        raise CkptconvError("a safetensors header that is no table", where=path)
    metadata = header.pop("__metadata__", None) or {}
    begin = 8 + length
    views, end = {}, 0
    for name, entry in sorted(header.items(), key=lambda item: _offset(item[1])):
        view, end = _tensor(path, name, entry, begin, end)
        views[name] = view
    if begin + end != size:
        raise CkptconvError(
            "a safetensors file whose tensors do not fill it",
            where=path,
            found=f"{size:,} bytes",
            wanted=f"{begin + end:,}",
        )
    return {name: views[name] for name in header}, metadata


def _offset(entry: Any) -> tuple[int, int]:
    offsets = entry.get("data_offsets") if isinstance(entry, dict) else None
    if not (
        isinstance(offsets, list) and len(offsets) == 2 and all(type(n) is int and n >= 0 for n in offsets)
    ):
        return (-1, -1)
    return (offsets[0], offsets[1])


def _tensor(path: Path, name: str, entry: Any, begin: int, expected: int) -> tuple[View, int]:
    low, high = _offset(entry)
    shape = entry.get("shape") if isinstance(entry, dict) else None
    dtype = from_safetensors(str(entry.get("dtype"))) if isinstance(entry, dict) else None
    where = f"{name} in {path}"
    if dtype is None:
        raise CkptconvError("a dtype that ckptconv does not know", where=where, found=str(entry)[:80])
    if low != expected or not isinstance(shape, list) or not all(type(n) is int and n >= 0 for n in shape):
        raise CkptconvError(
            "a safetensors header with a hole, an overlap or no shape", where=where, found=str(entry)[:120]
        )
    view = stored(str(path), begin + low, shape, dtype)
    if view.numel * itemsize(dtype) != high - low:
        raise CkptconvError(
            "a tensor whose bytes do not match its shape", where=where, found=str(entry)[:120]
        )
    return view, high
