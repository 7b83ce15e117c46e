"""Step 1 for an adapter: the base model's weights, some replaced by whole weights that the adapter holds."""

from __future__ import annotations

import copy
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from ckptconv.errors import CkptconvError, Kind
from ckptconv.models import facts, lora, ties
from ckptconv.models.nested import parts_of
from ckptconv.plan.records import Left
from ckptconv.plan.stored import Stored
from ckptconv.plan.tied import Apart, Equal, same, take_apart
from ckptconv.plan.weights import Weights, is_among
from ckptconv.tensors.checkpoint import Checkpoint
from ckptconv.tensors.view import View

_OF_VOCABULARY = ("embed_tokens.weight", "lm_head.weight")
_REPLACED = "replaced by the adapter's copy of it"


@dataclass(frozen=True, slots=True)
class _ForTask:
    """Step 1: the base model as the class that the adapter adapts.

    Args:
        tensors: the base model's weights, without a head that the adapter's model does not have.
        config: config.json of that class.
        head: the names of the adapter's own head, if its class has another head than the base model.
        left: the weights of the base model that are not in that class.
        notes: what changed in config.json.
    """

    tensors: dict[str, View]
    config: dict[str, Any] | None
    head: tuple[str, ...] = ()
    left: tuple[Left, ...] = ()
    notes: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class _Untwinned:
    """Step 2: the adapter's whole weights, without a head that repeats its embedding.

    Args:
        trained: the weights that stay.
        tied: the names of the embeddings that stay tied to their head.
        left: the heads that repeat an embedding.
    """

    trained: dict[str, View]
    tied: frozenset[str] = frozenset()
    left: tuple[Left, ...] = ()


@dataclass(frozen=True, slots=True)
class _Fitted:
    """Step 3: what the adapter's whole weights change in the base model.

    Args:
        config: config.json with the adapter's vocab_size.
        dtypes: name -> the base model's dtype, for each weight that the adapter stores in another.
        notes: what changed in config.json.
    """

    config: dict[str, Any] | None
    dtypes: dict[str, str]
    notes: tuple[str, ...] = ()


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
    task = _for_task(stored, originals, config)
    twins = _without_twins(parts, task.config, equal)
    trained = twins.trained
    fitted = _fitted({name: view for name, view in trained.items() if name not in task.head}, task)
    copies = {name: view for name, view in trained.items() if ".base_layer." in parts.origin[name]}
    tensors = {**task.tensors, **copies}  # the weights from which an adapted layer, and a tied head, started
    resized = _resized_twins(tensors, copies, trained, task.config)
    tensors |= resized
    updated = {each.weight for each in parts.factors} | (trained.keys() - copies.keys() - twins.tied)
    _require_rows(parts, tensors, task.config)
    updated |= _heads_of_tokens(parts, tensors, task.config, equal)
    apart = Apart(tensors, fitted.config)
    if not task.head:  # a classifier's head is not tied to the embedding
        apart = take_apart(tensors, updated, fitted.config)
    weights = {**apart.weights, **trained}
    _check_vocabulary(weights)
    kept = list(weights.values())
    replaced: list[Left] = [
        (f"base: {name}", view, _REPLACED)
        for name, view in originals.items()
        if name in weights and weights[name] is not view and not is_among(view, kept)
    ]
    shared = [weights[name] for name in (*apart.heads, *resized)]
    return Weights(
        weights,
        base.naming,
        apart.config,
        shared=tuple(view for view in shared if is_among(view, kept)),
        stored=tuple(originals.values()),
        left=(*task.left, *twins.left, *replaced),
        notes=(*task.notes, *fitted.notes, *apart.notes),
        dtypes=fitted.dtypes,
        held=frozenset(trained),
    )


