"""Tiny models that only the repositories of Megatron-Bridge and Megatron-LM, or the newest mcore-bridge, can hold."""

from __future__ import annotations

import json
from collections.abc import Callable

import families
import torch
from families import (
    DELTA,
    DOTS,
    EXPERTS,
    LATENT,
    TEXT,
    VISION,
    New,
    Tensors,
    joined,
    renamed,
    then,
    values_of,
)

FALCON = TEXT | {
    "head_dim": 8,
    "hidden_size": 28,
    "num_hidden_layers": 2,
    "vocab_size": 90,
    "mamba_d_ssm": 56,
    "mamba_n_heads": 8,
    "mamba_d_head": 7,
    "mamba_n_groups": 2,
    "mamba_d_state": 5,
    "mamba_d_conv": 4,
    "mamba_expand": 2,
    "mamba_rms_norm": True,
    "mamba_norm_before_gate": False,
    "mamba_chunk_size": 8,
    "mlp_multipliers": [1.0, 1.0],
    "ssm_multipliers": [1.0] * 5,
}
MIMO_V2 = EXPERTS | {
    "vocab_size": 90,
    "num_hidden_layers": 3,
    "num_attention_heads": 8,
    "head_dim": 8,
    "v_head_dim": 5,
    "num_key_value_heads": 2,
    "swa_num_attention_heads": 8,
    "swa_num_key_value_heads": 4,
    "swa_head_dim": 8,
    "swa_v_head_dim": 5,
    "hybrid_layer_pattern": [0, 1, 1],
    "layer_types": ["full_attention", "sliding_attention", "sliding_attention"],
    "mlp_layer_types": ["dense", "sparse", "sparse"],
    "moe_layer_freq": [0, 1, 1],
    "n_routed_experts": 6,
    "sliding_window": 9,
    "sliding_window_size": 9,
    "layernorm_epsilon": 1e-6,
    "rope_theta": 5000000.0,
    "swa_rope_theta": 10000.0,
    "rope_parameters": {
        "full_attention": {"rope_type": "default", "rope_theta": 5000000.0},
        "sliding_attention": {"rope_type": "default", "rope_theta": 10000.0},
    },
    "attention_value_scale": 0.7,
    "add_swa_attention_sink_bias": True,
    "add_full_attention_sink_bias": False,
    "n_group": 1,
    "topk_group": 1,
    "scoring_func": "sigmoid",
    "topk_method": "noaux_tc",
}
BAILING = DOTS | {
    "num_shared_experts": 1,
    "vocab_size": 90,
    "n_shared_experts": 1,
    "score_function": "sigmoid",
    "use_qk_norm": True,
    "use_bias": False,
    "rope_theta": 10000.0,
}
SARVAM = BAILING | {"routed_scaling_factor": 2.5}
GEMMA4 = {key: value for key, value in TEXT.items() if key != "rope_theta"} | {
    "vocab_size": 90,
    "head_dim": 8,
    "global_head_dim": 10,
    "hidden_activation": "gelu_pytorch_tanh",
    "sliding_window": 9,
    "num_hidden_layers": 5,
    "layer_types": ["sliding_attention", "full_attention"] * 2 + ["full_attention"],
    "num_kv_shared_layers": 1,
    "hidden_size_per_layer_input": 4,
    "vocab_size_per_layer_input": 90,
    "tie_word_embeddings": True,
    "final_logit_softcapping": 30.0,
}
GEMMA4_MOE = GEMMA4 | {
    "num_hidden_layers": 2,
    "layer_types": ["sliding_attention", "full_attention"],
    "num_key_value_heads": 6,
    "num_global_key_value_heads": 2,
    "attention_k_eq_v": True,
    "num_kv_shared_layers": 0,
    "hidden_size_per_layer_input": 0,
    "enable_moe_block": True,
    "num_experts": 4,
    "top_k_experts": 2,
    "moe_intermediate_size": 10,
}
MINIMAX_M3 = TEXT | {
    "vocab_size": 90,
    "head_dim": 8,
    "num_hidden_layers": 2,
    "num_local_experts": 4,
    "num_experts_per_tok": 2,
    "intermediate_size": 10,
    "dense_intermediate_size": 42,
    "shared_intermediate_size": 14,
    "mlp_layer_types": ["dense", "sparse"],
    "layer_types": ["full_attention", "minimax_m3_sparse"],
    "index_n_heads": 2,
    "index_head_dim": 6,
    "rotary_dim": 4,
    "routed_scaling_factor": 2.0,
    "scoring_func": "sigmoid",
    "use_qk_norm": True,
}
DEEPSEEK_V4 = {
    "vocab_size": 90,
    "hidden_size": 20,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "num_key_value_heads": 1,
    "head_dim": 12,
    "q_lora_rank": 14,
    "o_groups": 2,
    "o_lora_rank": 6,
    "qk_rope_head_dim": 4,
    "n_routed_experts": 4,
    "num_experts_per_tok": 2,
    "moe_intermediate_size": 10,
    "n_shared_experts": 1,
    "index_n_heads": 2,
    "index_head_dim": 8,
    "index_topk": 4,
    "hc_mult": 2,
    "scoring_func": "sigmoid",
    "num_hash_layers": 1,
    "compress_ratios": [0, 4, 128],
    "sliding_window": 8,
    "rope_theta": 10000.0,
    "rope_scaling": {
        "type": "yarn",
        "factor": 4,
        "original_max_position_embeddings": 16,
        "beta_fast": 32,
        "beta_slow": 1,
    },
    "num_nextn_predict_layers": 0,
    "tie_word_embeddings": False,
}
BAILING_NAMES = then(
    joined(
        "model.layers.LAYER.self_attn.{}_proj.weight", "model.layers.LAYER.attention.query_key_value.weight"
    ),
    renamed(
        (r"embed_tokens", "word_embeddings"),
        (r"self_attn\.o_proj", "attention.dense"),
        (r"self_attn\.q_norm", "attention.query_layernorm"),
        (r"self_attn\.k_norm", "attention.key_layernorm"),
        (r"gate\.e_score_correction_bias", "gate.expert_bias"),
    ),
)


