"""Multi-token prediction (MTP) layers: the names of their tensors, and their count in config.json.

transformers does not load these layers; vLLM and SGLang use them for speculative decoding.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from ckptconv.models.nested import parts_of, text_of

# The keys of DeepSeek, GLM and MiMo; of Qwen3.5; and transformers' name for the first.
_KEYS = ("num_nextn_predict_layers", "mtp_num_hidden_layers", "num_mtp_layers")
_MOST = 64  # models have at most a handful; config.json may state any number
_OWN = r"(^|\.)mtp(_layers)?\."


def patterns(config: Mapping[str, Any]) -> tuple[str, ...]:
    """Return regular expressions for the names of MTP tensors.

    Some models name MTP layers `mtp.`; others number them after the last of the config's `num_hidden_layers`.
    """
    layers = text_of(config).get("num_hidden_layers")
    if not isinstance(layers, int):
        return (_OWN,)
    numbers = "|".join(str(layers + i) for i in range(min(stated(config), _MOST)))
    return (_OWN, rf"^(model\.)?(language_model\.)?layers\.({numbers})\.") if numbers else (_OWN,)


def stated(config: Mapping[str, Any]) -> int:
    """Return the number of MTP layers in the config; 0 if it has no such key."""
    found = [text_of(config).get(key) for key in _KEYS]
    return max([count for count in found if isinstance(count, int)], default=0)


def set_none(config: dict[str, Any]) -> str | None:
    """Set every count of MTP layers in the config to 0 and return a note on it; None if every count was 0 already."""
    changed = []
    for part in parts_of(config):
        for key in _KEYS:
            if part.get(key):
                part[key] = 0
                changed.append(key)
    return (
        f"{' and '.join(dict.fromkeys(changed))} is set to 0: no MTP layers are written" if changed else None
    )
