"""Read one safetensors file from its header alone.

The safetensors README, "Format", defines it: eight bytes of header length, a JSON header, then the data.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from ckptconv.errors import CkptconvError, Kind
from ckptconv.formats.bounds import check_name, is_shape
from ckptconv.formats.json import parse_json
from ckptconv.tensors.dtypes import from_safetensors, itemsize, shape_from_safetensors
from ckptconv.tensors.look import opened
from ckptconv.tensors.stored_file import far_of
from ckptconv.tensors.view import Shape, View, stored

LENGTH = 8  # bytes of the field that holds the header's length
_MAX_HEADER = 100_000_000


def read_header(path: Path) -> tuple[dict[str, View], dict[str, str]]:
    """Return the tensors of one safetensors file as views, and its `__metadata__`.

    Raises:
        CkptconvError: the path is not a regular file, or its header is damaged.
    """
    file = str(path)
    with opened(file, "a safetensors file") as handle:
        size = handle.nbytes
        length = header_length(path, size, handle.read(0, LENGTH))
        data = handle.read(LENGTH, length)
    return parse_header(path, size, data)


def header_length(path: Path, size: int, first: bytes) -> int:
    """Return the length of the JSON header in bytes.

    Args:
        path: the file, for the error message.
        size: the size of the file, in bytes.
        first: the first LENGTH bytes of the file.

    Raises:
        CkptconvError: the file is too short to hold such a header.
    """
    length = int.from_bytes(first, "little")
    if size < LENGTH or len(first) < LENGTH or length > min(size - LENGTH, _MAX_HEADER):
        raise CkptconvError(
            "not a safetensors file, or a truncated one",
            where=path,
            found=f"{size:,} bytes",
            kind=Kind.DAMAGED,
        )
    return length


def parse_header(path: Path, size: int, data: bytes) -> tuple[dict[str, View], dict[str, str]]:
    """Parse a JSON header that was read already, as `read_header` does.

    Args:
        path: the file, for the views and the error messages.
        size: the size of the file, in bytes.
        data: the bytes of the JSON header, without the length field.

    Raises:
        CkptconvError: the header is damaged, or its tensors do not fill the file.
    """
    try:
        header = parse_json(data, path)
    except CkptconvError as error:
        raise CkptconvError(
            "the safetensors header is not valid JSON",
            where=path,
            found=error.found or error.what,
            kind=Kind.DAMAGED,
        ) from error
    if not isinstance(header, dict):
        raise CkptconvError("the safetensors header is not a JSON object", where=path, kind=Kind.DAMAGED)
    metadata = header.pop("__metadata__", None) or {}
    if not isinstance(metadata, dict) or not all(isinstance(value, str) for value in metadata.values()):
        raise CkptconvError(
            "__metadata__ in the safetensors header is not an object of strings",
            where=path,
            kind=Kind.DAMAGED,
        )
    begin = LENGTH + len(data)
    views, end = {}, 0
    for name, entry in sorted(header.items(), key=lambda item: _offset(item[1])):
        view, end = _tensor(path, name, entry, begin, end)
        views[name] = view
    if begin + end != size:
        raise CkptconvError(
            "the tensors of the safetensors file do not fill it",
            where=path,
            found=f"{size:,} bytes",
            wanted=f"{begin + end:,}",
            kind=Kind.DAMAGED,
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
    check_name(name, path)
    where = f"{name} in {path}"
    if dtype is None:
        raise CkptconvError("unknown dtype", where=where, found=str(entry)[:80], kind=Kind.UNSUPPORTED)
    if low != expected or not is_shape(shape):
        raise CkptconvError(
            "the safetensors header has a gap, an overlap or a tensor without a shape",
            where=where,
            found=str(entry)[:120],
            kind=Kind.DAMAGED,
        )
    inner = shape_from_safetensors(dtype, tuple(shape))
    if inner is None:
        raise CkptconvError(
            "the last dim of packed values ends within a byte",
            where=where,
            found=str(entry)[:120],
            kind=Kind.UNSUPPORTED,
        )
    view = stored(str(path), begin + low, inner, dtype)
    if view.numel * itemsize(dtype) != high - low:
        raise CkptconvError(
            "the byte count of a tensor does not match its shape",
            where=where,
            found=str(entry)[:120],
            kind=Kind.DAMAGED,
        )
    return view, high


def header_by_library(path: Path) -> tuple[dict[str, tuple[str, Shape]], dict[str, str]]:
    """Read the header with safetensors' own reader, so that a file that ckptconv wrote is not checked by ckptconv's reader.

    Returns:
        Tensor name -> its dtype as the format spells it and its shape; and the file's metadata.

    Raises:
        OSError, safetensors.SafetensorError: the file cannot be opened, or its header is damaged.
    """
    from safetensors import safe_open

    tensors = {}
    with _on_a_disk(path) as file, safe_open(file, framework="numpy") as reader:
        for name in reader.keys():  # noqa: SIM118 - not a dict
            part = reader.get_slice(name)
            tensors[name] = str(part.get_dtype()), tuple(part.get_shape())
        return tensors, reader.metadata() or {}


@contextmanager
def _on_a_disk(path: Path) -> Iterator[Path]:
    """The file itself; for an object in a store a temporary file of its size with its header, and a hole for the data.

    The library maps a file of a disk, and looks at the size and the header alone until a tensor is asked for.
    """
    far = far_of(path)
    if far is None:
        yield path
        return
    from tempfile import NamedTemporaryFile

    with NamedTemporaryFile(suffix=path.suffix) as file:
        first = far.read(0, LENGTH)
        length = min(int.from_bytes(first, "little"), _MAX_HEADER)
        file.write(first + far.read(LENGTH, length))
        file.truncate(far.nbytes)
        file.flush()
        yield Path(file.name)
