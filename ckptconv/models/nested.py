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
