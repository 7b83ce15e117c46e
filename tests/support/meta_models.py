"""Names and shapes of transformers' models, built on the meta device."""

from __future__ import annotations

import json
from typing import Any

from ckptconv.models.hub_names import to_hub

# Classes whose names are converted by operations that are not copies -> the first of them, by which they are refused.
REFUSED = {
    "DoryForCausalLM": "LayerPairCollapse",
    "DoryModel": "LayerPairCollapse",
    "Inkling2ForCausalLM": "Inkling2UnpadVocab",
    "Inkling2ForConditionalGeneration": "Inkling2UnpadVocab",
    "Inkling2LoopForCausalLM": "Inkling2LoopDequantizeExperts",
    "Inkling2LoopForConditionalGeneration": "Inkling2LoopDequantizeExperts",
    "Inkling2LoopModel": "Inkling2LoopDequantizeExperts",
    "Inkling2LoopTextModel": "Inkling2LoopDequantizeExperts",
}
Shapes = dict[str, tuple[int, ...]]


def built(architecture: str, model_type: str = "", **changes: Any) -> tuple[dict[str, Any], Shapes]:
    """A config and the Hub's names and shapes of a model, from transformers itself.

    Args:
        architecture: the class.
        model_type: the type whose config the class is built from; its own when omitted.
        changes: what differs from the default config.
    """
    import torch
    import transformers
    from transformers.models.auto.configuration_auto import CONFIG_MAPPING

    cls = getattr(transformers, architecture)
    config_class = CONFIG_MAPPING[model_type] if model_type else cls.config_class
    with torch.device("meta"):
        model = cls._from_config(config_class(**changes))
    config = {**json.loads(model.config.to_json_string(use_diff=False)), "architectures": [architecture]}
    renamed = to_hub(model.state_dict(), config)
    ties = set(model.all_tied_weights_keys or {})
    shapes = {n: tuple(t.shape) for n, t in renamed.tensors.items() if not ties & set(t.sources)}
    return config, shapes
