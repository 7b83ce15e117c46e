"""Rules: a pair of name patterns and the layout changes between them, both ways.

A layout change rewrites a list of pieces: `split` goes from the trained names to the Hub's, `join` back. All of them
are moves of `view`, so one rule serves views, numpy arrays and torch tensors. A piece is a value and the shape that
its C-order content is read with: merging dims is that label alone, since no view can be flattened.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from math import prod
from typing import Any, Generic, Protocol, TypeVar

from ckptconv.errors import CkptconvError, Kind
from ckptconv.tensors.view import Shape, View, cat, narrow, permute, split, stack, unbind, unflatten

T = TypeVar("T")  # a View, a numpy array or a torch tensor


@dataclass(frozen=True)
class Piece(Generic[T]):
    """A tensor of `shape` whose elements are those of `value` in C order."""

    value: T
    shape: Shape

    @classmethod
    def of(cls, value: T) -> Piece[T]:
        """A value under its own shape."""
        array: Any = value
        return cls(value, tuple(array.shape))

    @property
    def plain(self) -> T:
        """The value in its labelled shape. A view whose label merges dims has none: that is refused."""
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


class Layout(Protocol):
    """A layout change: `split` towards the Hub, `join` towards the trainer; join(split(x)) == x."""

    def split(self, pieces: Pieces[T]) -> Pieces[T]: ...
    def join(self, pieces: Pieces[T]) -> Pieces[T]: ...


@dataclass(frozen=True)
class Cut:
    """One tensor is `parts` equal ones, one after another along dim (gate and up of `gate_up_proj`)."""

    dim: int
    parts: int

    def split(self, pieces: Pieces[T]) -> Pieces[T]:
        (piece,) = _exactly(pieces, 1)
        size = piece.shape[self.dim]
        if size % self.parts:
            raise CkptconvError(
                f"dim {self.dim} of {size} elements cannot be cut into {self.parts} equal parts",
                hint="transformers would cut it unevenly here and mix the parts up: convert this model with its trainer",
            )
        return [Piece.of(part) for part in split(piece.plain, self.dim, [size // self.parts] * self.parts)]

    def join(self, pieces: Pieces[T]) -> Pieces[T]:
        pieces = _exactly(pieces, self.parts)
        shape = list(pieces[0].shape)
        shape[self.dim] = sum(piece.shape[self.dim] for piece in pieces)
        return [Piece(cat(_same_label(pieces, self.dim), self.dim), tuple(shape))]


@dataclass(frozen=True)
class Unstack:
    """Each of `lists` tensors is a stack along dim (of experts); all of the first come before those of the second."""

    dim: int = 0
    lists: int = 1

    def split(self, pieces: Pieces[T]) -> Pieces[T]:
        pieces = _exactly(pieces, self.lists)
        return [Piece.of(one) for piece in pieces for one in unbind(piece.plain, self.dim)]

    def join(self, pieces: Pieces[T]) -> Pieces[T]:
        each = len(pieces) // self.lists
        groups = [_exactly(pieces, self.lists * each)[i * each : (i + 1) * each] for i in range(self.lists)]
        return [Piece.of(stack([piece.plain for piece in group], self.dim)) for group in groups]


@dataclass(frozen=True)
class Swap:
    """Two dims change places."""

    first: int
    second: int

    def split(self, pieces: Pieces[T]) -> Pieces[T]:
        return [Piece.of(_swap(piece.plain, self.first, self.second)) for piece in pieces]

    join = split


@dataclass(frozen=True)
class Halves:
    """The two halves along dim change places."""

    dim: int

    def split(self, pieces: Pieces[T]) -> Pieces[T]:
        cut = Cut(self.dim, 2)
        return [cut.join(cut.split([piece])[::-1])[0] for piece in pieces]

    join = split


@dataclass(frozen=True)
class Order:
    """The tensors change places. places: for each tensor of the Hub, its place in training."""

    places: tuple[int, ...]

    def split(self, pieces: Pieces[T]) -> Pieces[T]:
        pieces = _exactly(pieces, len(self.places))
        return [pieces[place] for place in self.places]

    def join(self, pieces: Pieces[T]) -> Pieces[T]:
        pieces = _exactly(pieces, len(self.places))
        return [pieces[self.places.index(place)] for place in range(len(pieces))]


@dataclass(frozen=True)
class Pairs:
    """Halves, one after another along dim in training, are interleaved row by row on the Hub."""

    dim: int

    def split(self, pieces: Pieces[T]) -> Pieces[T]:
        return [_regroup(piece, self.dim, (2, -1), self.dim, self.dim + 1) for piece in pieces]

    def join(self, pieces: Pieces[T]) -> Pieces[T]:
        return [_regroup(piece, self.dim, (-1, 2), self.dim, self.dim + 1) for piece in pieces]


@dataclass(frozen=True)
class Rope:
    """Rows of each head: halves that rotate together in training, neighbouring pairs on the Hub.

    only: which of the pieces (query and key of a fused projection), by place; None for all.
    """

    heads: int
    only: tuple[int, ...] | None = None

    def split(self, pieces: Pieces[T]) -> Pieces[T]:
        return self._each(pieces, (self.heads, 2, -1))

    def join(self, pieces: Pieces[T]) -> Pieces[T]:
        return self._each(pieces, (self.heads, -1, 2))

    def _each(self, pieces: Pieces[T], sizes: Shape) -> Pieces[T]:
        chosen = range(len(pieces)) if self.only is None else self.only
        return [_regroup(p, 0, sizes, 1, 2) if i in chosen else p for i, p in enumerate(pieces)]


@dataclass(frozen=True)
class Modalities:
    """Fused expert stacks, one a modality (text, vision), are one list of experts on the Hub, text first.

    stacks: how many modalities. projections: what is fused in a stack along dim (2: gate and up).
    """

    stacks: int
    projections: int
    stack_dim: int = 0
    dim: int = 1

    def split(self, pieces: Pieces[T]) -> Pieces[T]:
        cut, unstack = Cut(self.dim, self.projections), Unstack(self.stack_dim)
        fused = [cut.split([piece]) for piece in _exactly(pieces, self.stacks)]
        return [one for i in range(self.projections) for parts in fused for one in unstack.split([parts[i]])]

    def join(self, pieces: Pieces[T]) -> Pieces[T]:
        cut, unstack = Cut(self.dim, self.projections), Unstack(self.stack_dim)
        each = len(pieces) // (self.projections * self.stacks)
        groups = [pieces[i : i + each] for i in range(0, len(pieces), each)]
        stacks = [unstack.join(group)[0] for group in groups]
        return [cut.join(stacks[i :: self.stacks])[0] for i in range(self.stacks)]


@dataclass(frozen=True)
class Grouped:
    """Rows in groups of several parts each, as [its queries, k, v] for every KV head; on the Hub a tensor for each part.

    parts: rows of each part in one group.
    Source: megatron/core/transformer/attention.py, SelfAttention.get_query_key_value_tensors.
    """

    groups: int
    parts: tuple[int, ...]

    def split(self, pieces: Pieces[T]) -> Pieces[T]:
        (piece,) = _exactly(pieces, 1)
        grouped = unflatten(piece.plain, 0, (self.groups, sum(self.parts)))
        found = split(grouped, 1, self.parts)
        sizes = [(self.groups * rows, *piece.shape[1:]) for rows in self.parts]
        return [Piece(part, size) for part, size in zip(found, sizes, strict=True)]

    def join(self, pieces: Pieces[T]) -> Pieces[T]:
        pieces = _exactly(pieces, len(self.parts))
        parts = [_rows(piece, (self.groups, rows)) for piece, rows in zip(pieces, self.parts, strict=True)]
        return [Piece(cat(parts, 1), (self.groups * sum(self.parts), *pieces[0].shape[1:]))]


@dataclass(frozen=True)
class Ungrouped:
    """Rows in groups of several parts each in training; on the Hub all first parts, all second ones, … in one tensor."""

    groups: int
    parts: tuple[int, ...]

    def split(self, pieces: Pieces[T]) -> Pieces[T]:
        starts = [group * sum(self.parts) for group in range(self.groups)]
        inner = [sum(self.parts[:i]) for i in range(len(self.parts))]
        return self._taken(
            pieces, [(low + at, n) for at, n in zip(inner, self.parts, strict=True) for low in starts]
        )

    def join(self, pieces: Pieces[T]) -> Pieces[T]:
        starts = [self.groups * sum(self.parts[:i]) for i in range(len(self.parts))]
        parts = list(zip(starts, self.parts, strict=True))
        return self._taken(pieces, [(at + group * n, n) for group in range(self.groups) for at, n in parts])

    def _taken(self, pieces: Pieces[T], spans: Sequence[tuple[int, int]]) -> Pieces[T]:
        """The rows of these (start, count), one after another."""
        (piece,) = _exactly(pieces, 1)
        if piece.shape[0] != self.groups * sum(self.parts):
            raise CkptconvError(
                f"{piece.shape[0]} rows are not {self.groups} groups of {' + '.join(map(str, self.parts))}"
            )
        return [Piece(cat([narrow(piece.plain, 0, start, rows) for start, rows in spans], 0), piece.shape)]


@dataclass(frozen=True)
class Gates:
    """The first tensor's rows: in every group all queries, then all their gates; on the Hub a query's gate follows it.

    Source: megatron/core/transformer/attention.py, SelfAttention with attention_output_gate.
    """

    groups: int
    queries: int
    head_dim: int

    def split(self, pieces: Pieces[T]) -> Pieces[T]:
        return self._turned(pieces, (self.groups, 2, self.queries, self.head_dim))

    def join(self, pieces: Pieces[T]) -> Pieces[T]:
        return self._turned(pieces, (self.groups, self.queries, 2, self.head_dim))

    def _turned(self, pieces: Pieces[T], sizes: Shape) -> Pieces[T]:
        query, *rest = pieces
        return [Piece(_swap(_rows(query, sizes), 1, 2), query.shape), *rest]


@dataclass(frozen=True)
class Turned:
    """A layout change the other way round: `split` joins and `join` splits."""

    layout: Layout

    def split(self, pieces: Pieces[T]) -> Pieces[T]:
        return self.layout.join(pieces)

    def join(self, pieces: Pieces[T]) -> Pieces[T]:
        return self.layout.split(pieces)


def to_hub_layout(layouts: Sequence[Layout], pieces: Pieces[T]) -> Pieces[T]:
    """Through all layout changes, from the trained tensors to the Hub's."""
    for layout in layouts:
        pieces = layout.split(pieces)
    return pieces


