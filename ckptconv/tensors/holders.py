"""Which rank stores which elements of a tensor, from the chunks of its view or from a receipt."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from functools import cached_property
from math import prod
from typing import Any

import numpy as np

from ckptconv.tensors.boxes import Box, Shape, Slice, box_around
from ckptconv.tensors.view import View

Array = np.ndarray[Any, np.dtype[Any]]


class Holders:
    """Rank -> boxes in a tensor of `stored` shape, whose elements in C order are read with `shape`."""

    def __init__(self, boxes: Callable[[], dict[int, list[Box]]], stored: Shape, shape: Shape) -> None:
        self._make, self._stored, self._shape = boxes, stored, shape

    @classmethod
    def of_view(cls, view: View, shape: Shape, rank_of: Mapping[str, int]) -> Holders:
        """From a view's chunks and the ranks that wrote its files. The boxes are made once they are asked for."""
        return cls(lambda: _boxes_of(view, rank_of), view.shape, shape)

    @classmethod
    def of_parts(cls, parts: Sequence[Slice], shape: Shape) -> Holders:
        """The holders from known boxes, as a receipt lists them."""
        boxes: dict[int, list[Box]] = {}
        for part in parts:
            boxes.setdefault(part.rank, []).append(part.box)
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
            for box in self._boxes[rank]
            if box.offsets[0] <= high and box.ends[0] > low and _any_inside(places, box)
        }

    def part(self, rank: int) -> Slice:
        """The bounding box of what the rank stores; whole rows if the tensor has another shape than its source."""
        box = box_around(self._boxes[rank])
        if self._stored == self._shape or not self._shape:
            return Slice(rank, box.offsets, box.sizes)
        width = prod(self._shape[1:])
        first = box.position_in(self._stored)
        last = Box(tuple(end - 1 for end in box.ends), box.sizes).position_in(self._stored)
        rows = last // width - first // width + 1
        return Slice(rank, (first // width, *(0 for _ in self._shape[1:])), (rows, *self._shape[1:]))

    def parts(self) -> tuple[Slice, ...]:
        """One box per rank if these boxes tile the tensor, else ()."""
        found = tuple(self.part(rank) for rank, boxes in sorted(self._boxes.items()) if boxes)
        exact = all(part.box.volume == sum(box.volume for box in self._boxes[part.rank]) for part in found)
        return found if exact and sum(part.box.volume for part in found) == prod(self._shape) else ()


def _boxes_of(view: View, rank_of: Mapping[str, int]) -> dict[int, list[Box]]:
    boxes: dict[int, list[Box]] = {}
    for chunk in view.chunks:
        if chunk.file in rank_of and all(chunk.sizes):
            boxes.setdefault(rank_of[chunk.file], []).append(chunk.box)
    return boxes


def _any_inside(places: tuple[Array, ...], box: Box) -> bool:
    inside = np.ones(len(places[0]), bool)
    for place, low, high in zip(places, box.offsets, box.ends, strict=True):
        inside &= (place >= low) & (place < high)
    return bool(inside.any())
