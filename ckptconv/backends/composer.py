"""The Hugging Face config that Composer keeps inside its checkpoints, sharded or whole.

Source: composer/models/huggingface.py, HuggingFaceModel.get_metadata; composer/core/state.py, _get_integrations_state_dict.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

from ckptconv.tensors.checkpoint import TrainerSettings

CONFIG = ("state", "integrations", "huggingface", "model", "config", "content")
_KEY = "huggingface_config"  # of TrainerSettings: a config.json as it is


def is_here(paths: Iterable[Sequence[str | int]]) -> bool:
    """True if a state dict with these keys is one that Composer's State wrote."""
    return any(tuple(path[:2]) == CONFIG[:2] for path in paths)


def config_in(root: Any) -> Any:
    """The config in a whole state dict, or None."""
    for key in CONFIG:
        root = root.get(key) if isinstance(root, dict) else None
    return root


def settings(content: Any, where: str) -> tuple[TrainerSettings, ...]:
    """The record of a config; () if it is not plain data, or does not say what kind of model it is.

    Args:
        content: the config.json as a dict.
        where: the file that holds it.
    """
    if not isinstance(content, dict) or not _is_plain(content) or "model_type" not in content:
        return ()
    return (TrainerSettings({_KEY: content}, where),)


def _is_plain(value: Any) -> bool:
    """True for what JSON can hold."""
    if type(value) is dict:
        return all(type(key) is str and _is_plain(item) for key, item in value.items())
    if type(value) is list:
        return all(map(_is_plain, value))
    return value is None or type(value) in (str, int, float, bool)
