"""How a strided box of a file is read: what in one call, how much at a time, and the way from there to its places.

Measured with the file in the page cache: a call costs as much as reading 32 KiB more, so a gap that is shorter is read
as well and forgotten. A box whose rows become columns is turned in memory, where it stays in a core's cache. Rows that
lie a large power of two apart share few lines of that cache, so they are put an odd number of lines apart first.
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

CALL = 32 << 10  # bytes that are read in the time of one call
_LINE = 64  # bytes
RAW: dict[int, np.dtype[Any]] = {1: np.dtype("u1"), 2: np.dtype("u2"), 4: np.dtype("u4"), 8: np.dtype("u8")}

Array = np.ndarray[Any, np.dtype[Any]]


class Cast(NamedTuple):
    """What happens to elements on their way. stored: the dtype they have; put(values, target): any strides."""

    stored: np.dtype[Any]
    put: Callable[[Array, Array], None]


class Gather(NamedTuple):
    """How boxes of one shape are read.

    group: the elements along each dim that are in memory at a time; where that is less than the box, a group is arranged
    by itself. The rest is about a box that is one group. pitches: bytes from one element to the next in memory.
    walked: the dims along which every index is a read of its own, of nbytes. gaps: more is read than the elements.
    order: the dims of more than one element, from the widest stride in the file to the narrowest.
    """

    group: Shape
    pitches: Shape
    walked: Shape
    nbytes: int
    gaps: bool
    order: Shape


@lru_cache(256)
def arrange(sizes: Shape, strides: Shape, item: int, room: int) -> Gather:
    """The cheapest way to read a box into `room` bytes (at least an item). strides: bytes, none negative."""
    order = sorted((dim for dim, size in enumerate(sizes) if size > 1), key=lambda dim: -strides[dim])
    group, pitches = [1] * len(sizes), list(strides)
    walked: list[int] = []
    inner, extent, cost, wanted = len(order), item, CALL + item, item
    while inner:  # as many of the inner dims as possible in one read
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
    for dim in reversed(order[:inner]):  # and as many such reads as there is room for
        pitches[dim] = _odd_lines(extent)
        group[dim] = min(sizes[dim], (room - extent) // pitches[dim] + 1)
        walked.insert(0, dim)
        extent += (group[dim] - 1) * pitches[dim]
        if group[dim] < sizes[dim]:
            break
    return Gather(tuple(group), tuple(pitches), tuple(walked), nbytes, nbytes > wanted, tuple(order))


def groups(sizes: Shape, group: Shape) -> Iterator[tuple[Shape, Shape]]:
    """A box in groups, as (offsets, sizes)."""
    for at in product(*(range(0, size, step) for size, step in zip(sizes, group, strict=True))):
        yield at, tuple(min(step, size - low) for low, size, step in zip(at, sizes, group, strict=True))


def overlap(low: Shape, sizes: Shape, other: Shape, others: Shape) -> tuple[Shape, Shape] | None:
    """What two boxes share, as (offsets, sizes); None where that is nothing."""
    begin = tuple(map(max, low, other))
    shared = tuple(map(sub, map(min, map(add, low, sizes), map(add, other, others)), begin))
    return None if min(shared) <= 0 else (begin, shared)


def put(values: Array, out: Array, gather: Gather, cast: Cast | None, room: Array) -> None:
    """Copy what has landed, or a part of it, to its place, with its cast. room: bytes of scratch."""
    order = gather.order
    if not order or order[-1] == max(order) or (gather.walked and cast is None):
        _move(values, out, cast)
        return
    order = (*(dim for dim in range(values.ndim) if dim not in order), *order)
    values, out = values.transpose(order), out.transpose(order)
    *outer, inner = values.shape
    pitch = _odd_lines(inner * out.itemsize) // out.itemsize
    nbytes = prod(outer) * pitch * out.itemsize
    if nbytes > len(room):  # short rows far apart, or elements that serve several places
        _move(values, out, cast)
        return
    packed = room[:nbytes].view(out.dtype).reshape(*outer, pitch)[..., :inner]
    _move(values, packed, cast)
    raw = RAW[out.itemsize]
    np.copyto(out.view(raw), packed.view(raw))  # numpy has no fast copy of ml_dtypes' own dtypes


def _move(values: Array, out: Array, cast: Cast | None) -> None:
    if cast is None:
        np.copyto(out, values)
    else:
        cast.put(values, out)


def _odd_lines(nbytes: int) -> int:
    """Bytes from one row of nbytes to the next in memory: whole lines of the cache, an odd number of them."""
    return (-(-nbytes // _LINE) | 1) * _LINE
