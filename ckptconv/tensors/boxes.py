"""A box of a tensor's elements: the one record behind chunks, shards, slices and pieces."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from math import prod
from typing import NamedTuple

Shape = tuple[int, ...]


class Box(NamedTuple):
    """Elements offsets[d] .. offsets[d] + sizes[d] - 1 along each dim d of a tensor."""

    offsets: Shape
    sizes: Shape

    @property
    def ends(self) -> Shape:
        """One past the last element along each dim."""
        return tuple(map(int.__add__, self.offsets, self.sizes))

    @property
    def volume(self) -> int:
        """How many elements there are in it."""
        return prod(self.sizes)

    def shifted(self, by: Shape) -> Box:
        """The same box in a larger tensor, in which this box's tensor begins at `by`."""
        return Box(tuple(map(int.__add__, self.offsets, by)), self.sizes)

    def overlaps(self, other: Box) -> bool:
        """True if both hold one element or more in common. Two scalars do."""
        return all(
            low < other_low + other_size and other_low < low + size
            for low, size, other_low, other_size in zip(*self, *other, strict=True)
        )

    def is_contiguous_in(self, shape: Shape) -> bool:
        """True if its elements follow each other in a row-major tensor of that shape."""
        first = next((d for d, size in enumerate(self.sizes) if size > 1), len(self.sizes))
        return self.sizes[first + 1 :] == shape[first + 1 :]

    def position_in(self, shape: Shape) -> int:
        """The row-major position of its first element in a tensor of that shape."""
        position = 0
        for offset, size in zip(self.offsets, shape, strict=True):
            position = position * size + offset
        return position


class Chunk(NamedTuple):
    """A box of a view, and where its elements are stored.

    Args:
        offsets: the first corner of the box, in elements of the view.
        sizes: the size of the box along each dim, in elements.
        file: the file that holds the elements.
        start: the byte of that file at which the first element begins.
        strides: bytes from one element to the next along each dim; 0 for an expanded dim.
    """

    offsets: Shape
    sizes: Shape
    file: str
    start: int
    strides: Shape

    @property
    def box(self) -> Box:
        return Box(self.offsets, self.sizes)


def box_around(boxes: Iterable[Box]) -> Box:
    """The smallest box that holds them all. There must be one at least."""
    boxes = list(boxes)
    if len(boxes) == 1:
        return boxes[0]
    begin = tuple(map(min, zip(*(box.offsets for box in boxes), strict=True)))
    end = tuple(map(max, zip(*(box.ends for box in boxes), strict=True)))
    return Box(begin, tuple(map(int.__sub__, end, begin)))


class Slice(NamedTuple):
    """The box of a tensor that a rank stores, in elements; the box around them where it stores several pieces."""

    rank: int
    offsets: Shape
    sizes: Shape

    @property
    def box(self) -> Box:
        return Box(self.offsets, self.sizes)


def contiguous_strides(shape: Sequence[int], item: int) -> Shape:
    """Byte strides of a C-contiguous tensor with `item` bytes per element."""
    strides, step = [], item
    for size in reversed(shape):
        strides.append(step)
        step *= size
    return tuple(reversed(strides))
