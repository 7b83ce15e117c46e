"""Recognises the heads of a model, and an adapter, from names and shapes."""

from __future__ import annotations

import re
from typing import Any

from ckptconv.models import facts
from ckptconv.tensors.checkpoint import Checkpoint

_LM = re.compile(r"(?:^|\.)(?:lm_head|output_layer|embed_out)\.weight$|^output\.weight$")
_VALUE = re.compile(r"(?:^|\.)v_head\.(?:.*\.)?weight$")
_LABELS = re.compile(r"(?:^|\.)(?:score|classifier|classification_head|qa_outputs)\.(?:.*\.)?weight$")


def heads_of(checkpoint: Checkpoint, config: dict[str, Any]) -> tuple[str, ...]:
    """The heads of the model, such as "language model (lm_head.weight)" or "value (v_head.summary.weight)"."""
    found = []
    for name, tensor in checkpoint.tensors.items():
        rows = tensor.view.shape[0] if tensor.view.shape else 0
        if "lora_" in name or ".adapter." in name:
            continue
        if _VALUE.search(name) or (rows == 1 and _LM.search(name)):
            found.append(f"value ({name})")
        elif _LABELS.search(name):
            found.append(f"{'value' if rows == 1 else f'classifier of {rows} labels'} ({name})")
        elif _LM.search(name):
            found.append(f"language model ({name})")
    if (
        not found
        and config
        and facts.says_tied(config)
        and any("embed" in name for name in checkpoint.tensors)
    ):
        found.append("language model (the embedding, tied)")
    return tuple(found)


def lora_of(checkpoint: Checkpoint) -> str | None:
    """A description of the adapter: its rank, and whether the base model is stored too; None if there is no adapter."""
    mark = re.compile(r"\.lora_|\.adapter\.linear_(?:in|out)\.")
    modules = {mark.split(name)[0] for name in checkpoint.tensors if mark.search(name)}
    if not modules:
        return None
    meta = checkpoint.lora.settings
    alpha = meta.get("lora_alpha", "unknown")
    alone = all(mark.search(name) for name in checkpoint.tensors)
    tail = ", without base weights" if alone else ""
    return f"on {len(modules)} modules, r {meta.get('r', 'unknown')}, alpha {alpha}{tail}"
