"""The blocks of an OLMo-core model, layer by layer, and how far each looks back.

Source: olmo_core/nn/transformer/config.py, TransformerConfig; olmo_core/nn/attention/__init__.py,
SlidingWindowAttentionConfig.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from ckptconv.errors import CkptconvError

LAYER_NORMS = (
    "rms",
    "fused_rms",
    "cute_rms",
)  # one formula, three implementations (olmo_core/nn/layer_norm.py)
_MAY_DIFFER = ("sliding_window", "rope", "backend", "use_flash")
_MOST = 100_000  # layers of a model


def blocks_of(model: Mapping[str, Any]) -> list[dict[str, Any]]:
    """Return the config of every block, with its attention under `sequence_mixer`.

    Raises:
        CkptconvError: blocks differ in more than their windows and rotary embeddings, or there are too many.
    """
    count, block = int(model["n_layers"]), model["block"]
    if not 0 < count <= _MOST:
        raise ValueError(f"n_layers {count}")
    overrides, pattern = model.get("block_overrides") or {}, model.get("block_pattern")
    found = []
    for layer in range(count):
        one = overrides.get(str(layer)) or (block[pattern[layer % len(pattern)]] if pattern else block)
        attention = one.get("sequence_mixer") or one["attention"]  # the older name
        found.append({**one, "sequence_mixer": attention})
    first = _alike(found[0])
    for layer, one in enumerate(found):
        if _alike(one) != first:
            raise CkptconvError(
                "OLMo-core trained a model whose layers are of different kinds, which no table covers",
                found=f"layer {layer} differs from layer 0",
            )
    return found


def windows_of(blocks: list[dict[str, Any]]) -> list[int | None]:
    """Return the sliding window of every layer in tokens; None for full attention.

    Raises:
        CkptconvError: layers have windows of different sizes, which no class of transformers has.
    """
    windows = [_window(block["sequence_mixer"], layer, len(blocks)) for layer, block in enumerate(blocks)]
    sizes = {window for window in windows if window is not None}
    if len(sizes) > 1:
        raise CkptconvError(
            "OLMo-core trained a model with sliding windows of several sizes, which no class of transformers has",
            found=", ".join(map(str, sorted(sizes))),
        )
    return windows


def _window(attention: Mapping[str, Any], layer: int, count: int) -> int | None:
    sliding = attention.get("sliding_window")
    if not sliding:
        return None
    first = sliding.get("force_full_attention_on_first_layer", True)
    if (first and layer == 0) or (
        sliding.get("force_full_attention_on_last_layer", True) and layer == count - 1
    ):
        return None
    window = int(sliding["pattern"][(layer - bool(first)) % len(sliding["pattern"])])
    return None if window == -1 else window


def _alike(block: Mapping[str, Any]) -> dict[str, Any]:
    """A block without what may differ from layer to layer."""
    attention = {key: value for key, value in block["sequence_mixer"].items() if key not in _MAY_DIFFER}
    return {**block, "sequence_mixer": attention, "attention": None}
