"""Megatron's stored names -> one form: every layer and every expert has a number, every tensor stands alone.

torch_dist stacks equal layers over a first dim and experts over the next (megatron/core/transformer/
transformer_block.py and moe/experts.py, sharded_state_dict); mixed models number them; "singleton" saves number the
experts and keep a gated projection as its two halves, `weight_w` and `weight_v` (biases too).
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping

from ckptconv.errors import CkptconvError
from ckptconv.tensors.checkpoint import StoredTensor
from ckptconv.tensors.view import View, cat, unbind

_STACK = re.compile(r"^(.*\b(?:layers|deepstack_merger_list))\.(?!\d+\.)(.+)$")
_EXPERT_STACK = re.compile(r"^(.*\.experts)\.experts\.(linear_fc[12]\..+)$")
_EXPERT = re.compile(r"^(.*\.experts)\.(?:experts|local_experts)\.(\d+)\.(linear_fc[12]\..+)$")
_HALF = re.compile(r"^(.*)_([wv])$")
_HALVES = ("weight_w", "weight_v", "bias_w", "bias_v")


def canonical(tensors: Mapping[str, StoredTensor]) -> dict[str, StoredTensor]:
    """`decoder.layers.{layer}.mlp.experts.{expert}.linear_fc1.weight`, whichever way it was stored."""
    found: dict[str, StoredTensor] = {}
    halves: dict[str, dict[str, StoredTensor]] = {}
    for name, tensor in tensors.items():
        for single, view in _singles(name, tensor.view):
            half = _HALF.match(single) if single.endswith(_HALVES) else None
            if half:
                halves.setdefault(half[1], {})[half[2]] = StoredTensor(view, tensor.placement)
            elif single == name:
                found[single] = tensor
            elif single in found:
                raise CkptconvError(f"{single} is stored twice")
            else:
                found[single] = StoredTensor(view, tensor.placement)
    for name, both in halves.items():
        if set(both) != {"w", "v"}:
            raise CkptconvError(f"of the two halves of {name} only one is stored")
        if name in found:
            raise CkptconvError(f"{name} is stored twice, whole and in two halves")
        found[name] = StoredTensor(cat([both["w"].view, both["v"].view], 0), both["w"].placement)
    return found


def _singles(name: str, view: View) -> Iterator[tuple[str, View]]:
    stack = _STACK.match(name)
    if stack:
        for layer, part in enumerate(unbind(view, 0)):
            yield from _experts(f"{stack[1]}.{layer}.{stack[2]}", part)
    else:
        yield from _experts(name, view)


def _experts(name: str, view: View) -> Iterator[tuple[str, View]]:
    one = _EXPERT.match(name)
    stack = _EXPERT_STACK.match(name)
    if one:
        yield f"{one[1]}.{one[2]}.{one[3]}", view
    elif stack:
        for expert, part in enumerate(unbind(view, 0)):
            yield f"{stack[1]}.{expert}.{stack[2]}", part
    else:
        yield name, view
