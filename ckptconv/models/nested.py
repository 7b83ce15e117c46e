"""Configs inside config.json: models that see or hear keep the language model's own config in one of its keys."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

Config = Mapping[str, Any]
# transformers; InternVL and Ovis; DeepSeek-VL; Qwen-Omni, whose thinker has a text_config of its own.
KEYS = ("text_config", "llm_config", "language_config", "thinker_config")


def text_of(config: Config) -> Config:
    """Return the config of the language model: the keys of its nested config, if there is one, override the others."""
    for key in KEYS:
        inner = config.get(key)
        if isinstance(inner, Mapping):
            return {**config, **text_of(inner)}
    return config


def parts_of(config: dict[str, Any]) -> Iterator[dict[str, Any]]:
    """Yield the config and those of the language model nested in it, the outermost first."""
    yield config
    for key in KEYS:
        inner = config.get(key)
        if isinstance(inner, dict):
            yield from parts_of(inner)
            return


# Classes of transformers that take any language model, by their model type, and the one that they take by default.
# Source: transformers 5.23, the configs whose sub_configs have AutoConfig for text_config.
_BY_DEFAULT = {
    "audioflamingo3": "qwen2", "aya_vision": "cohere2", "cohere2_vision": "cohere2", "deepseek_vl": "llama",
    "exaone4_5": "exaone4", "glm46v": "glm4v_text", "got_ocr2": "qwen2", "idefics2": "mistral", "idefics3": "llama",
    "internvl": "qwen2", "janus": "llama", "kimi_k25": "deepseek_v3", "lfm2_vl": "lfm2", "llava": "llama",
    "llava_next": "llama", "llava_next_video": "llama", "llava_onevision": "qwen2", "minicpmv4_6": "qwen3_5_text",
    "mistral3": "mistral", "ovis2": "qwen2", "paligemma": "gemma", "perception_lm": "llama", "qwen2_audio": "qwen2",
    "qwen3_asr": "qwen3", "smolvlm": "llama", "video_llava": "llama", "vipllava": "llama", "voxtral": "llama",
}  # fmt: skip


def other_inside(config: Config) -> str:
    """Return the type of the language model inside, if the class takes any and this is not its default one; else ""."""
    if str(config.get("model_type")).endswith("encoder-decoder"):  # of any two models
        decoder = config.get("decoder")
        return str(decoder.get("model_type", "")) if isinstance(decoder, Mapping) else ""
    default = _BY_DEFAULT.get(str(config.get("model_type")))
    stated = str(text_of(config).get("model_type"))
    return stated if default and "text_config" in config and stated != default else ""
