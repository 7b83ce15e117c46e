"""Reads LoRA's rank and alpha from the trainer's settings next to a Megatron checkpoint; the tensors do not have them.

Megatron-Bridge's run_config.yaml has a `peft:` section with `dim` and `alpha` (megatron/bridge/peft/lora.py). The section is
null if a hook of another framework added the adapters. verl writes lora_train_meta.json
(verl/utils/checkpoint/megatron_checkpoint_manager.py).
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from ckptconv.backends.megatron.settings import run_config
from ckptconv.formats.json import read_table

_KEYS = {"dim": "r", "alpha": "lora_alpha"}


def lora_settings(*folders: Path) -> dict[str, Any]:
    """The LoRA settings in the first of the folders that has any: {"r": …, "lora_alpha": …}; {} if none has."""
    for folder in folders:
        if meta := read_table(folder / "lora_train_meta.json"):
            return meta
        if section := run_config(folder, "peft"):
            found = {name: section.get(key) for key, name in _KEYS.items()}
            return {name: _whole(value) for name, value in found.items() if type(value) in (int, float)}
    return {}


def _whole(value: Any) -> Any:
    """An integer for a float with an integral value."""
    return int(value) if float(value).is_integer() else value