def with_mimo_mtp(tensors: Tensors) -> Tensors:
    """Adds two MTP layers in MiMo-V2-Flash's names: attention with sinks, as sliding layers have it, and a dense MLP."""
    hidden, heads, groups, qk, v, inner = 22, 8, 4, 8, 5, 42
    shapes = {
        "enorm.weight": (hidden,),
        "hnorm.weight": (hidden,),
        "eh_proj.weight": (hidden, 2 * hidden),
        "final_layernorm.weight": (hidden,),
        "input_layernorm.weight": (hidden,),
        "pre_mlp_layernorm.weight": (hidden,),
        "self_attn.q_proj.weight": (heads * qk, hidden),
        "self_attn.k_proj.weight": (groups * qk, hidden),
        "self_attn.v_proj.weight": (groups * v, hidden),
        "self_attn.o_proj.weight": (hidden, heads * v),
        "self_attn.attention_sink_bias": (heads,),
        "mlp.gate_proj.weight": (inner, hidden),
        "mlp.up_proj.weight": (inner, hidden),
        "mlp.down_proj.weight": (hidden, inner),
    }
    names = {f"model.mtp.layers.{i}.{name}": shape for i in range(2) for name, shape in shapes.items()}
    return tensors | {name: values_of(name, shape) for name, shape in names.items()}


NEMOTRON = TEXT | {
    "head_dim": 8,
    "vocab_size": 90,
    "num_hidden_layers": 4,
    "hybrid_override_pattern": "M*-E",
    "mamba_num_heads": 4,
    "mamba_head_dim": 7,
    "n_groups": 2,
    "ssm_state_size": 5,
    "conv_kernel": 4,
    "mlp_hidden_act": "relu2",
    "use_conv_bias": True,
    "n_routed_experts": 4,
    "num_experts_per_tok": 2,
    "moe_intermediate_size": 10,
    "moe_shared_expert_intermediate_size": 14,
    "moe_latent_size": 12,
    "n_group": 1,
    "topk_group": 1,
    "num_nextn_predict_layers": 1,
    "mtp_hybrid_override_pattern": "*E",
    "mtp_layers_block_type": ["attention", "moe"],
}


