"""Whose names a checkpoint has: for each trainer with model classes of its own, a name that every model of it has."""

from __future__ import annotations

import re
from collections.abc import Iterable
from enum import Enum

from ckptconv.models import autoep, deepspeed_moe


class Sign(Enum):
    """The trainers and wrappers whose names differ from those of transformers' modules."""

    NUMBERED = "GPT-NeoX's and Megatron-DeepSpeed's layers"
    TORCHTITAN = "torchtitan"
    TORCHTUNE = "torchtune"
    OLMO_CORE = "OLMo-core"
    AUTOEP = "AutoEP"
    DEEPSPEED_MOE = "DeepSpeed's own MoE layers"
    XTUNER = "XTuner, or a base model of transformers saved without the model around it"


# The end of a name, which is cheap to compare -> (whose it is, the whole name). No module of transformers is named so.
_ENDS = {
    ".query_key_value.weight": (
        Sign.NUMBERED,
        re.compile(r"(?:sequential\.)?\d+\.(?:self_)?attention\.query_key_value\.weight"),
    ),
    ".attention_norm.weight": (Sign.TORCHTITAN, re.compile(r"layers\.\d+\.attention_norm\.weight")),
    ".sa_norm.scale": (Sign.TORCHTUNE, re.compile(r"layers\.\d+\.sa_norm\.scale")),
    ".w_out.weight": (Sign.OLMO_CORE, re.compile(r"blocks\.\d+\.attention\.w_out\.weight")),
    autoep.END: (Sign.AUTOEP, autoep.MARK),
}
_ALL_ENDS = tuple(_ENDS)


def signs_of(names: Iterable[str]) -> frozenset[Sign]:
    """Return whose names are among the names of a model, in one pass."""
    found = set()
    for name in names:
        if name.endswith(_ALL_ENDS):
            found |= {
                sign for end, (sign, whole) in _ENDS.items() if name.endswith(end) and whole.fullmatch(name)
            }
        if deepspeed_moe.MARK in name:
            found.add(Sign.DEEPSPEED_MOE)
        if name == "embed_tokens.weight":
            found.add(Sign.XTUNER)
    return frozenset(found)
