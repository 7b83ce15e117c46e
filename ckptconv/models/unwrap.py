"""The first step on trained names: take off what wrappers around the model put into them."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TypeVar

from ckptconv.models.hub_names import strip_wrappers

T = TypeVar("T")
# TRL's AutoModelForCausalLMWithValueHead as verl saves it: the model under this prefix, the head beside it.
_TRL, _HEAD = "pretrained_model.", "v_head."


def unwrap(tensors: Mapping[str, T]) -> tuple[dict[str, T], dict[str, str]]:
    """The tensors under bare names, and bare name -> stored name."""
    stripped = strip_wrappers(tensors)
    names = list(stripped)
    if any(name.startswith(_HEAD) for name in names) and all(
        name.startswith((_TRL, _HEAD)) for name in names
    ):
        names = [name.removeprefix(_TRL) for name in names]
    bare = dict(zip(names, stripped.values(), strict=True))
    return bare, dict(zip(names, tensors, strict=True))