def with_nemotron_mtp(tensors: Tensors) -> Tensors:
    """Adds an MTP layer in the names of Nemotron 3: attention, then experts, as layers 1 and 3 have them."""
    hidden = tensors["backbone.norm_f.weight"].numel()
    shapes = {f"mtp.layers.0.{name}.weight": (hidden,) for name in ("enorm", "hnorm")}
    shapes |= {
        "mtp.layers.0.eh_proj.weight": (hidden, 2 * hidden),
        "mtp.layers.1.final_layernorm.weight": (hidden,),
    }
    for at, layer in enumerate((1, 3)):
        old = f"backbone.layers.{layer}."
        shapes |= {
            name.replace(old, f"mtp.layers.{at}."): t.shape
            for name, t in tensors.items()
            if name.startswith(old)
        }
    biases = {name for name in shapes if name.endswith("e_score_correction_bias")}
    made = {name: values_of(name, shape) for name, shape in shapes.items()}
    return tensors | made | {name: made[name].float() for name in biases}


def in_float32(*ends: str) -> Callable[[Tensors], Tensors]:
    """Makes the tensors whose names end so float32, as Megatron-Bridge holds them."""
    return lambda tensors: {n: t.float() if n.endswith(ends) else t for n, t in tensors.items()}


STEP = {
    "model_type": "step3p5",
    "architectures": ["Step3p5ForCausalLM"],
    "torch_dtype": "bfloat16",
    "vocab_size": 90,
    "hidden_size": 22,
    "intermediate_size": 42,
    "num_hidden_layers": 3,
    "num_attention_heads": 6,
    "num_attention_groups": 2,
    "head_dim": 8,
    "layer_types": ["full_attention", "sliding_attention", "full_attention", "sliding_attention"],
    "attention_other_setting": {
        "attention_type": "sliding_attention",
        "num_attention_heads": 4,
        "num_attention_groups": 4,
        "head_dim": 8,
    },
    "use_head_wise_attn_gate": True,
    "use_qk_norm": True,
    "sliding_window": 9,
    "moe_layers_enum": "1,2",
    "moe_num_experts": 4,
    "moe_top_k": 2,
    "moe_intermediate_size": 10,
    "share_expert_dim": 14,
    "use_moe_router_bias": True,
    "moe_router_activation": "sigmoid",
    "moe_router_scaling_factor": 3.0,
    "norm_expert_weight": True,
    "zero_centered": True,
    "num_nextn_predict_layers": 1,
    "rope_theta": 10000.0,
    "rms_norm_eps": 1e-5,
    "max_position_embeddings": 64,
    "tie_word_embeddings": False,
}


def step_tensors(_: Tensors) -> Tensors:
    """Step-3.5's tensors by their published names, which no class of transformers has."""
    hidden, dim, experts, inner = 22, 8, 4, 10
    shapes: dict[str, tuple[int, ...]] = {
        "model.embed_tokens.weight": (90, hidden),
        "model.norm.weight": (hidden,),
        "lm_head.weight": (90, hidden),
    }

    def mlp(name: str, width: int) -> None:
        for part, shape in (("gate", (width, hidden)), ("up", (width, hidden)), ("down", (hidden, width))):
            shapes[f"{name}.{part}_proj.weight"] = shape

    for number in range(4):
        layer, heads, groups = f"model.layers.{number}.", *((6, 2), (4, 4))[number % 2]
        shapes |= {
            f"{layer}{name}.weight": (hidden,) for name in ("input_layernorm", "post_attention_layernorm")
        }
        rows = {"q": heads * dim, "k": groups * dim, "v": groups * dim, "g": heads}
        shapes |= {f"{layer}self_attn.{name}_proj.weight": (size, hidden) for name, size in rows.items()}
        shapes |= {f"{layer}self_attn.{name}_norm.weight": (dim,) for name in "qk"}
        shapes[f"{layer}self_attn.o_proj.weight"] = hidden, heads * dim
        if number in (0, 3):
            mlp(f"{layer}mlp", 42)
        else:
            mlp(f"{layer}share_expert", 14)
            shapes |= {f"{layer}moe.gate.weight": (experts, hidden), f"{layer}moe.router_bias": (experts,)}
            shapes |= {f"{layer}moe.{n}_proj.weight": (experts, inner, hidden) for n in ("gate", "up")}
            shapes[f"{layer}moe.down_proj.weight"] = experts, hidden, inner
    mtp = "model.layers.3."
    shapes |= {f"{mtp}{n}.weight": (hidden,) for n in ("enorm", "hnorm", "transformer.shared_head.norm")}
    shapes[f"{mtp}eh_proj.weight"] = hidden, 2 * hidden
    return in_float32("router_bias")({name: values_of(name, shape) for name, shape in shapes.items()})


