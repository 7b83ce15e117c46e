"""What the tests of LoRA share."""

from __future__ import annotations

from support.helpers import (
    ROLE,
    Tensors,
)

META = f"{ROLE}/lora_train_meta.json"
CLOSE = 1e-6


def bare(found: Tensors) -> Tensors:
    """lora_merged.safetensors without the prefixes that a peft model had."""
    return {name.removeprefix("base_model.model."): tensor for name, tensor in found.items()}
