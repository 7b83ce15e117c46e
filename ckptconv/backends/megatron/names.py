"""Brings Megatron's stored names into one form, in which every layer and every expert has a number.

torch_dist stacks equal layers along a first dim, and experts along the next
(megatron/core/transformer/transformer_block.py and moe/experts.py, sharded_state_dict). Models with unequal layers number
the layers. "Singleton" saves number the experts, and store a gated projection as two halves, `weight_w` and `weight_v`
(biases too).
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping

from ckptconv.errors import CkptconvError, Kind
from ckptconv.tensors.checkpoint import StoredTensor
from ckptconv.tensors.view import View, cat, unbind

_STACK = re.compile(r"^(.*\b(?:layers|deepstack_merger_list))\.(?!\d+\.)(.+)$")
_EXPERT_STACK = re.compile(r"^(.*\.experts)\.experts\.(linear_fc[12]\..+)$")
_EXPERT = re.compile(r"^(.*\.experts)\.(?:experts|local_experts)\.(\d+)\.(.+)$")
_GROUPED = re.compile(r"^(.*\.experts)\.(linear_fc[12])\.(weight|bias)(\d+)((?:_[wv])?)$")
_HALF = re.compile(r"^(.*)_([wv])$")
_HALVES = ("weight_w", "weight_v", "bias_w", "bias_v")


def canonical(tensors: Mapping[str, StoredTensor]) -> dict[str, StoredTensor]:
    """The tensors by canonical name: `decoder.layers.{layer}.mlp.experts.{expert}.linear_fc1.weight`.

    Args:
        tensors: the tensors by stored name.

    Raises:
        CkptconvError: a tensor is stored twice, or only one of its halves is stored.
    """
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
            raise CkptconvError(f"only one of the two halves of {name} is stored", kind=Kind.INCOMPLETE)
        if name in found:
            raise CkptconvError(f"{name} is stored twice, whole and in two halves")
        found[name] = StoredTensor(cat([both["w"].view, both["v"].view], 0), both["w"].placement)
    return found


def _singles(name: str, view: View) -> Iterator[tuple[str, View]]:
    """The layers of a stack, and the experts of each; a tensor that is not stacked as it is."""
    stack = _STACK.match(name)
    if stack:
        for layer, part in enumerate(unbind(view, 0)):
            yield from _experts(f"{stack[1]}.{layer}.{stack[2]}", part)
    else:
        yield from _experts(name, view)


def _experts(name: str, view: View) -> Iterator[tuple[str, View]]:
    """The experts of a stack; a tensor that is not stacked as it is."""
    stack = _EXPERT_STACK.match(name)
    if stack:
        for expert, part in enumerate(unbind(view, 0)):
            yield f"{stack[1]}.{expert}.{stack[2]}", part
    else:
        yield numbered(name), view


def numbered(name: str) -> str:
    """An expert's name with the number after `experts`; any other name as it is.

    Grouped GEMM puts the number at the end, `experts.linear_fc1.weight3` (megatron/core/extensions/transformer_engine.py).
    The other implementations write `experts.local_experts.3.…`, and `experts.experts.3.…` in torch_dist (moe/experts.py).
    """
    if one := _EXPERT.match(name):
        return f"{one[1]}.{one[2]}.{one[3]}"
    if grouped := _GROUPED.match(name):
        block, linear, kind, number, half = grouped.groups()
        return f"{block}.{number}.{linear}.{kind}{half}"
    return name


def not_a_weight(name: str) -> str | None:
    """Why a stored name is not a weight: optimizer, random and Transformer Engine states; None for a weight."""
    if "optimizer." in name or name.startswith("optimizer"):
        return "optimizer"
    if "_extra_state" in name:
        return "Transformer Engine state"
    if name.startswith(("rng_state", "rerun_state", "opt_param_scheduler", "scheduler")):
        return "trainer state"
    return None