MCORE = {
    "bailing_hybrid": New(
        "bailing_hybrid",
        BAILING
        | {
            "num_hidden_layers": 2,
            "num_key_value_heads": 6,
            "layer_group_size": 2,
            "num_mtp_layers": 0,
            "num_nextn_predict_layers": 0,
            "group_norm_size": 2,
            "q_lora_rank": 14,
            "kv_lora_rank": 16,
            "qk_nope_head_dim": 6,
            "qk_rope_head_dim": 8,
            "v_head_dim": 7,
            "first_k_dense_replace": 1,
        },
        like="dots1",
        architecture="BailingMoeV2_5ForCausalLM",
        finish=then(BAILING_NAMES, lambda tensors: with_latent_layer(tensors)),
    ),
    "glm46v": New(
        "glm46v",
        {
            "text_config": TEXT
            | {
                "model_type": "glm4v_text",
                "num_hidden_layers": 2,
                "hidden_size": 36,
                "attention_bias": True,
                "rope_parameters": families.ROPE_3D | {"partial_rotary_factor": 0.5},
            },
            "vision_config": VISION
            | {"out_hidden_size": 36, "image_size": 8, "intermediate_size": 20, "model_type": "glm4v_vision"},
        },
        auto="AutoModelForImageTextToText",
    ),
    "llama4_text": New(
        "llama4_text",
        {
            "head_dim": 8,
            "num_hidden_layers": 4,
            "intermediate_size": 10,
            "intermediate_size_mlp": 18,
            "num_local_experts": 6,
            "num_experts_per_tok": 1,
            "interleave_moe_layer_step": 2,
            "attn_temperature_tuning": False,
            "use_qk_norm": True,
            "vocab_size": 90,
        },
    ),
    "qwen3_asr": New(
        "qwen3_asr",
        {
            "audio_config": families.AUDIO | {"output_dim": 26},
            "text_config": TEXT | {"model_type": "qwen3", "head_dim": 8, "num_hidden_layers": 2},
        },
        auto="AutoModelForSpeechSeq2Seq",
    ),
}


def with_latent_layer(tensors: Tensors) -> Tensors:
    """Ling 2.5: the first layer's attention gets a gate and a norm, the second one's becomes latent attention."""
    hidden, heads = 22, 6
    first, second = "model.layers.0.attention.", "model.layers.1.attention."
    made = {name: t for name, t in tensors.items() if not name.startswith(second)}
    shapes = {
        first + "g_proj.weight": (heads * 8, hidden),
        first + "g_norm.weight": (heads * 8,),
        second + "q_a_proj.weight": (14, hidden),
        second + "q_a_layernorm.weight": (14,),
        second + "q_b_proj.weight": (heads * (6 + 8), 14),
        second + "kv_a_proj_with_mqa.weight": (16 + 8, hidden),
        second + "kv_a_layernorm.weight": (16,),
        second + "kv_b_proj.weight": (heads * (6 + 7), 16),
        second + "dense.weight": (hidden, heads * 7),
    }
    return made | {name: values_of(name, shape) for name, shape in shapes.items()}


CHATGLM = {
    "model_type": "chatglm",
    "architectures": ["ChatGLMModel"],
    "auto_map": {"AutoModelForCausalLM": "modeling_chatglm.ChatGLMForConditionalGeneration"},
    "num_layers": 2,
    "hidden_size": 26,
    "ffn_hidden_size": 42,
    "num_attention_heads": 6,
    "multi_query_attention": True,
    "multi_query_group_num": 2,
    "kv_channels": 8,
    "padded_vocab_size": 90,
    "seq_length": 64,
    "layernorm_epsilon": 1e-5,
    "rmsnorm": True,
    "add_bias_linear": False,
    "add_qkv_bias": True,
    "tie_word_embeddings": False,
    "torch_dtype": "bfloat16",
}


