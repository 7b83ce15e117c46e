"""Step 1: the weights that the model is made of, the checkpoint's own or a base model's, under their trained names."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from ckptconv.errors import CkptconvError
from ckptconv.plan.records import Left
from ckptconv.plan.stored import Stored
from ckptconv.plan.tied import take_apart
from ckptconv.tensors.checkpoint import Checkpoint
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
    """

    tensors: Mapping[str, View]
    naming: str
    config: dict[str, Any] | None
    shared: tuple[View, ...] = ()
    stored: tuple[View, ...] = ()
    left: tuple[Left, ...] = ()
    notes: tuple[str, ...] = ()


def choose_weights(stored: Stored, config: dict[str, Any] | None, base: Checkpoint | None) -> Weights:
    """The checkpoint's weights, or for LoRA stored alone those of `base` with what was trained whole in their place.

    Raises:
        CkptconvError: for a module that was trained whole and that the base model does not have.
    """
    parts, naming = stored.parts, stored.checkpoint.naming
    if not parts.factors:
        return Weights(parts.weights, naming, config)
    updated = [each.weight for each in parts.factors]
    if base is None:
        apart = take_apart(parts.weights, updated, config)
        shared = tuple(apart.weights[head] for head in apart.heads)
        return Weights(apart.weights, naming, apart.config, shared, notes=apart.notes)
    originals = {name: tensor.view for name, tensor in base.tensors.items()}
    apart = take_apart(originals, [*updated, *parts.trained], config)
    for name in parts.trained:
        if name not in apart.weights:
            raise CkptconvError(f"{name} was trained whole, but the base model has no such weight")
    weights = {**apart.weights, **{name: parts.weights[name] for name in parts.trained}}
    kept = list(weights.values())
    reason = "replaced by its trained copy (modules_to_save)"
    left = [
        (f"base: {name}", view, reason)
        for name, view in originals.items()
        if weights[name] is not view and not is_among(view, kept)
    ]
    heads = [weights[head] for head in apart.heads]
    shared = tuple(view for view in heads if is_among(view, originals.values()))
    return Weights(
        weights, base.naming, apart.config, shared, tuple(originals.values()), tuple(left), apart.notes
    )


def is_among(view: View, views: Iterable[View]) -> bool:
    """True where this very object is one of them."""
    return any(view is other for other in views)
