"""Aligns the names of an adapter and a base model that differ by one prefix, such as `model.`.

PEFT uses the names of the class that was trained. AutoModel has `layers.0...` where the folder of the causal model has
`model.layers.0...`; for a folder of AutoModel it is the other way round.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping
from dataclasses import replace
from typing import TypeVar

from ckptconv.models import lora
from ckptconv.tensors.checkpoint import Checkpoint

T = TypeVar("T")
_Rename = Callable[[str], str]


def align(parts: lora.Separated, base: Checkpoint) -> tuple[lora.Separated, Checkpoint]:
    """Give the adapter the base model's prefix.

    If the adapter has the longer names and its own head, the base gets the adapter's prefix instead, because the head
    belongs to a class that has the base model under that prefix.

    Args:
        parts: the adapter.
        base: the model folder.
    """
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

    return replace(
        parts,
        weights=keys(parts.weights),
        origin=keys(parts.origin),
        trained=tuple(map(rename, parts.trained)),
        factors=tuple(
            replace(each, module=module(each.module), parameters=tuple(map(module, each.parameters)))
            for each in parts.factors
        ),
        tokens=tuple(replace(each, weight=rename(each.weight)) for each in parts.tokens),
    )