def chatglm_tensors(tensors: Tensors) -> Tensors:
    """ChatGLM's names and joined tensors, of Qwen2's."""
    for what in ("weight", "bias"):
        old, new = f"self_attn.{{}}_proj.{what}", f"self_attention.query_key_value.{what}"
        tensors = joined(f"model.layers.LAYER.{old}", f"model.layers.LAYER.{new}")(tensors)
    made = {}
    for name, tensor in tensors.items():
        if name.endswith("gate_proj.weight"):
            up = tensors[name.replace("gate", "up")]
            made[name.replace("gate_proj", "dense_h_to_4h")] = torch.cat((tensor, up))
        elif not name.endswith("up_proj.weight"):
            made[name] = tensor
    return renamed(
        (r"^model\.embed_tokens", "transformer.embedding.word_embeddings"),
        (r"^model\.norm", "transformer.encoder.final_layernorm"),
        (r"^lm_head", "transformer.output_layer"),
        (r"^model\.layers", "transformer.encoder.layers"),
        (r"self_attn\.o_proj", "self_attention.dense"),
        (r"down_proj", "dense_4h_to_h"),
    )(made)


OVIS = '''"""Stands in for the code of the published repository."""

from torch import nn

INDICATOR_IDS = [-301, -302, -303, -304]
VisualEmbedding = nn.Embedding


class VisualTokenizer(nn.Module):
    def __init__(self, vit, visual_vocab_size, image_processor_name_or_path):
        super().__init__()
        self.vit = vit
        self.head = nn.Linear(12, visual_vocab_size - len(INDICATOR_IDS), bias=False)
'''
RICE = families.STAND_IN + "\n\nRiceTransformerPretrainedModel = MoonVitPretrainedModel\n"
QWEN3 = TEXT | {"model_type": "qwen3", "head_dim": 8, "num_hidden_layers": 2}
AROUND = {
    "ovis2_5": New(
        "ovis2_5",
        {"llm_config": QWEN3, "vit_config": {"hidden_size": 12}, "visual_vocab_size": 18, "hidden_size": 26},
        architecture="Ovis2_5",
        outer="llm_config",
        prefix="llm.",
        files={"modeling_ovis2_5.py": OVIS, "modeling_tower.py": families.STAND_IN},
        extra={
            **{name.replace("vision_tower", "visual_tokenizer.vit"): s for name, s in families.TOWER.items()},
            "visual_tokenizer.head.weight": (14, 12),
            "vte.weight": (18, 26),
        },
    ),
    "llava_onevision1_5": New(
        "llava_onevision1_5",
        {"text_config": QWEN3},
        architecture="LLaVAOneVision1_5_ForConditionalGeneration",
        outer="text_config",
        prefix="",
        files={"modeling_llavaonevision1_5.py": RICE},
        extra={name.replace("vision_tower", "visual"): shape for name, shape in families.TOWER.items()},
    ),
}
PLAIN = {"head_dim": 8, "num_hidden_layers": 2, "vocab_size": 90}
NEMO = {
    "mistral4": New("mistral", PLAIN | {"num_hidden_layers": 4, "sliding_window": None}),
    "phi3": New("phi3", PLAIN | {"hidden_size": 48}),
    "starcoder2": New("starcoder2", PLAIN | {"hidden_size": 48, "use_bias": True, "norm_epsilon": 1e-5}),
    "baichuan": New(
        "baichuan",
        PLAIN | {"hidden_size": 48, "num_key_value_heads": 6},
        like="llama",
        architecture="BaichuanForCausalLM",
        finish=joined(
            "model.layers.LAYER.self_attn.{}_proj.weight", "model.layers.LAYER.self_attn.W_pack.weight"
        ),
    ),
    "chatglm": New(
        "chatglm",
        PLAIN,
        like="qwen2",
        architecture="ChatGLMModel",
        finish=chatglm_tensors,
        files={"config.json": json.dumps(CHATGLM, indent=2) + "\n"},
    ),
}


def block(queries: int | None, mult: float | None) -> dict[str, dict[str, object]]:
    """A layer of Nemotron-NAS. queries: per KV head, None for no attention. mult: of its MLP's width, None for no MLP."""
    linear = {"replace_with_linear": False}
    return {
        "attention": {"n_heads_in_group": queries, "no_op": queries is None} | linear,
        "ffn": {"ffn_mult": mult, "no_op": mult is None} | linear,
    }


NAS_BLOCKS = [block(3, 1.5), block(None, 1.5), block(2, 20.0), block(6, None)]


