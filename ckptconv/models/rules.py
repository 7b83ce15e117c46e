"""Layout changes: how the elements of trained tensors are reordered for the Hub, and back.

A layout change rewrites a list of pieces: `split` goes from the trainer to the Hub, `join` back. All use only the moves
of `tensors/view.py`, so the same change works on views, numpy arrays and torch tensors. A piece is a value and the shape
with which its elements are read in C order. Merging dims changes only that shape, because a view cannot be flattened.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol, TypeVar

from ckptconv.errors import CkptconvError
from ckptconv.models.pieces import Piece, Pieces, as_groups, exactly, regroup, same_label, swap
from ckptconv.tensors.view import Shape, cat, narrow, split, stack, unbind, unflatten

T = TypeVar("T")  # a View, a numpy array or a torch tensor


class Layout(Protocol):
    """A layout change: `split` goes to the Hub, `join` back to the trainer; join(split(x)) == x."""

    def split(self, pieces: Pieces[T]) -> Pieces[T]: ...
    def join(self, pieces: Pieces[T]) -> Pieces[T]: ...


@dataclass(frozen=True)
class Cut:
    """The trained tensor is a concatenation of `parts` equal tensors along `dim`, such as gate and up of `gate_up_proj`."""

    dim: int
    parts: int

    def split(self, pieces: Pieces[T]) -> Pieces[T]:
        (piece,) = exactly(pieces, 1)
        size = piece.shape[self.dim]
        if size % self.parts:
            raise CkptconvError(
                f"dim {self.dim} of {size} elements cannot be cut into {self.parts} equal parts",
                hint="transformers would cut it into unequal parts: convert this model with its trainer's tools",
            )
        return [Piece.of(part) for part in split(piece.plain, self.dim, [size // self.parts] * self.parts)]

    def join(self, pieces: Pieces[T]) -> Pieces[T]:
        pieces = exactly(pieces, self.parts)
        shape = list(pieces[0].shape)
        shape[self.dim] = sum(piece.shape[self.dim] for piece in pieces)
        return [Piece(cat(same_label(pieces, self.dim), self.dim), tuple(shape))]


@dataclass(frozen=True)
class Unstack:
    """Each of `lists` trained tensors is a stack along `dim`, such as of experts; the Hub has one tensor per entry."""

    dim: int = 0
    lists: int = 1

    def split(self, pieces: Pieces[T]) -> Pieces[T]:
        pieces = exactly(pieces, self.lists)
        return [Piece.of(one) for piece in pieces for one in unbind(piece.plain, self.dim)]

    def join(self, pieces: Pieces[T]) -> Pieces[T]:
        each = len(pieces) // self.lists
        groups = [exactly(pieces, self.lists * each)[i * each : (i + 1) * each] for i in range(self.lists)]
        return [Piece.of(stack([piece.plain for piece in group], self.dim)) for group in groups]


@dataclass(frozen=True)
class Swap:
    """Two dims are swapped."""

    first: int
    second: int

    def split(self, pieces: Pieces[T]) -> Pieces[T]:
        return [Piece.of(swap(piece.plain, self.first, self.second)) for piece in pieces]

    join = split


@dataclass(frozen=True)
class Halves:
    """The two halves along `dim` are swapped."""

    dim: int

    def split(self, pieces: Pieces[T]) -> Pieces[T]:
        cut = Cut(self.dim, 2)
        return [cut.join(cut.split([piece])[::-1])[0] for piece in pieces]

    join = split


@dataclass(frozen=True)
class Order:
    """The tensors are in another order: `places` has the trained index of each Hub tensor."""

    places: tuple[int, ...]

    def split(self, pieces: Pieces[T]) -> Pieces[T]:
        pieces = exactly(pieces, len(self.places))
        return [pieces[place] for place in self.places]

    def join(self, pieces: Pieces[T]) -> Pieces[T]:
        pieces = exactly(pieces, len(self.places))
        return [pieces[self.places.index(place)] for place in range(len(pieces))]


@dataclass(frozen=True)
class Pairs:
    """The two halves along `dim` of the trained tensor are interleaved entry by entry on the Hub."""

    dim: int

    def split(self, pieces: Pieces[T]) -> Pieces[T]:
        return [regroup(piece, self.dim, (2, -1), self.dim, self.dim + 1) for piece in pieces]

    def join(self, pieces: Pieces[T]) -> Pieces[T]:
        return [regroup(piece, self.dim, (-1, 2), self.dim, self.dim + 1) for piece in pieces]


@dataclass(frozen=True)
class Rope:
    """Rows that rotary embeddings rotate together: in training the i-th of each half of a head, on the Hub adjacent rows.

    Args:
        heads: the number of heads, along dim 0.
        only: the indices of the pieces that are changed (query and key of a fused projection); None for all.
    """

    heads: int
    only: tuple[int, ...] | None = None

    def split(self, pieces: Pieces[T]) -> Pieces[T]:
        return self._each(pieces, (self.heads, 2, -1))

    def join(self, pieces: Pieces[T]) -> Pieces[T]:
        return self._each(pieces, (self.heads, -1, 2))

    def _each(self, pieces: Pieces[T], sizes: Shape) -> Pieces[T]:
        chosen = range(len(pieces)) if self.only is None else self.only
        return [regroup(p, 0, sizes, 1, 2) if i in chosen else p for i, p in enumerate(pieces)]


@dataclass(frozen=True)
class Modalities:
    """Stacks of experts, one per modality (text, vision), become one list of experts on the Hub, text first.

    Args:
        stacks: the number of modalities.
        projections: the number of projections that are fused in a stack along `dim` (2: gate and up).
        stack_dim: the dim of the experts.
        dim: the dim of the fused projections.
    """

    stacks: int
    projections: int
    stack_dim: int = 0
    dim: int = 1

    def split(self, pieces: Pieces[T]) -> Pieces[T]:
        cut, unstack = Cut(self.dim, self.projections), Unstack(self.stack_dim)
        fused = [cut.split([piece]) for piece in exactly(pieces, self.stacks)]
        return [one for i in range(self.projections) for parts in fused for one in unstack.split([parts[i]])]

    def join(self, pieces: Pieces[T]) -> Pieces[T]:
        cut, unstack = Cut(self.dim, self.projections), Unstack(self.stack_dim)
        each = len(pieces) // (self.projections * self.stacks)
        groups = [pieces[i : i + each] for i in range(0, len(pieces), each)]
        stacks = [unstack.join(group)[0] for group in groups]
        return [cut.join(stacks[i :: self.stacks])[0] for i in range(self.stacks)]


@dataclass(frozen=True)
class Grouped:
    """Rows in groups of several parts, such as [queries, key, value] of every KV head; the Hub has one tensor per part.

    Source: megatron/core/transformer/attention.py, SelfAttention.get_query_key_value_tensors.

    Args:
        groups: the number of groups.
        parts: the number of rows of each part in one group.
    """

    groups: int
    parts: tuple[int, ...]

    def split(self, pieces: Pieces[T]) -> Pieces[T]:
        (piece,) = exactly(pieces, 1)
        grouped = unflatten(piece.plain, 0, (self.groups, sum(self.parts)))
        found = split(grouped, 1, self.parts)
        sizes = [(self.groups * rows, *piece.shape[1:]) for rows in self.parts]
        return [Piece(part, size) for part, size in zip(found, sizes, strict=True)]

    def join(self, pieces: Pieces[T]) -> Pieces[T]:
        pieces = exactly(pieces, len(self.parts))
        parts = [
            as_groups(piece, (self.groups, rows)) for piece, rows in zip(pieces, self.parts, strict=True)
        ]
        return [Piece(cat(parts, 1), (self.groups * sum(self.parts), *pieces[0].shape[1:]))]


@dataclass(frozen=True)
class Ungrouped:
    """Rows in groups of several parts; in the Hub's tensor, the first parts of all groups come first, then the second ones.

    Args:
        groups: the number of groups.
        parts: the number of rows of each part in one group.
    """

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
        """The rows of these (start, count), concatenated."""
        (piece,) = exactly(pieces, 1)
        if piece.shape[0] != self.groups * sum(self.parts):
            raise CkptconvError(
                f"{piece.shape[0]} rows are not {self.groups} groups of {' + '.join(map(str, self.parts))}"
            )
        return [Piece(cat([narrow(piece.plain, 0, start, rows) for start, rows in spans], 0), piece.shape)]


@dataclass(frozen=True)
class Gates:
    """The first tensor's rows: each group has its queries, then their gates; on the Hub each query is followed by its gate.

    Source: megatron/core/transformer/attention.py, SelfAttention with attention_output_gate.

    Args:
        groups: the number of groups (KV heads).
        queries: the number of query heads in a group.
        head_dim: the number of rows of a head.
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
        return [Piece(swap(as_groups(query, sizes), 1, 2), query.shape), *rest]


@dataclass(frozen=True)
class Turned:
    """The reverse of a layout change: `split` joins, and `join` splits."""

    layout: Layout

    def split(self, pieces: Pieces[T]) -> Pieces[T]:
        return self.layout.join(pieces)

    def join(self, pieces: Pieces[T]) -> Pieces[T]:
        return self.layout.split(pieces)


def to_hub_layout(layouts: Sequence[Layout], pieces: Pieces[T]) -> Pieces[T]:
    """Apply all layout changes, from the trained tensors to the Hub's."""
    for layout in layouts:
        pieces = layout.split(pieces)
    return pieces


def to_trained_layout(layouts: Sequence[Layout], pieces: Pieces[T]) -> Pieces[T]:
    """Apply all layout changes in reverse, from the Hub's tensors to the trained ones."""
    for layout in reversed(layouts):
        pieces = layout.join(pieces)
    return pieces
