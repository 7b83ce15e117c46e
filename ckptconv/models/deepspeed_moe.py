"""DeepSpeed's own MoE layer in a model of transformers: its names as those of the class, where the class has such experts.

`MODULE.deepspeed_moe.gate.wg.weight` is the router, `MODULE.deepspeed_moe.experts.deepspeed_experts.N.…` the module that the
user gave for one expert (deepspeed/moe/layer.py, sharded_moe.py, experts.py).
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from typing import Any

from ckptconv.models.skeleton import skeleton_of

MARK = ".deepspeed_moe."
_PLACE = re.compile(r"^(.*\.\d+\.)(?:.*\.)?deepspeed_moe\.(.+)$", re.DOTALL)
_EXPERT = re.compile(r"^experts\.deepspeed_experts\.(\d+)\.(.+)$", re.DOTALL)
_MODULE = re.compile(r"^(.*\.\d+\.[^.]+)\..*deepspeed_moe\.", re.DOTALL)
_ROUTER = "gate.wg.weight"


def are_here(names: Iterable[str]) -> bool:
    """Return True if a model has DeepSpeed's own MoE layers."""
    return any(MARK in name for name in names)


def names_of_class(names: Iterable[str], config: Mapping[str, Any]) -> dict[str, str]:
    """Return trained name -> the class's name; the trained name itself for all tensors if the class has no such experts.

    Args:
        names: the trained names of the whole model.
        config: the model's config.json.
    """
    same = {name: name for name in names}
    skeleton = skeleton_of(config) if are_here(same) else None
    if skeleton is None:
        return same
    known = {member.pattern for group in skeleton.groups for member in group.members}
    found = {name: _name(name, known) if MARK in name else name for name in same}
    renamed = {name: new for name, new in found.items() if new is not None}
    return renamed if len(set(renamed.values())) == len(same) else same


def without(names: Iterable[str], layers: Iterable[str]) -> list[str]:
    """Return the names that are neither of DeepSpeed's own MoE layers nor of the modules that these layers replace.

    Args:
        names: to choose from.
        layers: the names of all tensors of the model.
    """
    replaced = {match[1] for name in layers if (match := _MODULE.match(name))}
    kept = (name for name in names if MARK not in name)
    return [name for name in kept if not any(name.startswith(f"{module}.") for module in replaced)]


def _name(name: str, known: set[str]) -> str | None:
    """Return the name in a class with these patterns, or None."""
    match = _PLACE.match(name)
    if match is None:
        return None
    layer, rest = match.groups()
    star = re.sub(r"(?<=\.)\d+(?=\.)", "*", layer)
    for pattern in known:
        if not pattern.startswith(star):
            continue
        module, _, inner = pattern[len(star) :].partition(".experts.*.")
        expert = _EXPERT.match(rest)
        if inner and expert is not None and inner == expert[2]:
            return f"{layer}{module}.experts.{expert[1]}.{inner}"
        if inner and rest == _ROUTER and f"{star}{module}.gate.weight" in known:
            return f"{layer}{module}.gate.weight"
    return None