def nas_tensors(tensors: Tensors) -> Tensors:
    """Llama's tensors with each layer's own number of KV heads and width, and without what a layer does not have."""
    made = {name: tensor for name, tensor in tensors.items() if ".layers." not in name}
    hidden, heads, dim = 24, 6, 4
    for number, one in enumerate(NAS_BLOCKS):
        layer, queries, mult = (
            f"model.layers.{number}.",
            one["attention"]["n_heads_in_group"],
            one["ffn"]["ffn_mult"],
        )
        shapes: dict[str, tuple[int, ...]] = {}
        if isinstance(queries, int):
            rows = heads // queries * dim
            shapes |= {"input_layernorm": (hidden,), "self_attn.o_proj": (hidden, heads * dim)}
            shapes |= {"self_attn.q_proj": (heads * dim, hidden)}
            shapes |= {f"self_attn.{name}_proj": (rows, hidden) for name in "kv"}
        if isinstance(mult, float):
            width = -(-int(2 * mult * hidden / 3) // 256) * 256
            shapes |= {"post_attention_layernorm": (hidden,), "mlp.down_proj": (hidden, width)}
            shapes |= {f"mlp.{name}_proj": (width, hidden) for name in ("gate", "up")}
        names = {f"{layer}{name}.weight": shape for name, shape in shapes.items()}
        made |= {name: values_of(name, shape) for name, shape in names.items()}
    return made


AUDIO = {
    "d_model": 12,
    "encoder_layers": 1,
    "encoder_attention_heads": 2,
    "encoder_ffn_dim": 18,
    "num_mel_bins": 8,
    "max_source_positions": 20,
}

NEW: dict[str, New] = (
    families.NEW
    | MCORE
    | NEMO
    | AROUND
    | {
        "exaone4": New(
            "exaone4",
            {
                "head_dim": 8,
                "vocab_size": 90,
                "tie_word_embeddings": True,
                "sliding_window": None,
                "sliding_window_pattern": None,
                "layer_types": ["full_attention"] * 3,
            },
        ),
        "exaone_moe": New(
            "exaone_moe",
            EXPERTS
            | {
                "vocab_size": 90,
                "head_dim": 8,
                "num_shared_experts": 2,
                "first_k_dense_replace": 1,
                "sliding_window": 9,
                "sliding_window_pattern": 2,
                "mlp_layer_types": ["dense", "sparse"],
            },
        ),
        "nemotron_h_moe": New("nemotron_h", NEMOTRON, finish=with_nemotron_mtp),
        "falcon_h1": New("falcon_h1", FALCON),
        "mimo_v2_flash": New(
            "mimo_v2_flash",
            MIMO_V2,
            like="mimo_v2_flash",
            architecture="MiMoV2FlashForCausalLM",
            finish=with_mimo_mtp,
        ),
        "bailing_moe_v2": New(
            "bailing_moe_v2",
            BAILING,
            like="dots1",
            architecture="BailingMoeV2ForCausalLM",
            finish=BAILING_NAMES,
        ),
        "sarvam_moe": New(
            "sarvam_moe", SARVAM, like="dots1", architecture="SarvamMoEForCausalLM", finish=BAILING_NAMES
        ),
        "sarvam_mla": New(
            "sarvam_mla",
            LATENT
            | families.NOAUX
            | {
                "q_lora_rank": None,
                "first_k_dense_replace": 1,
                "num_experts": 4,
                "num_shared_experts": 1,
                "routed_scaling_factor": 2.5,
                "vocab_size": 90,
                "intermediate_size": 42,
            },
            like="deepseek_v3",
            architecture="SarvamMLAForCausalLM",
        ),
        "qwen3_5_text": New("qwen3_5_text", DELTA | {"vocab_size": 90}),
        "qwen3_5_moe_text": New(
            "qwen3_5_moe_text",
            DELTA | EXPERTS | {"vocab_size": 90, "shared_expert_intermediate_size": 14},
            finish=families.stacked_experts,
        ),
        "gemma4_text": New("gemma4_text", GEMMA4, without=("rope_theta",)),
        "gemma4_text_moe": New("gemma4_text", GEMMA4_MOE, without=("rope_theta",)),
        "gemma4": New(
            "gemma4",
            {
                "text_config": GEMMA4_MOE | {"model_type": "gemma4_text"},
                "vision_config": {
                    "hidden_size": 12,
                    "intermediate_size": 18,
                    "num_hidden_layers": 1,
                    "num_attention_heads": 2,
                    "num_key_value_heads": 2,
                    "head_dim": 6,
                    "patch_size": 2,
                    "position_embedding_size": 16,
                },
                "audio_config": None,
                "tie_word_embeddings": True,
            },
            auto="AutoModelForImageTextToText",
        ),
        "minimax_m3_vl": New(
            "minimax_m3_vl",
            {
                "text_config": MINIMAX_M3 | {"model_type": "minimax_m3_vl_text"},
                "vision_config": {
                    "hidden_size": 12,
                    "intermediate_size": 18,
                    "num_hidden_layers": 1,
                    "num_attention_heads": 2,
                    "image_size": 8,
                    "patch_size": 2,
                },
                "projector_hidden_size": 16,
            },
            finish=in_float32("block_sparse_moe.gate.weight", "patch_embedding.weight"),
            auto="AutoModelForImageTextToText",
        ),
        "deepseek_v4": New(
            "deepseek_v4",
            DEEPSEEK_V4,
            finish=then(
                renamed(  # transformers 5.23 writes the published names only in part
                    (r"^model\.hc_head\.", ""),
                    (r"^hc_", "hc_head_"),
                    (r"^model\.embed_tokens", "embed"),
                    (r"^model\.", ""),
                    (r"\.attn\.norm\.", ".attn.kv_norm."),
                ),
                in_float32("_fn", "_base", "_scale", ".attn_sink", ".ape", "gate.bias"),
                lambda tensors: {
                    name: (torch.arange(t.numel()) * 7 % 4).int().reshape(t.shape) if "tid2eid" in name else t
                    for name, t in tensors.items()
                },
            ),
        ),
        "ernie4_5_vl_moe": New(
            "ernie4_5_vl_moe",
            {
                "tie_word_embeddings": True,
                "text_config": TEXT
                | {
                    "vocab_size": 90,
                    "hidden_size": 48,
                    "num_hidden_layers": 2,
                    "moe_intermediate_size": [18, 6],
                    "moe_num_experts": 4,
                    "tie_word_embeddings": True,
                    "moe_k": 2,
                    "moe_num_shared_experts": 1,
                    "mlp_layer_types": ["dense", "sparse"],
                    "rope_parameters": {
                        "rope_type": "default",
                        "rope_theta": 10000.0,
                        "mrope_section": [1, 1, 2],
                    },
                },
                "vision_config": {
                    "depth": 1,
                    "hidden_size": 12,
                    "num_heads": 2,
                    "patch_size": 2,
                    "intermediate_size": 18,
                },
            },
            auto="AutoModelForImageTextToText",
        ),
        "step3p5": New(
            "step3p5",
            {},
            like="qwen3",
            finish=step_tensors,
            files={"config.json": json.dumps(STEP, indent=2)},
        ),
        "nemotron-nas": New(
            "nemotron-nas",
            {
                "hidden_size": 24,
                "head_dim": 4,
                "num_hidden_layers": len(NAS_BLOCKS),
                "vocab_size": 90,
                "block_configs": NAS_BLOCKS,
            },
            like="llama",
            architecture="DeciLMForCausalLM",
            finish=nas_tensors,
        ),
        "qwen2_audio": New(
            "qwen2_audio",
            {
                "text_config": TEXT
                | {"model_type": "qwen2", "num_hidden_layers": 2, "hidden_size": 36, "vocab_size": 90},
                "audio_config": AUDIO,
            },
            auto="Qwen2AudioForConditionalGeneration",
        ),
        "exaone4_5": New(
            "exaone4_5",
            {
                "text_config": TEXT
                | {
                    "model_type": "exaone4",
                    "head_dim": 8,
                    "num_hidden_layers": 2,
                    "vocab_size": 90,
                    "sliding_window": None,
                    "sliding_window_pattern": None,
                    "layer_types": ["full_attention"] * 2,
                },
                "vision_config": VISION
                | {"num_heads": 4, "num_key_value_heads": 2, "fullatt_block_indexes": [1], "window_size": 8},
            },
            auto="AutoModelForImageTextToText",
        ),
    }
)