def _for_task(stored: Stored, originals: dict[str, View], config: dict[str, Any] | None) -> _ForTask:
    """Turn the base model into the adapter's class, if that has another head.

    Raises:
        CkptconvError: no class with such a head is known for the base model.
    """
    trained = stored.parts.trained
    task, called = lora.task_of(stored.lora)
    head = tuple(name for name in trained if name.startswith(lora.HEADS))
    if not task or not head:
        return _ForTask(originals, config)
    wanted = facts.architecture_for(config or {}, task)
    if wanted is None:
        raise CkptconvError(
            f"the adapter has a head for {called}, and no class with one is known for this model",
            found=f"model_type {(config or {}).get('model_type')!r}",
            hint="merge it with PEFT",
            kind=Kind.UNSUPPORTED,
        )
    body = {each.module.split(".")[0] for each in stored.parts.factors}
    others = [name for name in originals if name.split(".")[0] not in body and name not in trained]
    reason = f"the adapter's model has a head for {called} instead"
    notes: tuple[str, ...] = ()
    if config is not None and facts.named_architectures(config) != [wanted]:
        config = {**config, "architectures": [wanted]}
        notes = (f"the adapter has a head for {called}: architectures is set to {wanted}",)
    return _ForTask(
        {name: view for name, view in originals.items() if name not in others},
        config,
        head,
        tuple((f"base: {name}", originals[name], reason) for name in others),
        notes,
    )


def _without_twins(parts: lora.Separated, config: dict[str, Any] | None, equal: Equal) -> _Untwinned:
    """Drop a head that has the same values as its embedding, since PEFT saves both although they are one tensor."""
    trained = {name: parts.weights[name] for name in parts.trained}
    if config is None:
        return _Untwinned(trained)
    adapted = {each.weight for each in parts.factors}
    tokens = {each.weight: each for each in parts.tokens}
    twins: dict[str, str] = {}  # head -> embedding
    for tie in ties.ties(config, [*trained]):
        head, embedding = tie.name, tie.repeats
        one, two = tokens.get(head), tokens.get(embedding)
        rows = one is None and two is None
        if one is not None and two is not None:
            rows = one.indices == two.indices and same(one.rows[1], two.rows[1], equal)
        if head in adapted or embedding in adapted or not rows:
            continue
        if same(trained[head], trained[embedding], equal):
            twins[head] = embedding
    return _Untwinned(
        {name: view for name, view in trained.items() if name not in twins},
        frozenset(twins.values()),
        tuple((head, trained[head], f"tied: equal to {embedding}") for head, embedding in twins.items()),
    )


def _resized_twins(
    tensors: Mapping[str, View],
    copies: Mapping[str, View],
    trained: Mapping[str, View],
    config: dict[str, Any] | None,
) -> dict[str, View]:
    """The other half of a tied pair of which PEFT saved one, because its vocabulary was resized; both began as one weight.

    Args:
        tensors: the base model's weights, with the copies in place.
        copies: the base_layer of adapted layers.
        trained: all whole weights of the adapter.
        config: the base model's config.json.
    """
    found = {}
    for tie in ties.ties(config, [*tensors, *copies]) if config else ():
        for one, other in ((tie.name, tie.repeats), (tie.repeats, tie.name)):
            known = one in copies and other in tensors and other not in trained
            if known and tensors[other].shape != copies[one].shape:
                found[other] = copies[one]
    return found


def _heads_of_tokens(
    parts: lora.Separated, tensors: Mapping[str, View], config: dict[str, Any] | None, equal: Equal
) -> set[str]:
    """The tied heads of which other tokens were trained than of the embedding."""
    tokens = {each.weight: each for each in parts.tokens}
    found = set()
    for tie in ties.ties(config, [*tokens, *tensors, "lm_head.weight"]) if config and tokens else ():
        head, embedding = tokens.get(tie.name), tokens.get(tie.repeats)
        if embedding is not None and any(each.weight == tie.name for each in parts.factors):
            # PEFT's model, and its own merge, compute two different things (peft/utils/other.py, TrainableTokensWrapper).
            raise CkptconvError(
                f"LoRA on {tie.name} and trained tokens of {tie.repeats}, which the config ties, is not supported",
                hint="train the tokens of an untied model",
                kind=Kind.UNSUPPORTED,
            )
        if head is None:
            continue
        alike = embedding is not None and head.indices == embedding.indices
        if not (alike and embedding and same(head.rows[1], embedding.rows[1], equal)):
            found.add(tie.name)
    return found


