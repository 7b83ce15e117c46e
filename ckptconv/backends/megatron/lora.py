"""What is known of LoRA beside a Megatron checkpoint: rank and alpha are in the trainer's settings, not with the tensors.

Megatron-Bridge's run_config.yaml has a `peft:` section with `dim` and `alpha` (megatron/bridge/peft/lora.py) where it
trained adapters itself; it is null where a hook put them into the model. verl's are in lora_train_meta.json.
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

from ckptconv.formats.json import read_table, settings_text

_SECTION = re.compile(r"^peft:[ \t]*\n((?:[ \t]+\S.*(?:\n|$)|[ \t]*\n)+)", re.MULTILINE)
_NUMBER = r"[+-]?(?:[0-9]{{1,20}}\.?[0-9]{{0,20}}|\.[0-9]{{1,20}})(?:[eE][+-]?[0-9]{{1,2}})?"
_LINE = rf"^[ \t]+{{key}}:[ \t]*({_NUMBER})[ \t]*$"
_KEYS = {"dim": "r", "alpha": "lora_alpha"}


def lora_settings(*folders: Path) -> dict[str, Any]:
    """{"r": …, "lora_alpha": …} as far as a file in one of the folders says so."""
    for folder in folders:
        if meta := read_table(folder / "lora_train_meta.json"):
            return meta
        section = _SECTION.search(settings_text(folder / "run_config.yaml"))
        if section:
            return _from(section[1])
    return {}


def _from(section: str) -> dict[str, Any]:
    found: dict[str, Any] = {}
    for key, name in _KEYS.items():
        line = re.search(_LINE.format(key=key), section, re.MULTILINE)
        if line:
            number = float(line[1])
            found[name] = int(number) if number.is_integer() else number
    return found
