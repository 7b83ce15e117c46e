"""Tied heads: written once where their bytes are the embedding's, and on their own where training took them apart.

Ties are stated in module names, so a tensor is found by its trained name or by its Hub name.
"""

from __future__ import annotations

from collections.abc import Collection
from typing import Any

from ckptconv.models import facts
from ckptconv.plan.records import Filled
from ckptconv.read.reader import same_values
from ckptconv.tensors.view import View

_HEAD = "lm_head.weight"
_Dropped = list[tuple[str, View, str]]


def tie(named: Filled, config: dict[str, Any] | None, notes: list[str]) -> tuple[Filled, _Dropped]:
    """What is left to write, and the heads whose bytes are the embedding's; where they differ the config is corrected."""
    dropped: _Dropped = []
    if config is None or not facts.says_tied(config):
        return named, dropped
    hub = {trained[0]: name for name, (_, _, trained) in named.items() if len(trained) == 1}
    hub.update({name: name for name in named})
    kept = dict(named)
    for tied, repeated in facts.tied_pairs(config, hub):
        target, source = hub[tied], hub[repeated]
        one, two = named[target][0], named[source][0]
        if target not in kept or not isinstance(one, View) or not isinstance(two, View):
            continue
        if same_values(one, two):
            del kept[target]
            dropped.append((named[target][2][0], one, f"tied: equal to {source}"))
            continue
        notes.append(
            f"{target} differs from {source} although the config ties them: "
            "both are written, tie_word_embeddings is set to false"
        )
        set_apart(config)
    return kept, dropped


def take_apart(
    weights: dict[str, View], updated: Collection[str], config: dict[str, Any] | None, notes: list[str]
) -> list[str]:
    """Give a head that is tied to its embedding a weight of its own, where an adapter updates one of the two.

    weights: by trained name; one that does not store the head gets it, with the embedding's bytes. PEFT's model uses
    the embedding as it was for a head that was not adapted, although its merge changes both. Returns the heads that got
    the embedding's bytes.
    """
    added: list[str] = []
    if config is None or not facts.says_tied(config):
        return added
    for head, embedding in facts.tied_pairs(config, [*weights, _HEAD]):
        if head == embedding or not {head, embedding} & set(updated):
            continue
        if head not in weights:
            weights[head] = weights[embedding]
            added.append(head)
        notes.append(
            f"an adapter updates {' and '.join(sorted({head, embedding} & set(updated)))}, which the config ties: "
            "both are written, tie_word_embeddings is set to false"
        )
        set_apart(config)
    return added


def set_apart(config: dict[str, Any]) -> None:
    """Say in the config that head and embedding are two."""
    config["tie_word_embeddings"] = False
    text = config.get("text_config")
    if isinstance(text, dict) and "tie_word_embeddings" in text:
        text["tie_word_embeddings"] = False