def _fitted(trained: Mapping[str, View], task: _ForTask) -> _Fitted:
    """Compare the adapter's whole weights with those that they replace; a resized vocabulary changes the config.

    Args:
        trained: the adapter's whole weights, without its own head.
        task: the base model.

    Raises:
        CkptconvError: the base model has no such weight, or one of another shape.
    """
    rows = _vocabulary(task.config).get("vocab_size")
    dtypes: dict[str, str] = {}
    resized: dict[int, None] = {}  # the new numbers of rows, in order
    for name, view in trained.items():
        old = task.tensors.get(name)
        if old is None:
            if name.endswith("lm_head.weight") and facts.says_tied(task.config or {}):
                if len(view.shape) == 2 and view.shape[0] != rows:
                    resized[view.shape[0]] = None
                continue
            raise CkptconvError(
                f"{name} was trained whole, but the base model has no such weight", kind=Kind.DOES_NOT_FIT
            )
        if old.dtype != view.dtype:
            dtypes[name] = old.dtype
        if old.shape == view.shape:
            continue
        if len(view.shape) != 2 or view.shape[1:] != old.shape[1:] or old.shape[0] != rows:
            raise CkptconvError(
                f"{name} of the adapter does not fit the base model's",
                found=" × ".join(map(str, view.shape)),
                wanted=" × ".join(map(str, old.shape)),
                hint="name the base model that the adapter was trained on: --base DIR",
                kind=Kind.DOES_NOT_FIT,
            )
        resized[view.shape[0]] = None
    config = copy.deepcopy(task.config)
    for size in resized:
        _vocabulary(config)["vocab_size"] = size
    notes = (f"the adapter resized the vocabulary: vocab_size {rows} becomes {size}" for size in resized)
    return _Fitted(config, dtypes, tuple(notes))


def _require_rows(parts: lora.Separated, tensors: Mapping[str, View], config: dict[str, Any] | None) -> None:
    """Refuse factors of an embedding or a head with other rows than its weight, which PEFT did not save then."""
    rows = _vocabulary(config).get("vocab_size")
    for each in parts.factors:
        weight = tensors.get(each.weight)
        adapted = each.a[1].shape[1] if each.embedding else each.b[1].shape[0]
        if not each.weight.endswith(_OF_VOCABULARY) or type(rows) is not int:
            continue
        if adapted != rows and (weight is None or weight.shape[0] == rows):  # a tied head is not stored
            raise CkptconvError(
                "the vocabulary was resized for the training, and the adapter lacks the resized weights",
                where=each.weight,
                found=f"an update of {adapted:,} rows",
                wanted=f"{rows:,} rows, as in the base model",
                hint="name a folder of the model as it was resized: --base DIR",
                kind=Kind.INCOMPLETE,
            )


def _vocabulary(config: dict[str, Any] | None) -> dict[str, Any]:
    """The part of a config that states vocab_size."""
    config = config or {}
    return next((part for part in reversed([*parts_of(config)]) if "vocab_size" in part), config)


def _check_vocabulary(weights: Mapping[str, View]) -> None:
    """Raise a CkptconvError if the text model's embedding and head have different numbers of rows."""
    rows = {
        name: view.shape[0]
        for name, view in weights.items()
        if name.endswith(_OF_VOCABULARY) and len(view.shape) == 2
        if not any(part in name for part in ("vision", "visual", "audio", "mtp", "layers."))
    }
    if len(set(rows.values())) > 1:
        raise CkptconvError(
            "the vocabulary was resized for the training, and the adapter holds only one of embedding and head",
            found=", ".join(f"{name} {count:,}" for name, count in rows.items()),
            wanted="the same number of rows in both",
            hint="name a folder of the model as it was resized: --base DIR",
            kind=Kind.DAMAGED,
        )
