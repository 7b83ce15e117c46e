"""Step 1: the weights that the model is made of, the checkpoint's own or a base model's, under their trained names."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

from ckptconv.plan.records import Left
from ckptconv.plan.stored import Stored
from ckptconv.plan.tied import take_apart
from ckptconv.tensors.view import View


@dataclass(frozen=True, slots=True)
class Weights:
    """The weights by trained name.

    Args:
        tensors: by trained name, without LoRA factors.
        naming: whose names they have; see `Checkpoint.naming`.
        config: the model's, with tie_word_embeddings false where an adapter took head and embedding apart.
        shared: embeddings whose bytes a head starts from too. The ledger counts them once.
        stored: what a base model adds to the stored tensors.
        left: base weights that their trained copies replace.
        notes: what the user must know.
        held: trained names of the base model's weights that the adapter holds whole.
        dtypes: trained name -> the dtype of the base model's weight, where what replaces it has another.
    """

    tensors: Mapping[str, View]
    naming: str
    config: dict[str, Any] | None
    shared: tuple[View, ...] = ()
    stored: tuple[View, ...] = ()
    left: tuple[Left, ...] = ()
    notes: tuple[str, ...] = ()
    dtypes: Mapping[str, str] = field(default_factory=dict)
    held: frozenset[str] = frozenset()


def own_weights(stored: Stored, config: dict[str, Any] | None) -> Weights:
    """The checkpoint's own weights."""
    parts, naming = stored.parts, stored.checkpoint.naming
    if not parts.factors:
        return Weights(parts.weights, naming, config)
    apart = take_apart(parts.weights, [each.weight for each in parts.factors], config)
    shared = tuple(apart.weights[head] for head in apart.heads)
    return Weights(apart.weights, naming, apart.config, shared, notes=apart.notes)


def is_among(view: View, views: Iterable[View]) -> bool:
    """True where this very object is one of them."""
    return any(view is other for other in views)
