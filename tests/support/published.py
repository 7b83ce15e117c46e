"""What save_pretrained of transformers 5 writes for a model that was made from its config, as the Hub's files have it."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
from support.helpers import Tensor

TOWERS = ("arch_gemma3_w2", "arch_llava_w2")
TURNED = ("arch_qwen3_vl_moe_w2",)


def as_published(variant: str, saved: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The tensors with the prefix of a vision tower, and with turned experts, for the variants that are published so."""
    if variant in TOWERS:
        prefix = "vision_tower."
        return {name.replace(prefix, f"{prefix}vision_model."): tensor for name, tensor in saved.items()}
    if variant in TURNED:
        return {name: _turned(tensor) if "mlp.experts." in name else tensor for name, tensor in saved.items()}
    return dict(saved)


def _turned(tensor: Tensor) -> Tensor:
    values = np.frombuffer(tensor.data, "<f4").reshape(tensor.shape).swapaxes(1, 2)
    return Tensor(tensor.dtype, values.shape, values.tobytes())
