"""Make config.json from nanotron's model_config.json, which has Hugging Face's keys under the names of its own classes.

Source: nanotron/config/models_config.py; examples/llama/convert_weights.py, get_config_mapping. Which layers rotate in a
model with `no_rope_layer`: nanotron/models/qwen.py, Qwen2Attention; transformers' SmolLM3Config has the same rule.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

_LLAMA, _QWEN2 = "is_llama_config", "is_qwen2_config"  # each class marks its file with a key of its own
_SHARED = (
    *("bos_token_id", "eos_token_id", "pad_token_id", "hidden_act", "hidden_size", "initializer_range"),
    *("intermediate_size", "max_position_embeddings", "num_attention_heads", "num_hidden_layers"),
    *("num_key_value_heads", "rms_norm_eps", "tie_word_embeddings", "use_cache", "vocab_size"),
)
_NUMBERS = (
    "hidden_size",
    "num_hidden_layers",
    "vocab_size",
    "num_attention_heads",
    "rope_theta",
    "rms_norm_eps",
)
_MOST_LAYERS = 1 << 16
# Settings that no class of transformers has together with the others; a config is made only where they are off.
_OFF = ("rope_scaling", "rope_seq_len_interpolation_factor", "sliding_window_size", "moe_config")


def hub_config(values: Mapping[str, Any]) -> dict[str, Any] | None:
    """Return the config.json of a nanotron model; None where model_config.json does not say enough.

    Args:
        values: the content of model_config.json.
    """
    if not (values.get(_LLAMA) or values.get(_QWEN2)) or any(values.get(key) for key in _OFF):
        return None
    if any(type(values.get(key)) not in (int, float) for key in _NUMBERS):
        return None
    if type(values["num_hidden_layers"]) is not int or not 0 < values["num_hidden_layers"] <= _MOST_LAYERS:
        return None
    found = {key: values[key] for key in _SHARED if key in values}
    found["rope_theta"] = values["rope_theta"]  # transformers 4 reads this key, transformers 5 the next one
    found["rope_parameters"] = {"rope_type": "default", "rope_theta": values["rope_theta"]}
    bias = values.get(_QWEN2) and values.get("attention_bias")  # nanotron's Llama has the key and no biases
    every = values.get("no_rope_layer")
    if every and (bias or type(every) is not int):
        return None
    if every:
        rotates = [int((layer + 1) % every != 0) for layer in range(values["num_hidden_layers"])]
        keys = {"no_rope_layer_interval": every, "no_rope_layers": rotates}
        return _named("smollm3", "SmolLM3ForCausalLM", found) | keys
    if bias:  # on queries, keys and values alone, as in Qwen2; Llama's would be on o_proj too
        return _named("qwen2", "Qwen2ForCausalLM", found)
    return _named("llama", "LlamaForCausalLM", found) | {"attention_bias": False, "mlp_bias": False}


def _named(model_type: str, architecture: str, keys: dict[str, Any]) -> dict[str, Any]:
    return {"architectures": [architecture], "model_type": model_type, **keys}
