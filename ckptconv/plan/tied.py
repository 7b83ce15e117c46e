"""Step 3: tied heads. A head that equals its embedding is not written; one that training changed is written separately.

The config's ties use module names, so a tensor is looked up by its trained name and by its Hub name.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Collection, Mapping, Sequence
from typing import Any, NamedTuple

from ckptconv.errors import CkptconvError
from ckptconv.models import facts, ties
from ckptconv.models.nested import parts_of
from ckptconv.plan.records import Filled, Left
from ckptconv.tensors.view import View

Equal = Callable[[View, View], bool]  # True if two views of one shape and dtype hold the same bytes
_HEAD = "lm_head.weight"


class NeedsReading(CkptconvError):
    """The plan depends on stored values, and the caller gave no function that compares them."""


def unread(one: View, two: View) -> bool:
    """The comparison for plans that must not read tensors. It always raises NeedsReading."""
    raise NeedsReading("the weights must be read to tell whether head and embedding are still tied")


class Tied(NamedTuple):
    """The tensors to write.

    Args:
        tensors: by final name, without the heads that equal their embedding.
        config: the model's, with tie_word_embeddings false if a head differs.
        left: the heads that are not written.
        notes: what the user must know.
    """

    tensors: Filled
    config: dict[str, Any] | None
    left: tuple[Left, ...] = ()
    notes: tuple[str, ...] = ()


def tie(named: Filled, config: dict[str, Any] | None, equal: Equal) -> Tied:
    """Drop the copies of weights that the config ties, if they equal the weight that they repeat.

    If one of them differs, all are written, since the config can only say that all are tied or none.

    Args:
        named: the model's tensors by final name.
        config: the model's config.json.
        equal: compares two stored tensors; it is not called for pairs that share the same stored bytes.
    """
    if config is None:
        return Tied(named, config)
    hub = {fill.trained[0]: name for name, fill in named.items() if len(fill.trained) == 1}
    hub.update({name: name for name in named})
    left: dict[str, Left] = {}
    notes: list[str] = []
    for found in ties.ties(config, hub):
        target, source = hub[found.name], hub[found.repeats]
        one, two = named[target].source, named[source].source
        if target in left or target == source or not isinstance(one, View) or not isinstance(two, View):
            continue
        if same(one, two, equal):
            left[target] = (named[target].trained[0], one, f"tied: equal to {source}")
            continue
        notes.append(
            f"{target} differs from {source} although the config ties them: "
            "both are written, tie_word_embeddings is set to false"
        )
        config = untied(config, found.keys)
    if notes:
        return _stated_once(Tied(named, config, (), tuple(notes)), facts.says_tied(config))
    if ties.has_head_apart(config) and _HEAD in named and facts.says_tied(config):
        config = untied(config)
        notes.append(
            f"{_HEAD} is written and tie_word_embeddings is set to false, since transformers 4 would scale the output of a "
            "tied head"
        )
    kept = {name: fill for name, fill in named.items() if name not in left}
    return _stated_once(Tied(kept, config, tuple(left.values()), tuple(notes)), facts.says_tied(config))


def _stated_once(found: Tied, is_tied: bool) -> Tied:
    """Write at the top of config.json what a nested config states of tied heads, if the top states nothing or the opposite.

    Classes of transformers differ: Qwen3-VL and Qwen3.5 read the top alone and take false where it states nothing, InternVL,
    Gemma 3 and Mistral 3 the top alone and true, Qwen2.5-VL, GLM-4V and LLaVA tie if either is true, Llama 4 reads its text
    model's alone (`facts.tied_by`). A model whose nested config alone states it would lose its head, or tie it. Florence-2's
    nested config ties other weights, so both of its statements stay.
    """
    config = found.config or {}
    if facts.tied_by(config) == "each":
        return found
    stated = [part.get("tie_word_embeddings") for part in parts_of(config)]
    if all(value is is_tied or value is None for value in stated) and (
        stated[0] is not None or not _any_stated(stated)
    ):
        return found
    new = copy.deepcopy(config)
    for part in parts_of(new):
        if "tie_word_embeddings" in part:
            part["tie_word_embeddings"] = is_tied
    new["tie_word_embeddings"] = is_tied
    note = (
        f"tie_word_embeddings is set to {str(is_tied).lower()} at the top of config.json: the language model's own config "
        "states it, and some classes of transformers read only the top"
    )
    return found._replace(config=new, notes=(*found.notes, note))


def _any_stated(values: Sequence[object]) -> bool:
    """Return True if a nested config states whether the head is tied. values: what each config states, the top first."""
    return any(value is not None for value in values[1:])


def same(one: View, two: View, equal: Equal) -> bool:
    """True for two tensors of one shape and dtype that share the same stored bytes or hold equal bytes.

    Args:
        one: a tensor.
        two: another.
        equal: compares the bytes if they are stored separately.
    """
    if one.shape != two.shape or one.dtype != two.dtype:
        return False
    return sorted(one.chunks) == sorted(two.chunks) or equal(one, two)


class Apart(NamedTuple):
    """Weights in which each head that an adapter updates has its own weight.

    Args:
        weights: by trained name.
        config: the model's, with tie_word_embeddings false if a head was separated.
        heads: the heads that were not stored and got the embedding's bytes.
        notes: what the user must know.
    """

    weights: Mapping[str, View]
    config: dict[str, Any] | None
    heads: tuple[str, ...] = ()
    notes: tuple[str, ...] = ()


def take_apart(weights: Mapping[str, View], updated: Collection[str], config: dict[str, Any] | None) -> Apart:
    """Give a tied head its own weight if an adapter updates the head or the embedding.

    PEFT's model uses the original embedding for a head that was not adapted, although PEFT's own merge changes both.

    Args:
        weights: by trained name.
        updated: the weights that an adapter updates or replaces.
        config: the model's config.json.
    """
    if config is None:
        return Apart(weights, config)
    apart, heads, notes = dict(weights), [], []
    for found in ties.ties(config, [*weights, _HEAD]):
        head, embedding = found.name, found.repeats
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
        config = untied(config, found.keys)
    return Apart(apart, config, tuple(heads), tuple(notes))


def untied(config: Mapping[str, Any], keys: Sequence[str] = ()) -> dict[str, Any]:
    """A copy of the config that states that head and embedding are two tensors.

    Args:
        config: the model's config.json.
        keys: the keys that lead to the config which ties them; () for the top.
    """
    new = copy.deepcopy(dict(config))
    new["tie_word_embeddings"] = False
    for part in parts_of(new):
        if "tie_word_embeddings" in part:
            part["tie_word_embeddings"] = False
    inner: Any = new
    for key in keys:
        inner = inner.get(key)
        if not isinstance(inner, dict):
            return new
    inner["tie_word_embeddings"] = False
    return new
