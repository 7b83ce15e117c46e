"""Step 1 for an adapter: the base model's weights, some replaced by whole weights that the adapter holds."""

from __future__ import annotations

import copy
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from ckptconv.errors import CkptconvError
from ckptconv.models import facts, lora
from ckptconv.plan.records import Left
from ckptconv.plan.stored import Stored
from ckptconv.plan.tied import Apart, Equal, same, take_apart
from ckptconv.plan.weights import Weights, is_among
from ckptconv.tensors.checkpoint import Checkpoint
from ckptconv.tensors.view import View

_REPLACED = "replaced by the adapter's copy of it"
# PEFT's task types (peft/utils/peft_types.py, TaskType) -> the task in our facts, and its name for the user.
_TASKS = {"SEQ_CLS": ("sequence", "sequence classification"), "TOKEN_CLS": ("token", "token classification")}
_HEADS = ("score.", "classifier.")


@dataclass
class _Draft:
    """The weights while they are collected."""

    tensors: dict[str, View]
    config: dict[str, Any] | None
    left: list[Left] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)
    dtypes: dict[str, str] = field(default_factory=dict)


def weights_of_base(stored: Stored, config: dict[str, Any] | None, base: Checkpoint, equal: Equal) -> Weights:
    """The base model's weights, and those that the adapter replaces.

    Args:
        stored: the adapter, under the base model's names; see `align`.
        config: the base model's config.json.
        base: the base model.
        equal: compares a head and an embedding that the config ties, if the adapter holds both.

    Raises:
        CkptconvError: the adapter holds a weight that the base model does not have, or that does not fit it.
    """
    parts = stored.parts
    originals = {name: tensor.view for name, tensor in base.tensors.items()}
    draft = _Draft(dict(originals), copy.deepcopy(config))
    trained = {name: parts.weights[name] for name in parts.trained}
    head = _set_task(draft, stored, trained)
    twins = _leave_tied_twins(draft, parts, trained, equal)
    copies = {name: view for name, view in trained.items() if ".base_layer." in parts.origin[name]}
    rows = _vocabulary(draft.config).get("vocab_size")
    for name, view in trained.items():
        if name not in head:
            _check_shape(draft, name, view, rows)
    draft.tensors.update(copies)  # the weights from which an adapted layer, and a tied head, started
    updated = {each.weight for each in parts.factors} | (trained.keys() - copies.keys() - twins)
    apart = Apart(draft.tensors, draft.config)
    if not head:  # a classifier's head is not tied to the embedding
        apart = take_apart(draft.tensors, updated, draft.config)
    weights = {**apart.weights, **trained}
    _check_vocabulary(weights)
    kept = list(weights.values())
    left: list[Left] = [
        (f"base: {name}", view, _REPLACED)
        for name, view in originals.items()
        if name in weights and weights[name] is not view and not is_among(view, kept)
    ]
    shared = [weights[name] for name in apart.heads]
    return Weights(
        weights,
        base.naming,
        apart.config,
        shared=tuple(view for view in shared if is_among(view, kept)),
        stored=tuple(originals.values()),
        left=(*draft.left, *left),
        notes=(*draft.notes, *apart.notes),
        dtypes=draft.dtypes,
        held=frozenset(trained),
    )


def _set_task(draft: _Draft, stored: Stored, trained: Mapping[str, View]) -> tuple[str, ...]:
    """Turn the base model into the adapter's class, if that has another head; returns the names of the head's tensors."""
    task, called = _TASKS.get(str(stored.lora.get("task_type")), ("", ""))
    new = tuple(name for name in trained if name.startswith(_HEADS))
    if not task or not new:
        return ()
    config = draft.config or {}
    named = facts.named_architectures(config)
    body = {each.module.split(".")[0] for each in stored.parts.factors}
    for name, view in list(draft.tensors.items()):
        if name.split(".")[0] not in body and name not in trained:
            del draft.tensors[name]
            draft.left.append((f"base: {name}", view, f"the adapter's model has a head for {called} instead"))
    wanted = facts.architecture_for(config, task)
    if wanted is None:
        raise CkptconvError(
            f"the adapter has a head for {called}, and no class with one is known for this model",
            found=f"model_type {config.get('model_type')!r}",
            hint="merge it with PEFT",
        )
    if draft.config is not None and named != [wanted]:
        draft.config["architectures"] = [wanted]
        draft.notes.append(f"the adapter has a head for {called}: architectures is set to {wanted}")
    return new


def _leave_tied_twins(
    draft: _Draft, parts: lora.Separated, trained: dict[str, View], equal: Equal
) -> set[str]:
    """Drop a head that has the same values as its embedding, since PEFT saves both although they are one tensor.

    Returns:
        The names of the embeddings that stay tied.
    """
    kept: set[str] = set()
    if draft.config is None or not facts.says_tied(draft.config):
        return kept
    adapted = {each.weight for each in parts.factors}
    tokens = {each.weight: each for each in parts.tokens}
    for head, embedding in facts.tied_pairs(draft.config, [*trained]):
        one, two = tokens.get(head), tokens.get(embedding)
        rows = one is None and two is None
        if one is not None and two is not None:
            rows = one.indices == two.indices and same(one.rows[1], two.rows[1], equal)
        if head in adapted or embedding in adapted or not rows:
            continue
        if same(trained[head], trained[embedding], equal):
            draft.left.append((head, trained.pop(head), f"tied: equal to {embedding}"))
            kept.add(embedding)
    return kept


def _check_shape(draft: _Draft, name: str, view: View, rows: object) -> None:
    """Compare a whole weight of the adapter with the one that it replaces; a resized vocabulary changes the config."""
    old = draft.tensors.get(name)
    if old is None:
        if not (name.endswith("lm_head.weight") and facts.says_tied(draft.config or {})):
            raise CkptconvError(f"{name} was trained whole, but the base model has no such weight")
        return
    if old.dtype != view.dtype:
        draft.dtypes[name] = old.dtype
    if old.shape == view.shape:
        return
    if len(view.shape) != 2 or view.shape[1:] != old.shape[1:] or old.shape[0] != rows:
        raise CkptconvError(
            f"{name} of the adapter does not fit the base model's",
            found=" × ".join(map(str, view.shape)),
            wanted=" × ".join(map(str, old.shape)),
            hint="name the base model that the adapter was trained on: --base DIR",
        )
    part = _vocabulary(draft.config)
    if part.get("vocab_size") != view.shape[0]:
        part["vocab_size"] = view.shape[0]
        draft.notes.append(f"the adapter resized the vocabulary: vocab_size {rows} becomes {view.shape[0]}")


def _vocabulary(config: dict[str, Any] | None) -> dict[str, Any]:
    """The part of a config that states vocab_size."""
    text = (config or {}).get("text_config")
    return text if isinstance(text, dict) and "vocab_size" in text else config or {}


def _check_vocabulary(weights: Mapping[str, View]) -> None:
    rows = {
        name: view.shape[0]
        for name, view in weights.items()
        if name.endswith(("embed_tokens.weight", "lm_head.weight")) and len(view.shape) == 2
        if not any(part in name for part in ("vision", "visual", "audio", "mtp", "layers."))
    }
    if len(set(rows.values())) > 1:
        raise CkptconvError(
            "the adapter resized only one of embedding and head",
            found=", ".join(f"{name} {count:,}" for name, count in rows.items()),
            wanted="as many rows in both",
        )
