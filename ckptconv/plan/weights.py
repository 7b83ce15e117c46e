"""Step 1: collects the model's weights, from the checkpoint or from a base model, under their trained names."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from types import MappingProxyType
from typing import Any, NamedTuple

from ckptconv.plan.records import Left
from ckptconv.plan.stored import Stored
from ckptconv.plan.tied import take_apart
from ckptconv.tensors.view import View


class Weights(NamedTuple):
    """The weights by trained name.

    Args:
        tensors: by trained name, without LoRA factors.
        naming: whose names they have; see `Checkpoint.naming`.
        config: the model's, with tie_word_embeddings false if an adapter separated head and embedding.
        shared: embeddings whose bytes also fill a head before its update. The ledger counts them once.
        stored: the tensors that a base model adds to the stored ones.
        left: base weights that are replaced by their trained copies.
        notes: what the user must know.
        held: trained names of the base model's weights that the adapter holds completely.
        dtypes: trained name -> the dtype of the base model's weight, if its replacement has another one.
    """

    tensors: Mapping[str, View]
    naming: str
    config: dict[str, Any] | None
    shared: tuple[View, ...] = ()
    stored: tuple[View, ...] = ()
    left: tuple[Left, ...] = ()
    notes: tuple[str, ...] = ()
    dtypes: Mapping[str, str] = MappingProxyType({})
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
    """True if this object itself, not an equal one, is among the views."""
    return any(view is other for other in views)
