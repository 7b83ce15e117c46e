"""Which rank stores which elements of a tensor, from the chunks of its view or from a receipt."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from functools import cached_property
from math import prod
from typing import Any, NamedTuple

import numpy as np

from ckptconv.tensors.view import Shape, View

Array = np.ndarray[Any, np.dtype[Any]]
Box = tuple[Shape, Shape]  # its first corner, and the one past its last element


class Part(NamedTuple):
    """The box of a tensor that a rank stores, in elements."""

    rank: int
    offsets: Shape
    sizes: Shape


class Holders:
    """Rank -> boxes in a tensor of `stored` shape, whose elements in C order are read with `shape`."""

    def __init__(self, boxes: Callable[[], dict[int, list[Box]]], stored: Shape, shape: Shape) -> None:
        self._make, self._stored, self._shape = boxes, stored, shape

    @classmethod
    def of_view(cls, view: View, shape: Shape, rank_of: Mapping[str, int]) -> Holders:
        """From a view's chunks and the ranks that wrote its files. The boxes are made once they are asked for."""
        return cls(lambda: _boxes_of(view, rank_of), view.shape, shape)

    @classmethod
    def of_parts(cls, parts: Sequence[Part], shape: Shape) -> Holders:
        """From boxes that are known, as a receipt lists them."""
        boxes: dict[int, list[Box]] = {}
        for rank, offsets, sizes in parts:
            boxes.setdefault(rank, []).append((offsets, tuple(map(int.__add__, offsets, sizes))))
        return cls(lambda: boxes, shape, shape)

    @cached_property
    def _boxes(self) -> dict[int, list[Box]]:
        return self._make()

    def of(self, flat: Array, known: set[int]) -> set[int]:
        """The ranks, beyond those known, that store any of the elements at these ascending flat indices."""
        ranks = [rank for rank in self._boxes if rank not in known]
        if not self._stored or not ranks:
            return set(ranks)
        places = np.unravel_index(flat, self._stored)
        low, high = int(places[0][0]), int(places[0][-1])
        return {
            rank
            for rank in ranks
            for begin, end in self._boxes[rank]
            if begin[0] <= high and end[0] > low and _any_inside(places, begin, end)
        }

    def part(self, rank: int) -> Part:
        """What the rank stores: a bounding box; whole rows where the tensor has another shape than its source."""
        begin, end = _bounds(self._boxes[rank])
        if self._stored == self._shape or not self._shape:
            return Part(rank, begin, tuple(e - b for b, e in zip(begin, end, strict=True)))
        width = prod(self._shape[1:])
        first, last = (
            int(np.ravel_multi_index(at, self._stored)) for at in (begin, tuple(e - 1 for e in end))
        )
        rows = last // width - first // width + 1
        return Part(rank, (first // width, *(0 for _ in self._shape[1:])), (rows, *self._shape[1:]))

    def parts(self) -> tuple[Part, ...]:
        """One box a rank where that is the whole truth: they tile the tensor. Else nothing."""
        found = tuple(self.part(rank) for rank, boxes in sorted(self._boxes.items()) if boxes)
        exact = all(prod(part.sizes) == sum(_volume(box) for box in self._boxes[part.rank]) for part in found)
        return found if exact and sum(prod(part.sizes) for part in found) == prod(self._shape) else ()


def _boxes_of(view: View, rank_of: Mapping[str, int]) -> dict[int, list[Box]]:
    boxes: dict[int, list[Box]] = {}
    for chunk in view.chunks:
        if chunk.file in rank_of and all(chunk.sizes):
            ends = tuple(map(int.__add__, chunk.offsets, chunk.sizes))
            boxes.setdefault(rank_of[chunk.file], []).append((chunk.offsets, ends))
    return boxes


def _bounds(boxes: Sequence[Box]) -> Box:
    begin = tuple(map(min, zip(*(low for low, _ in boxes), strict=True)))
    return begin, tuple(map(max, zip(*(high for _, high in boxes), strict=True)))


def _volume(box: Box) -> int:
    return prod(high - low for low, high in zip(*box, strict=True))


def _any_inside(places: tuple[Array, ...], begin: Shape, end: Shape) -> bool:
    inside = np.ones(len(places[0]), bool)
    for place, low, high in zip(places, begin, end, strict=True):
        inside &= (place >= low) & (place < high)
    return bool(inside.any())
