"""MTP layers and router biases: what transformers does not ask for, so that nothing else tells whether it is whole."""

from __future__ import annotations

import re
from collections.abc import Collection, Iterable, Mapping
from typing import Any

from ckptconv.errors import listed
from ckptconv.models import mtp
from ckptconv.models.skeleton import Skeleton, numbers_apart
from ckptconv.plan.members import member_of
from ckptconv.plan.whole import ROUTER_BIAS

_LAYER = re.compile(r".*?layers\.\d+\.")
# What joins an embedding and a hidden state before an MTP layer, and the norm after the last one: the names of
# DeepSeek and GLM, and of Qwen.
_JOINTS = (
    (
        ("eh_proj.weight", "enorm.weight", "hnorm.weight"),
        ("shared_head.norm.weight", "final_layernorm.weight"),
    ),
    (("fc.weight", "pre_fc_norm_embedding.weight", "pre_fc_norm_hidden.weight"), ("norm.weight",)),
)
_OWN = re.compile(r"^(?:eh_proj|enorm|hnorm|shared_head|embed_tokens|final_layernorm|norm)\.")


def ordinary(skeleton: Skeleton, names: Iterable[str]) -> set[str]:
    """The names of layers with an MTP layer's number that have nothing but what each layer of the class has.

    An MTP layer has modules of its own (eh_proj, enorm, ...). Without them the config counts too few layers.

    Args:
        skeleton: the class.
        names: the names that `mtp.patterns` fits.
    """
    return {
        name
        for held in _layers(names).values()
        if all(member_of(skeleton, numbers_apart(each)) for each in held)
        for name in held
    }


def not_kept(skeleton: Skeleton, config: Mapping[str, Any], names: Collection[str]) -> list[str]:
    """A note where the class has a bias of its routers and none is stored; Megatron has it only with an option.

    Args:
        skeleton: the class.
        config: the config.json that will be written.
        names: the names of the planned tensors.
    """
    own = [m.pattern for group in skeleton.groups for m in group.members if m.pattern.endswith(ROUTER_BIAS)]
    if not own or not any(".experts." in name for name in names):
        return []
    numbered = re.compile("|".join(mtp.patterns(config)))
    if any(name.endswith(ROUTER_BIAS) and not numbered.search(name) for name in names):
        return []
    return [
        f"no router bias is stored ({own[0]}): readers start it at zero, which is right if the training had none"
    ]


def partial(config: Mapping[str, Any], names: Collection[str]) -> list[str]:
    """Notes on MTP layers that lack a part of what the other layers have, or of what joins the embedding to them.

    Args:
        config: the config.json that will be written.
        names: the names of the planned tensors.
    """
    numbered = re.compile("|".join(mtp.patterns(config)))
    own = [name for name in names if numbered.search(name)]
    if not own:
        return []
    others = [
        {name.removeprefix(prefix) for name in held}
        for prefix, held in _layers(name for name in names if not numbered.search(name)).items()
    ]
    lacking: list[str] = []
    for prefix, held in _layers(own).items():
        ends = {name.removeprefix(prefix) for name in held}
        core = {end for end in ends if not _OWN.match(end)}
        nearest = min(others, key=lambda other: len(other ^ core), default=set())
        is_alike = core <= nearest and 2 * len(nearest - core) <= len(nearest)
        lacking += [prefix + end for end in sorted(nearest - ends)] if is_alike else []
    for joint, norms in _JOINTS:
        here = {name.removesuffix(end) for name in own for end in joint if name.endswith(f".{end}")}
        lacking += [place + end for place in sorted(here) for end in joint if place + end not in own]
        if here and not any(name.endswith(tuple(f".{norm}" for norm in norms)) for name in own):
            lacking.append(" or ".join(norms))
    return [f"MTP layers are not whole: {listed(lacking)} is missing"] if lacking else []


def _layers(names: Iterable[str]) -> dict[str, list[str]]:
    """The names by the layer that they are in, such as `model.layers.3.`; other names are omitted."""
    layers: dict[str, list[str]] = {}
    for name in names:
        if found := _LAYER.match(name):
            layers.setdefault(found[0], []).append(name)
    return layers
