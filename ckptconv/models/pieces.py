"""Pieces: the tensors that layout changes work on, and the moves that several changes share."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from math import prod
from typing import Any, Generic, TypeVar

from ckptconv.errors import CkptconvError, Kind
from ckptconv.tensors.view import Shape, View, permute, unflatten

T = TypeVar("T")  # a View, a numpy array or a torch tensor


@dataclass(frozen=True)
class Piece(Generic[T]):
    """A tensor of `shape` whose elements are those of `value`, in C order."""

    value: T
    shape: Shape

    @classmethod
    def of(cls, value: T) -> Piece[T]:
        """A value with its own shape."""
        array: Any = value
        return cls(value, tuple(array.shape))

    @property
    def plain(self) -> T:
        """The value with the shape of the piece.

        Raises:
            CkptconvError: the value is a view, and its dims would have to be merged.
        """
        value: Any = self.value
        if tuple(value.shape) == self.shape:
            return self.value
        if isinstance(value, View):
            raise CkptconvError(
                "a layout change would need an interleaved tensor in its merged shape",
                found=list(value.shape),
                wanted=list(self.shape),
                kind=Kind.UNSUPPORTED,
            )
        return value.reshape(self.shape)


Pieces = list[Piece[T]]


def exactly(pieces: Pieces[T], count: int) -> Pieces[T]:
    """The pieces, if there are `count` of them."""
    if len(pieces) != count:
        raise CkptconvError(f"a layout change of {count} tensors was given {len(pieces)}")
    return pieces


def swap(value: T, first: int, second: int) -> T:
    array: Any = value
    dims = list(range(len(array.shape)))
    dims[first], dims[second] = dims[second], dims[first]
    return permute(value, dims)


def regroup(piece: Piece[T], dim: int, sizes: Sequence[int], first: int, second: int) -> Piece[T]:
    """Unflatten one dim, swap two dims, and label the result with the old shape.

    Args:
        piece: the piece.
        dim: the dim to unflatten.
        sizes: its new sizes; -1 for the one that follows from the others.
        first: one of the dims to swap, counted after the unflattening.
        second: the other one.
    """
    rest = piece.shape[dim] // -prod(sizes)
    whole = tuple(rest if size == -1 else size for size in sizes)
    return Piece(swap(unflatten(piece.plain, dim, whole), first, second), piece.shape)


def as_groups(piece: Piece[T], sizes: Shape) -> T:
    """A piece with its rows unflattened into these sizes; a piece that Grouped has unflattened already stays as it is."""
    shape = _shape(piece.value)
    if shape != piece.shape and shape[:2] == (sizes[0], prod(sizes[1:])):
        return unflatten(piece.value, 1, sizes[1:])
    return unflatten(piece.plain, 0, sizes)


def same_label(pieces: Pieces[T], dim: int) -> list[T]:
    """Values that can be concatenated along dim: if some have more dims than their label, the others are unflattened too."""
    inner = {_shape(piece.value)[1:] for piece in pieces if _shape(piece.value) != piece.shape}
    if dim != 0 or len(inner) != 1:
        return [piece.plain for piece in pieces]
    (like,) = inner
    count = prod(like[: len(like) - len(pieces[0].shape) + 1])
    return [
        piece.value
        if _shape(piece.value)[1:] == like
        else unflatten(piece.value, 0, (piece.shape[0] // count, *like[: len(like) - len(piece.shape) + 1]))
        for piece in pieces
    ]


def _shape(value: object) -> Shape:
    array: Any = value
    return tuple(array.shape)
