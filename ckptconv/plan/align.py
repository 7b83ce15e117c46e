"""Aligns the names of an adapter and a base model: they differ by one prefix, such as `model.`, or by transformers' renames.

PEFT uses the names of the class that was trained. AutoModel has `layers.0...` where the folder of the causal model has
`model.layers.0...`; for a folder of AutoModel it is the other way round. transformers 5 has `lm_head` and
`model.language_model.embed_tokens` where folders have `embed_out` and `language_model.model.embed_tokens`.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping
from dataclasses import replace
from typing import Any, TypeVar

from ckptconv.errors import CkptconvError
from ckptconv.models import hub_names, lora
from ckptconv.tensors.checkpoint import Checkpoint
from ckptconv.tensors.view import Shape, stored

T = TypeVar("T")
_Rename = Callable[[str], str]


def align(
    parts: lora.Separated, base: Checkpoint, config: Mapping[str, Any]
) -> tuple[lora.Separated, Checkpoint]:
    """Give the adapter the base model's prefix.

    If the adapter has the longer names and its own head, the base gets the adapter's prefix instead, because the head
    belongs to a class that has the base model under that prefix.

    Args:
        parts: the adapter.
        base: the model folder.
        config: its config.json.
    """
    parts = _as_in_folder(parts, base, config)
    wanted = [each.parameters[0] if each.parameters else each.weight for each in parts.factors]
    wanted += [tokens.weight for tokens in parts.tokens]
    names = base.tensors.keys()
    if not wanted or all(name in names for name in wanted):
        return parts, base
    added, stripped = _added(wanted, names), _stripped(wanted, names)
    if added:
        return _renamed(parts, lambda name: added + name if added + name in names else name, added, ""), base
    if not stripped:
        return parts, base
    if any(name.removeprefix(stripped) not in names for name in parts.trained):
        tensors = {stripped + name: tensor for name, tensor in base.tensors.items()}
        return parts, replace(base, tensors=tensors)
    return _renamed(parts, lambda name: name.removeprefix(stripped), "", stripped), base


def _as_in_folder(parts: lora.Separated, base: Checkpoint, config: Mapping[str, Any]) -> lora.Separated:
    """Give the adapter the names that the folder has for its weights.

    A factor whose weight a rule cuts, turns or joins keeps its name (`placing.placed_on`).
    """
    names = base.tensors.keys()
    shapes = {each.weight: _shape(each) for each in parts.factors if not each.parameters}
    shapes |= {each.weight: each.rows[1].shape for each in parts.tokens}
    shapes |= {name: parts.weights[name].shape for name in parts.trained}
    probes = {name: stored(name, 0, shape, "uint8") for name, shape in shapes.items() if name not in names}
    if not probes:
        return parts
    to: dict[str, str] = {}
    for prefix_changes in (False, True):
        try:
            made = hub_names.to_hub(probes, dict(config), prefix_changes=prefix_changes).tensors
        except CkptconvError:
            continue
        for name, each in made.items():
            (source, *others) = each.sources
            if name in names and not others and each.value is probes[source]:
                to.setdefault(source, name)
    if not to:
        return parts

    def renamed(name: str) -> str:
        return to.get(name, name)

    return parts._replace(
        weights={renamed(name): view for name, view in parts.weights.items()},
        origin={renamed(name): stored_name for name, stored_name in parts.origin.items()},
        trained=tuple(map(renamed, parts.trained)),
        factors=tuple(
            each._replace(module=renamed(each.weight).removesuffix(".weight")) for each in parts.factors
        ),
        tokens=tuple(each._replace(weight=renamed(each.weight)) for each in parts.tokens),
    )


def _shape(factors: lora.Factors) -> Shape:
    """The shape of the weight that a pair updates."""
    left, right = factors.sides(False)
    return left.shape[0], right.shape[1]


def _added(wanted: Collection[str], names: Collection[str]) -> str:
    """The one prefix that turns all the names into names of the base; "" if there is none, or more than one."""
    first = next(iter(wanted))
    found = {name.removesuffix(first) for name in names if name.endswith(f".{first}")}
    fitting = [prefix for prefix in found if all(prefix + name in names for name in wanted)]
    return fitting[0] if len(fitting) == 1 else ""


def _stripped(wanted: Collection[str], names: Collection[str]) -> str:
    """The prefix to remove from all the names, to get names of the base; "" if there is none."""
    segments = next(iter(wanted)).split(".")
    for count in range(1, len(segments) - 1):
        prefix = ".".join(segments[:count]) + "."
        if all(name.startswith(prefix) and name.removeprefix(prefix) in names for name in wanted):
            return prefix
    return ""


def _renamed(parts: lora.Separated, rename: _Rename, added: str, stripped: str) -> lora.Separated:
    def module(name: str) -> str:
        return added + name.removeprefix(stripped)

    def keys(values: Mapping[str, T]) -> dict[str, T]:
        return {rename(name): value for name, value in values.items()}

    return parts._replace(
        weights=keys(parts.weights),
        origin=keys(parts.origin),
        trained=tuple(map(rename, parts.trained)),
        factors=tuple(
            each._replace(module=module(each.module), parameters=tuple(map(module, each.parameters)))
            for each in parts.factors
        ),
        tokens=tuple(each._replace(weight=rename(each.weight)) for each in parts.tokens),
    )
