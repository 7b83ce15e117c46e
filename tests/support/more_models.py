"""Model types beyond those the checkpoints of tests/make are of; every dimension differs."""

import json
import os
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from make.configs import BASE, EXPERTS, MLA, TEXT, VISION_CLIP, VISION_QWEN, VISION_TEXT, WHOLE_HEADS

os.environ.setdefault("HF_HUB_OFFLINE", "1")

# Model types beyond those the checkpoints of tests/make are of; every dimension differs.
LOCAL = {"num_experts_per_tok": 2, "num_local_experts": 5}
MORE_TEXT: dict[str, dict[str, Any]] = {
    "qwen2_moe": EXPERTS | {"num_experts": 5, "shared_expert_intermediate_size": 19},
    "deepseek_v2": EXPERTS | MLA | {"n_routed_experts": 6, "first_k_dense_replace": 1},
    "dots1": EXPERTS
    | {
        "n_routed_experts": 6,
        "n_shared_experts": 1,
        "n_group": 2,
        "topk_group": 1,
        "first_k_dense_replace": 1,
    },
    "ernie4_5_moe": EXPERTS | {"moe_num_experts": 5, "moe_k": 2, "moe_layer_start_index": 1},
    "flex_olmo": WHOLE_HEADS | {"num_experts_per_tok": 2, "num_experts": 5},
    "granitemoe": LOCAL | WHOLE_HEADS,
    "granitemoeshared": LOCAL | WHOLE_HEADS | {"shared_intermediate_size": 19},
    "hunyuan_v1_moe": {"num_experts": 5, "moe_topk": 2},
    "jamba": WHOLE_HEADS
    | {"num_experts": 5, "num_experts_per_tok": 2, "expert_layer_period": 2, "attn_layer_period": 2}
    | {"attn_layer_offset": 1, "expert_layer_offset": 1, "mamba_d_state": 7, "mamba_dt_rank": 11}
    | {"use_mamba_kernels": False},
    "lfm2_moe": EXPERTS
    | {"num_experts": 5, "layer_types": ["conv", "full_attention"], "num_dense_layers": 1},
    "minimax": WHOLE_HEADS | LOCAL | {"layer_types": ["full_attention", "linear_attention"]},
    "phimoe": WHOLE_HEADS | LOCAL,
    "gpt_neox": {"hidden_size": 42, "num_attention_heads": 3},
    "nemotron_h": {"hidden_size": 42, "num_attention_heads": 3, "num_key_value_heads": 1},
}
MORE_VISION: dict[str, dict[str, Any]] = {
    "mistral3": {
        "text_config": {"model_type": "mistral"} | BASE,
        "vision_config": {"model_type": "pixtral"} | VISION_CLIP | {"head_dim": 4},
        "image_token_index": 90,
    },
    "paligemma": {
        "text_config": {"model_type": "gemma"} | BASE,
        "vision_config": {"model_type": "siglip_vision_model"} | VISION_CLIP,
        "image_token_index": 90,
    },
    "llava_next": {
        "text_config": {"model_type": "qwen3_moe"} | BASE | EXPERTS | {"num_experts": 5},
        "vision_config": {"model_type": "clip_vision_model"} | VISION_CLIP,
        "image_token_index": 90,
    },
    "glm4v_moe": {
        "text_config": BASE
        | EXPERTS
        | {"n_routed_experts": 5, "first_k_dense_replace": 1, "rope_parameters": {"rope_type": "default"}},
        "vision_config": VISION_QWEN,
    },
}
ALL = {**TEXT, **MORE_TEXT, **VISION_TEXT, **MORE_VISION}


def built(model_type: str, folder: Path) -> tuple[Any, dict[str, np.ndarray], dict[str, Any]]:
    """A tiny model with random values, its state dict as numpy and the config.json that it saves."""
    torch = pytest.importorskip("torch")
    import transformers

    if model_type in VISION_TEXT or model_type in MORE_VISION:
        config = transformers.AutoConfig.for_model(model_type, **ALL[model_type])
        model = transformers.AutoModelForImageTextToText.from_config(config)
    else:
        config = transformers.AutoConfig.for_model(model_type, **(BASE | ALL[model_type]))
        model = transformers.AutoModelForCausalLM.from_config(config)
    generator = torch.Generator().manual_seed(7)
    with torch.no_grad():
        for tensor in model.state_dict().values():
            if tensor.is_floating_point():
                tensor.copy_(torch.randn(tensor.shape, generator=generator))
    model.save_pretrained(folder)
    state = {name: tensor.numpy().copy() for name, tensor in model.state_dict().items()}
    return model, state, json.loads((folder / "config.json").read_text())
