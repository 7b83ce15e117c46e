"""Remove the segments that wrappers around the model add to names. This is the first step on trained names."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TypeVar

from ckptconv.models.hub_names import strip_wrappers

T = TypeVar("T")
# TRL's AutoModelForCausalLMWithValueHead as verl saves it: the model has this prefix, and the head is outside it.
_TRL, _HEAD = "pretrained_model.", "v_head."


def unwrap(tensors: Mapping[str, T]) -> tuple[dict[str, T], dict[str, str]]:
    """Return the tensors under their bare names, and bare name -> stored name."""
    stripped = strip_wrappers(tensors)
    names = list(stripped)
    if any(name.startswith(_HEAD) for name in names) and all(
        name.startswith((_TRL, _HEAD)) for name in names
    ):
        names = [name.removeprefix(_TRL) for name in names]
    bare = dict(zip(names, stripped.values(), strict=True))
    return bare, dict(zip(names, tensors, strict=True))
