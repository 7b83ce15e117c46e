"""Multi-token prediction layers: which tensors are theirs, and what config.json says of them.

transformers loads none of them; vLLM and SGLang draft with them.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from ckptconv.models.family import text_of

# DeepSeek, GLM, MiMo; Qwen3.5; what transformers calls the first.
_KEYS = ("num_nextn_predict_layers", "mtp_num_hidden_layers", "num_mtp_layers")
_OWN = r"(^|\.)mtp(_layers)?\."


def patterns(config: Mapping[str, Any]) -> tuple[str, ...]:
    """Regular expressions for their names: names of their own, or layers after the last that the config counts."""
    layers = text_of(config).get("num_hidden_layers")
    if not isinstance(layers, int):
        return (_OWN,)
    numbers = "|".join(str(layers + i) for i in range(stated(config)))
    return (_OWN, rf"^(model\.)?(language_model\.)?layers\.({numbers})\.") if numbers else (_OWN,)


def stated(config: Mapping[str, Any]) -> int:
    """How many the config counts."""
    found = [text_of(config).get(key) for key in _KEYS]
    return max([count for count in found if isinstance(count, int)], default=0)


def set_none(config: dict[str, Any]) -> str | None:
    """Sets every count of them in the config to 0; returns what to say of it."""
    text = config.get("text_config")
    changed = []
    for part in (config, text if isinstance(text, dict) else {}):
        for key in _KEYS:
            if part.get(key):
                part[key] = 0
                changed.append(key)
    return (
        f"{' and '.join(dict.fromkeys(changed))} is set to 0: no MTP layers are written" if changed else None
    )
