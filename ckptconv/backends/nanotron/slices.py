"""The slices of a shard: which box of the shard is which box of the whole tensor.

A file's `__metadata__` has `unsharded_shape`, the text of a tuple, and `local_global_slices_pairs`: pairs `local#global`
separated by `;`, one slice per dim separated by `|`, each `start,stop,step` or `None,None,None` for the whole dim. A shard
of several parts (queries, keys and values; gate and up) has one pair for each part.
Source: nanotron/parallel/parameters.py, SlicesPair; nanotron/serialize/metadata.py, TensorMetadata.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from pathlib import Path

from ckptconv.errors import CkptconvError, Kind
from ckptconv.formats.bounds import whole_numbers
from ckptconv.tensors.view import Shape, View, narrow, place

_SHAPE, _PAIRS = "unsharded_shape", "local_global_slices_pairs"
_SIZE = re.compile(r"^(?:np\.int\d*\()?([0-9]{1,18})\)?$")  # numpy 2 spells its integers np.int64(96)
_SLICE = re.compile(r"^([0-9]{1,18}),([0-9]{1,18}),(?:None|1)$")
_WHOLE = "None,None,None"

Box = tuple[tuple[int, ...], Shape]  # (offsets, sizes), in elements
Part = tuple[tuple[int, ...], View]


def is_sliced(metadata: Mapping[str, str]) -> bool:
    """Return True if a file's metadata describes a shard and not a whole tensor."""
    return _PAIRS in metadata


def unsharded_shape(metadata: Mapping[str, str], path: Path) -> Shape:
    """Return the shape of the whole tensor.

    Raises:
        CkptconvError: the text is not a tuple of whole numbers.
    """
    text = metadata.get(_SHAPE, "")
    found = [_SIZE.match(size.strip()) for size in text.strip().strip("()").rstrip(",").split(",")]
    if not all(found):
        raise _unreadable(_SHAPE, text, path)
    sizes = [int(match[1]) for match in found if match is not None]
    return whole_numbers(sizes, "the shape of the whole tensor", path)


def parts(metadata: Mapping[str, str], shape: Shape, shard: View, path: Path) -> list[Part]:
    """Return the parts of a shard, each with its offsets in the whole tensor.

    Args:
        metadata: the metadata of the shard's file.
        shape: the shape of the whole tensor.
        shard: the stored tensor.
        path: the file, for error messages.

    Raises:
        CkptconvError: the pairs cannot be read, their two boxes have different sizes, or they leave a part of the shard
            unused or use it twice.
    """
    pairs = list(_pairs(metadata[_PAIRS], shard.shape, shape, path))
    found, used = [], []
    for (at, sizes), (to, wanted) in pairs:
        if sizes != wanted:
            raise _unreadable(_PAIRS, metadata[_PAIRS], path)
        part = shard
        for dim, (start, size) in enumerate(zip(at, sizes, strict=True)):
            part = narrow(part, dim, start, size)
        used.append((at, part))
        found.append((to, part))
    try:
        place(shard.shape, shard.dtype, used)
    except CkptconvError as error:
        raise error.within(inside="the slices of the shard", where=path) from error
    return found


def _pairs(text: str, local: Shape, whole: Shape, path: Path) -> Iterator[tuple[Box, Box]]:
    """Yield (box of the shard, box of the whole tensor)."""
    for pair in text.split(";"):
        sides = pair.split("#")
        if len(sides) != 2:
            raise _unreadable(_PAIRS, text, path)
        yield _box(sides[0], local, text, path), _box(sides[1], whole, text, path)


def _box(side: str, shape: Shape, text: str, path: Path) -> Box:
    slices = side.split("|")
    if len(slices) != len(shape):
        raise _unreadable(_PAIRS, text, path)
    spans = []
    for one, size in zip(slices, shape, strict=True):
        match = _SLICE.match(one)
        start, stop = (0, size) if one == _WHOLE else (int(match[1]), int(match[2])) if match else (1, 0)
        if not start <= stop <= size:
            raise _unreadable(_PAIRS, text, path)
        spans.append((start, stop - start))
    return tuple(start for start, _ in spans), tuple(size for _, size in spans)


def _unreadable(key: str, text: str, path: Path) -> CkptconvError:
    return CkptconvError(
        f"{key} in the file's metadata does not describe its tensor",
        where=path,
        found=text[:200] or "nothing",
        hint="copy the file again from the node where it was written",
        kind=Kind.DAMAGED,
    )
