"""Config values of the tiny models, as plain data: importing this costs nothing.

transformers keeps many architectures in another form in memory than on the Hub (experts fused, prefixes
moved), which is what the tables of model types show: rank files hold the module's names, hub/ the Hub's.
"""

from typing import Any

# 54 query rows, 18 key rows, 27, 37 and 101: none is a multiple of 4, all differ.
QWEN2 = {
    "vocab_size": 101,
    "hidden_size": 27,
    "intermediate_size": 37,
    "num_hidden_layers": 2,
    "num_attention_heads": 9,
    "num_key_value_heads": 3,
    "head_dim": 6,
    "max_position_embeddings": 64,
    "tie_word_embeddings": False,
}
# Every dimension is a multiple of 4, for the even half of FSDP + TP.
QWEN2_EVEN = QWEN2 | {
    "vocab_size": 104,
    "hidden_size": 28,
    "intermediate_size": 40,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
}

BASE = QWEN2 | {"pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2}
# For architectures that know no head_dim but hidden_size / num_attention_heads.
WHOLE_HEADS = {"hidden_size": 42, "num_attention_heads": 3, "num_key_value_heads": 1, "head_dim": 14}
# Five experts of width 11: an expert's gate and up are 22 rows by 27 columns, down 27 by 11.
EXPERTS = {"num_experts_per_tok": 2, "moe_intermediate_size": 11}
SLIDING = {"sliding_window": 16, "layer_types": ["sliding_attention", "full_attention"]}
LINEAR_ATTENTION = {
    "layer_types": ["linear_attention", "full_attention"],
    "linear_conv_kernel_dim": 4,
    "linear_key_head_dim": 5,
    "linear_value_head_dim": 8,
    "linear_num_key_heads": 3,
    "linear_num_value_heads": 6,
}
MLA = {
    "q_lora_rank": 13,
    "kv_lora_rank": 17,
    "qk_rope_head_dim": 4,
    "head_dim": 4,
    "qk_nope_head_dim": 6,
    "v_head_dim": 7,
    "num_key_value_heads": 9,
}

TEXT: dict[str, dict[str, Any]] = {
    "llama": {},
    "mistral": {},
    "phi3": {},
    "qwen3": {},
    "qwen3_moe": EXPERTS | {"num_experts": 5},
    "qwen3_next": EXPERTS | LINEAR_ATTENTION | {"num_experts": 5, "shared_expert_intermediate_size": 19},
    "mixtral": {"num_experts_per_tok": 2, "num_local_experts": 5},
    "olmoe": WHOLE_HEADS | {"num_experts_per_tok": 2, "num_experts": 5},
    "gemma2": SLIDING | {"tie_word_embeddings": True},
    "gemma3_text": SLIDING | {"tie_word_embeddings": True},
    "gpt_oss": SLIDING | {"num_experts_per_tok": 2, "num_local_experts": 5},
    "deepseek_v3": EXPERTS
    | MLA
    | {"n_routed_experts": 6, "n_group": 2, "topk_group": 1, "first_k_dense_replace": 1},
    "glm4": {},
    "glm4_moe": EXPERTS
    | {"n_routed_experts": 5, "first_k_dense_replace": 1, "attention_bias": True, "use_qk_norm": True},
    "minimax_m2": {"num_experts_per_tok": 2, "num_local_experts": 5},
    "granite": {},
}

VISION_QWEN = {
    "depth": 2,
    "hidden_size": 20,
    "intermediate_size": 33,
    "num_heads": 5,
    "patch_size": 3,
    "in_channels": 3,
    "temporal_patch_size": 2,
    "spatial_merge_size": 2,
    "out_hidden_size": 27,
}
VISION_QWEN3 = VISION_QWEN | {"num_position_embeddings": 9, "deepstack_visual_indexes": [0]}
VISION_CLIP = {
    "hidden_size": 20,
    "intermediate_size": 33,
    "num_hidden_layers": 2,
    "num_attention_heads": 5,
    "num_channels": 3,
    "patch_size": 3,
    "image_size": 9,
}
TOKENS = {"image_token_id": 90, "video_token_id": 91, "vision_start_token_id": 92, "vision_end_token_id": 93}
ROPE = {"rope_parameters": {"rope_type": "default", "rope_theta": 1e4, "mrope_section": [1, 1, 1]}}
ROPE_WHOLE = {"rope_parameters": {"rope_type": "default", "rope_theta": 1e4, "mrope_section": [3, 2, 2]}}

VISION_TEXT: dict[str, dict[str, Any]] = {
    "qwen2_vl": TOKENS
    | {
        "text_config": BASE | WHOLE_HEADS | ROPE_WHOLE,
        "vision_config": {
            "depth": 2,
            "embed_dim": 20,
            "hidden_size": 42,
            "mlp_ratio": 2,
            "num_heads": 5,
            "patch_size": 3,
        },
    },
    "qwen2_5_vl": TOKENS
    | {
        "text_config": BASE | WHOLE_HEADS | ROPE_WHOLE,
        "vision_config": VISION_QWEN
        | {"out_hidden_size": 42, "fullatt_block_indexes": [1], "window_size": 12},
    },
    "qwen3_vl": TOKENS
    | {
        "text_config": BASE | ROPE,
        "vision_config": VISION_QWEN3,
    },
    "qwen3_vl_moe": TOKENS
    | {
        "text_config": BASE | ROPE | EXPERTS | {"num_experts": 5},
        "vision_config": VISION_QWEN3,
    },
    "qwen3_5_moe": TOKENS
    | {
        "text_config": BASE
        | EXPERTS
        | LINEAR_ATTENTION
        | {"num_experts": 5, "shared_expert_intermediate_size": 19},
        "vision_config": VISION_QWEN | {"num_position_embeddings": 9},
    },
    "gemma3": {
        "text_config": BASE | SLIDING,
        "vision_config": {"model_type": "siglip_vision_model"} | VISION_CLIP,
        "mm_tokens_per_image": 9,
        "image_token_index": 90,
    },
    "llava": {
        "text_config": {"model_type": "llama"} | BASE,
        "vision_config": {"model_type": "clip_vision_model"} | VISION_CLIP,
        "image_token_index": 90,
    },
    "internvl": {
        "text_config": {"model_type": "qwen2"} | BASE,
        "vision_config": {"model_type": "internvl_vision"}
        | VISION_CLIP
        | {"image_size": [9, 9], "patch_size": [3, 3]},
        "image_token_id": 90,
    },
}
MODEL_TYPES = (*TEXT, *VISION_TEXT)
