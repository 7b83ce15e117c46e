"""Step 3: tied heads. One is written once where its bytes are the embedding's, on its own where training changed it.

Ties are stated in module names, so a tensor is found by its trained name or by its Hub name.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass
from typing import Any

from ckptconv.errors import CkptconvError
from ckptconv.models import facts
from ckptconv.plan.records import Filled, Left
from ckptconv.tensors.view import View

Equal = Callable[[View, View], bool]  # do two views of one shape and dtype hold the same bytes?
_HEAD = "lm_head.weight"


class NeedsReading(CkptconvError):
    """A plan depends on stored values, and the caller did not say how to compare them."""


def unread(one: View, two: View) -> bool:
    """The comparison for plans that must not read: it refuses."""
    raise NeedsReading("the weights must be read to tell whether head and embedding are still tied")


@dataclass(frozen=True, slots=True)
class Tied:
    """The tensors that are left to write.

    Args:
        tensors: by final name, without the heads whose bytes are the embedding's.
        config: the model's, with tie_word_embeddings false where a head differs.
        left: the heads that are not written.
        notes: what the user must know.
    """

    tensors: Filled
    config: dict[str, Any] | None
    left: tuple[Left, ...] = ()
    notes: tuple[str, ...] = ()


def tie(named: Filled, config: dict[str, Any] | None, equal: Equal) -> Tied:
    """Drop the heads that repeat their embedding, where the config ties them.

    Args:
        named: the model's tensors by final name.
        config: the model's config.json.
        equal: compares two stored tensors; asked only about pairs that are not the same stored bytes anyway.
    """
    if config is None or not facts.says_tied(config):
        return Tied(named, config)
    hub = {fill.trained[0]: name for name, fill in named.items() if len(fill.trained) == 1}
    hub.update({name: name for name in named})
    kept, left, notes = dict(named), [], []
    for tied, repeated in facts.tied_pairs(config, hub):
        target, source = hub[tied], hub[repeated]
        one, two = named[target].source, named[source].source
        if target not in kept or not isinstance(one, View) or not isinstance(two, View):
            continue
        if same(one, two, equal):
            del kept[target]
            left.append((named[target].trained[0], one, f"tied: equal to {source}"))
            continue
        notes.append(
            f"{target} differs from {source} although the config ties them: "
            "both are written, tie_word_embeddings is set to false"
        )
        config = untied(config)
    return Tied(kept, config, tuple(left), tuple(notes))


def same(one: View, two: View, equal: Equal) -> bool:
    """True for two tensors of one shape and dtype that are the same stored bytes, or hold equal ones."""
    if one.shape != two.shape or one.dtype != two.dtype:
        return False
    return sorted(one.chunks) == sorted(two.chunks) or equal(one, two)


@dataclass(frozen=True, slots=True)
class Apart:
    """Weights in which each head that an adapter updates has a weight of its own.

    Args:
        weights: by trained name.
        config: the model's, with tie_word_embeddings false where that was needed.
        heads: the heads that were not stored and got the embedding's bytes.
        notes: what the user must know.
    """

    weights: Mapping[str, View]
    config: dict[str, Any] | None
    heads: tuple[str, ...] = ()
    notes: tuple[str, ...] = ()


def take_apart(weights: Mapping[str, View], updated: Collection[str], config: dict[str, Any] | None) -> Apart:
    """Give a head that is tied to its embedding a weight of its own, where an adapter updates one of the two.

    PEFT's model uses the embedding as it was for a head that was not adapted, although its merge changes both.

    Args:
        weights: by trained name.
        updated: the weights that an adapter updates or replaces.
        config: the model's config.json.
    """
    if config is None or not facts.says_tied(config):
        return Apart(weights, config)
    apart, heads, notes = dict(weights), [], []
    for head, embedding in facts.tied_pairs(config, [*weights, _HEAD]):
        changed = sorted({head, embedding} & set(updated))
        if head == embedding or not changed:
            continue
        if head not in apart:
            apart[head] = apart[embedding]
            heads.append(head)
        notes.append(
            f"an adapter updates {' and '.join(changed)}, which the config ties: "
            "both are written, tie_word_embeddings is set to false"
        )
        config = untied(config)
    return Apart(apart, config, tuple(heads), tuple(notes))


def untied(config: Mapping[str, Any]) -> dict[str, Any]:
    """The same config, saying that head and embedding are two tensors."""
    new = copy.deepcopy(dict(config))
    new["tie_word_embeddings"] = False
    text = new.get("text_config")
    if isinstance(text, dict) and "tie_word_embeddings" in text:
        text["tie_word_embeddings"] = False
    return new
