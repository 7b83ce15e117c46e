"""LoRA's rank and alpha next to a Megatron checkpoint: they are in the trainer's settings, not with the tensors.

Megatron-Bridge's run_config.yaml has a `peft:` section with `dim` and `alpha` (megatron/bridge/peft/lora.py) where it
trained adapters itself; it is null where a hook put them into the model. verl's are in lora_train_meta.json.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from ckptconv.backends.megatron.settings import run_config
from ckptconv.formats.json import read_table

_KEYS = {"dim": "r", "alpha": "lora_alpha"}


def lora_settings(*folders: Path) -> dict[str, Any]:
    """{"r": …, "lora_alpha": …} as far as a file in one of the folders has them."""
    for folder in folders:
        if meta := read_table(folder / "lora_train_meta.json"):
            return meta
        if section := run_config(folder, "peft"):
            found = {name: section.get(key) for key, name in _KEYS.items()}
            return {name: _whole(value) for name, value in found.items() if type(value) in (int, float)}
    return {}


def _whole(value: Any) -> Any:
    return int(value) if float(value).is_integer() else value
