"""Decides how a strided box of a file is read: what one call reads, and how the elements get to their positions.

A call costs as much as reading 32 KiB more (measured with the file in the page cache), so a shorter gap is read as well
and ignored. A box whose rows become columns is transposed in memory, in parts that fit a core's cache. Rows whose
distance is a large power of two would share few cache lines, so they are first put an odd number of lines apart.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import lru_cache
from itertools import product
from math import prod
from operator import add, sub
from typing import Any, NamedTuple

import numpy as np

from ckptconv.tensors.view import Shape

CALL = 32 << 10  # bytes that take as long to read as one call costs
_LINE = 64  # bytes of a cache line
RAW: dict[int, np.dtype[Any]] = {1: np.dtype("u1"), 2: np.dtype("u2"), 4: np.dtype("u4"), 8: np.dtype("u8")}

Array = np.ndarray[Any, np.dtype[Any]]


class Cast(NamedTuple):
    """A conversion of elements while they are copied.

    Args:
        stored: the dtype of the stored elements.
        put: put(values, target) writes converted values; both arrays may have any strides.
    """

    stored: np.dtype[Any]
    put: Callable[[Array, Array], None]


class Gather(NamedTuple):
    """How boxes of one shape are read. If group < sizes, call `arrange` again for each group.

    Args:
        group: how many elements along each dim are in memory at a time. The other fields are only valid if this is the
            whole box.
        pitches: bytes in memory from one element to the next along each dim.
        walked: the dims along which every index needs its own read.
        nbytes: bytes of each such read.
        gaps: True if the reads include bytes that do not belong to the box.
        order: the dims of more than one element, from the largest stride in the file to the smallest.
    """

    group: Shape
    pitches: Shape
    walked: Shape
    nbytes: int
    gaps: bool
    order: Shape


@lru_cache(256)
def arrange(sizes: Shape, strides: Shape, item: int, room: int) -> Gather:
    """The cheapest way to read a box.

    Args:
        sizes: the shape of the box, in elements.
        strides: bytes in the file from one element to the next along each dim, not negative.
        item: bytes per element.
        room: bytes of memory that the read may fill, at least `item`.
    """
    order = sorted((dim for dim, size in enumerate(sizes) if size > 1), key=lambda dim: -strides[dim])
    group, pitches = [1] * len(sizes), list(strides)
    walked: list[int] = []
    inner, extent, cost, wanted = len(order), item, CALL + item, item
    while inner:  # put as many of the inner dims as possible into one read
        dim = order[inner - 1]
        size, stride = sizes[dim], strides[dim]
        fit = min(size, (room - extent) // stride + 1) if stride else size
        together = -(-size // fit) * CALL + extent + (size - 1) * stride
        if together > size * cost:
            break
        inner, group[dim], cost = inner - 1, fit, together
        extent, wanted = extent + (fit - 1) * stride, wanted * fit
        if fit < size:
            inner = 0
    nbytes = extent
    for dim in reversed(order[:inner]):  # and take as many such reads as there is room for
        pitches[dim] = _odd_lines(extent)
        group[dim] = min(sizes[dim], (room - extent) // pitches[dim] + 1)
        walked.insert(0, dim)
        extent += (group[dim] - 1) * pitches[dim]
        if group[dim] < sizes[dim]:
            break
    return Gather(tuple(group), tuple(pitches), tuple(walked), nbytes, nbytes > wanted, tuple(order))


def groups(sizes: Shape, group: Shape) -> Iterator[tuple[Shape, Shape]]:
    """Cut a box into groups; yields (offsets, sizes) of each, in elements."""
    for at in product(*(range(0, size, step) for size, step in zip(sizes, group, strict=True))):
        yield at, tuple(min(step, size - low) for low, size, step in zip(at, sizes, group, strict=True))


def overlap(low: Shape, sizes: Shape, other: Shape, others: Shape) -> tuple[Shape, Shape] | None:
    """The intersection of two boxes.

    Args:
        low: offsets of the first box.
        sizes: its sizes.
        other: offsets of the second box.
        others: its sizes.

    Returns:
        (offsets, sizes), or None if the boxes share no element.
    """
    begin = tuple(map(max, low, other))
    shared = tuple(map(sub, map(min, map(add, low, sizes), map(add, other, others)), begin))
    return None if min(shared) <= 0 else (begin, shared)


def put(values: Array, out: Array, gather: Gather, cast: Cast | None, room: Array) -> None:
    """Copy elements from the read buffer to the output.

    Args:
        values: the elements as they were read.
        out: an array of the same shape.
        gather: how the elements were read.
        cast: the conversion, or None to copy.
        room: bytes of scratch memory, to transpose in; without enough of it the copy is direct.
    """
    order = gather.order
    if not order or order[-1] == max(order) or (gather.walked and cast is None):
        _move(values, out, cast)
        return
    order = (*(dim for dim in range(values.ndim) if dim not in order), *order)
    values, out = values.transpose(order), out.transpose(order)
    *outer, inner = values.shape
    pitch = _odd_lines(inner * out.itemsize) // out.itemsize
    nbytes = prod(outer) * pitch * out.itemsize
    if nbytes > len(room):  # rows are short and far apart, or a dim is expanded
        _move(values, out, cast)
        return
    packed = room[:nbytes].view(out.dtype).reshape(*outer, pitch)[..., :inner]
    _move(values, packed, cast)
    raw = RAW[out.itemsize]
    np.copyto(out.view(raw), packed.view(raw))  # numpy has no fast copy for the dtypes of ml_dtypes


def _move(values: Array, out: Array, cast: Cast | None) -> None:
    if cast is None:
        np.copyto(out, values)
    else:
        cast.put(values, out)


def _odd_lines(nbytes: int) -> int:
    """The distance in memory between rows of `nbytes` bytes: an odd number of whole cache lines, in bytes."""
    return (-(-nbytes // _LINE) | 1) * _LINE
