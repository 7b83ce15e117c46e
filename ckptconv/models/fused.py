"""Layout changes of projections that are stored one after another in one tensor: queries, keys and values of a model."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TypeVar

from ckptconv.errors import CkptconvError
from ckptconv.models.family import Config, Rule
from ckptconv.models.nested import text_of
from ckptconv.models.pattern import Pattern
from ckptconv.models.pieces import Piece, Pieces
from ckptconv.models.rules import Layout, Rope, Turned
from ckptconv.tensors.view import cat, split

T = TypeVar("T")  # a View, a numpy array or a torch tensor


@dataclass(frozen=True)
class Parts:
    """One tensor's rows are several tensors, one after another.

    Args:
        rows: the rows of each part.
    """

    rows: tuple[int, ...]

    def split(self, pieces: Pieces[T]) -> Pieces[T]:
        (piece,) = pieces
        if piece.shape[0] != sum(self.rows):
            raise CkptconvError(f"{piece.shape[0]} rows are not {' + '.join(map(str, self.rows))}")
        return [Piece.of(part) for part in split(piece.plain, 0, self.rows)]

    def join(self, pieces: Pieces[T]) -> Pieces[T]:
        return [Piece.of(cat([piece.plain for piece in pieces], 0))]


@dataclass(frozen=True)
class Each:
    """Every piece has a layout change of its own; None leaves a piece as it is."""

    layouts: tuple[Layout | None, ...]

    def split(self, pieces: Pieces[T]) -> Pieces[T]:
        pairs = zip(pieces, self.layouts, strict=True)
        return [piece if layout is None else layout.split([piece])[0] for piece, layout in pairs]

    def join(self, pieces: Pieces[T]) -> Pieces[T]:
        pairs = zip(pieces, self.layouts, strict=True)
        return [piece if layout is None else layout.join([piece])[0] for piece, layout in pairs]


def QKVParts(trained: str, hub: str, interleaved: bool = False) -> Rule:
    """A tensor of all queries, then all keys, then all values.

    Args:
        trained: the trainer's pattern.
        hub: the Hub's pattern, with three names.
        interleaved: the rows that rotate together are neighbours in training; on the Hub they are halves of a head.
    """

    def layouts(config: Config) -> tuple[Layout, ...]:
        heads, groups, head_dim = _heads(config)
        parts = Parts((heads * head_dim, groups * head_dim, groups * head_dim))
        if not interleaved:
            return (parts,)
        return (parts, Each((Turned(Rope(heads)), Turned(Rope(groups)), None)))

    return Rule(Pattern(trained), Pattern(hub), layouts)


def Rotated(trained: str, hub: str, key: str) -> Rule:
    """A projection whose heads have neighbouring rows rotate together in training, and halves of a head on the Hub.

    Args:
        trained: the trainer's pattern.
        hub: the Hub's pattern.
        key: the config's key for the number of heads.
    """
    return Rule(Pattern(trained), Pattern(hub), lambda config: (Turned(Rope(count(config, key))),))


def count(config: Config, key: str) -> int:
    """Return the number of heads under a key of the config; that of the queries where it has no such key."""
    text = text_of(config)
    return int(text.get(key) or text["num_attention_heads"])


def _heads(config: Config) -> tuple[int, int, int]:
    """Return the number of query heads, of KV heads, and the size of a head."""
    text = text_of(config)
    heads = int(text["num_attention_heads"])
    head_dim = int(text.get("head_dim") or text["hidden_size"] // heads)
    return heads, count(config, "num_key_value_heads"), head_dim