def to_trained_layout(layouts: Sequence[Layout], pieces: Pieces[T]) -> Pieces[T]:
    """Back: from the Hub's tensors to the trained ones."""
    for layout in reversed(layouts):
        pieces = layout.join(pieces)
    return pieces


def _exactly(pieces: Pieces[T], count: int) -> Pieces[T]:
    if len(pieces) != count:
        raise CkptconvError(f"a layout change of {count} tensors was given {len(pieces)}")
    return pieces


def _swap(value: T, first: int, second: int) -> T:
    array: Any = value
    dims = list(range(len(array.shape)))
    dims[first], dims[second] = dims[second], dims[first]
    return permute(value, dims)


def _regroup(piece: Piece[T], dim: int, sizes: Sequence[int], first: int, second: int) -> Piece[T]:
    """One dim unflattened, two dims swapped, and all read again in the old shape: a label on the same elements."""
    rest = piece.shape[dim] // -prod(sizes)
    whole = tuple(rest if size == -1 else size for size in sizes)
    return Piece(_swap(unflatten(piece.plain, dim, whole), first, second), piece.shape)


def _rows(piece: Piece[T], sizes: Shape) -> T:
    """A piece with its rows as dims of these sizes; one that Grouped left in groups is taken as it is."""
    shape = _shape(piece.value)
    if shape != piece.shape and shape[:2] == (sizes[0], prod(sizes[1:])):
        return unflatten(piece.value, 1, sizes[1:])
    return unflatten(piece.plain, 0, sizes)


def _same_label(pieces: Pieces[T], dim: int) -> list[T]:
    """Values that can be joined along dim: where some are labelled, the others are unflattened like them."""
    inner = {_shape(piece.value)[1:] for piece in pieces if _shape(piece.value) != piece.shape}
    if dim != 0 or len(inner) != 1:
        return [piece.plain for piece in pieces]
    (like,) = inner
    rows = prod(like[: len(like) - len(pieces[0].shape) + 1])
    return [
        piece.value
        if _shape(piece.value)[1:] == like
        else unflatten(piece.value, 0, (piece.shape[0] // rows, *like[: len(like) - len(piece.shape) + 1]))
        for piece in pieces
    ]


def _shape(value: object) -> Shape:
    array: Any = value
    return tuple(array.shape)
