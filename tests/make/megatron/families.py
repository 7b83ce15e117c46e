"""Tiny models of the newer families. Their values are slices of one short random sequence, so that packed files stay small.

A model is made by transformers where it has the class, with other names or more tensors where the published model has
those. No two sizes of a model are equal where its architecture lets them differ.
"""

from __future__ import annotations

import re
import zlib
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import torch

Tensors = dict[str, torch.Tensor]
PERIOD = 1021  # a prime, so that no row of a matrix repeats another one

# Of Megatron's arguments, those that a reader may compare with config.json: the rest of them takes space in a packed file.
COMPARED = (
    *(
        "num_layers",
        "hidden_size",
        "num_attention_heads",
        "num_query_groups",
        "kv_channels",
        "layernorm_epsilon",
    ),
    *("rotary_base", "rotary_percent", "num_moe_experts", "moe_router_topk", "moe_router_num_groups"),
    *(
        "moe_router_group_topk",
        "moe_router_topk_scaling_factor",
        "multi_latent_attention",
        "gated_linear_unit",
    ),
    *("tensor_model_parallel_size", "pipeline_model_parallel_size", "expert_model_parallel_size"),
    *("expert_tensor_parallel_size", "mtp_num_layers"),
)


def values_of(name: str, shape: Any) -> torch.Tensor:
    """Values that the name decides: PERIOD random numbers, read from some place on, again and again."""
    generator = torch.Generator().manual_seed(7)
    sequence = (torch.randn(PERIOD, generator=generator) * 0.05).to(torch.bfloat16)
    count = int(torch.Size(shape).numel())
    return sequence[(zlib.crc32(name.encode()) + torch.arange(count)) % PERIOD].reshape(shape)


@dataclass(frozen=True)
class New:
    """One model. model_type, architecture: what config.json says. like: the model type whose class makes it.

    values: of its config, over tiny.TEXT. auto: the class. finish: changes the tensors into the published ones.
    inner: the part of the config that the class takes; its tensors have that part's name before theirs.
    outer: for models whose code is not in transformers: the part of the config that is the language model's.
    prefix: what its tensors have before their names. extra: shapes of the other modules' tensors.
    files: further files of the folder, such as the code that a bridge loads from it.
    without: keys of tiny.TEXT that the model's config does not have.
    """

    model_type: str
    values: dict[str, Any]
    like: str = ""
    architecture: str = ""
    auto: str = "AutoModelForCausalLM"
    inner: str = ""
    outer: str = ""
    prefix: str = "language_model."
    extra: dict[str, tuple[int, ...]] = field(default_factory=dict)
    finish: Callable[[Tensors], Tensors] = lambda tensors: tensors
    files: dict[str, str] = field(default_factory=dict)
    without: tuple[str, ...] = ()


EXPERTS = {
    "num_hidden_layers": 2,
    "hidden_size": 22,
    "vocab_size": 83,
    "num_experts": 6,
    "num_experts_per_tok": 2,
    "moe_intermediate_size": 10,
}


def renamed(*pairs: tuple[str, str]) -> Callable[[Tensors], Tensors]:
    """Replaces by regular expressions in the names; a name that becomes empty is left out."""

    def finish(tensors: Tensors) -> Tensors:
        made = {}
        for name, tensor in tensors.items():
            for old, new in pairs:
                name = re.sub(old, new, name)
            if name:
                made[name] = tensor
        return made

    return finish


def joined(pattern: str, target: str) -> Callable[[Tensors], Tensors]:
    """Joins q, k and v of each layer along dim 0. pattern: with {} for the letter. target: the new name, with {}."""

    def finish(tensors: Tensors) -> Tensors:
        made = dict(tensors)
        for name in tensors:
            found = re.fullmatch(re.escape(pattern.format("q")).replace("LAYER", r"(\d+)"), name)
            if found:
                parts = [made.pop(pattern.replace("LAYER", found[1]).format(letter)) for letter in "qkv"]
                made[target.replace("LAYER", found[1])] = torch.cat(parts)
        return made

    return finish


def then(*steps: Callable[[Tensors], Tensors]) -> Callable[[Tensors], Tensors]:
    def finish(tensors: Tensors) -> Tensors:
        for step in steps:
            tensors = step(tensors)
        return tensors

    return finish


TEXT = {
    "vocab_size": 83,
    "hidden_size": 26,
    "num_hidden_layers": 3,
    "num_attention_heads": 6,
    "num_key_value_heads": 2,
    "intermediate_size": 42,
    "max_position_embeddings": 64,
    "rms_norm_eps": 1e-6,
    "rope_theta": 10000.0,
    "tie_word_embeddings": False,
    "bos_token_id": 1,
    "eos_token_id": 2,
    "pad_token_id": 0,
}
LATENT = {
    "vocab_size": 82,
    "hidden_size": 20,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 4,
    "n_routed_experts": 4,
    "num_experts_per_tok": 2,
    "moe_intermediate_size": 10,
    "n_shared_experts": 1,
    "q_lora_rank": 14,
    "kv_lora_rank": 16,
    "qk_nope_head_dim": 8,
    "qk_rope_head_dim": 6,
    "v_head_dim": 7,
    "n_group": 1,
    "topk_group": 1,
    "num_nextn_predict_layers": 0,
}
NOAUX = {"scoring_func": "sigmoid", "topk_method": "noaux_tc"}
SPARSE = LATENT | {"index_n_heads": 2, "index_head_dim": 12, "index_topk": 4}
DELTA = {
    "head_dim": 8,
    "num_hidden_layers": 2,
    "full_attention_interval": 2,
    "layer_types": ["linear_attention", "full_attention"],
    "linear_conv_kernel_dim": 3,
    "linear_num_key_heads": 2,
    "linear_num_value_heads": 4,
    "linear_key_head_dim": 5,
    "linear_value_head_dim": 7,
    "rope_parameters": {
        "rope_type": "default",
        "rope_theta": 10000.0,
        "partial_rotary_factor": 0.5,
        "mrope_section": [1, 1, 0],
    },
}
YARN = {
    "rope_type": "yarn",
    "rope_theta": 10000.0,
    "factor": 2.0,
    "original_max_position_embeddings": 32,
    "beta_fast": 32,
    "beta_slow": 1,
    "mscale": 1.0,
    "mscale_all_dim": 1.0,
    "llama_4_scaling_beta": 0.1,
}
ROPE_3D = {"rope_type": "default", "rope_theta": 10000.0, "mrope_section": [1, 1, 2]}
VISION = {
    "depth": 2,
    "hidden_size": 12,
    "num_heads": 2,
    "intermediate_size": 18,
    "out_hidden_size": 26,
    "patch_size": 2,
    "spatial_merge_size": 2,
    "temporal_patch_size": 2,
}
INTERN_VIT = {
    "hidden_size": 12,
    "intermediate_size": 18,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "image_size": [8, 8],
    "patch_size": [2, 2],
    "use_qk_norm": False,
}
AUDIO = {
    "d_model": 12,
    "encoder_layers": 1,
    "encoder_attention_heads": 2,
    "encoder_ffn_dim": 18,
    "num_mel_bins": 8,
    "max_source_positions": 20,
    "n_window": 4,
    "downsample_hidden_size": 6,
}


def stacked_experts(tensors: Tensors) -> Tensors:
    """Stacks the experts of a layer as Qwen3.5-MoE was published: (experts, out, in), gate and up in one tensor."""
    made = {name: tensor for name, tensor in tensors.items() if ".experts." not in name}
    for prefix in sorted({name.partition(".experts.")[0] for name in tensors.keys() - made.keys()}):
        count = len({name for name in tensors if name.startswith(f"{prefix}.experts.") and "down" in name})
        one = {
            kind: [tensors[f"{prefix}.experts.{i}.{kind}_proj.weight"] for i in range(count)]
            for kind in ("gate", "up", "down")
        }
        made[f"{prefix}.experts.down_proj"] = torch.stack(one["down"])
        made[f"{prefix}.experts.gate_up_proj"] = torch.stack(
            [torch.cat(pair) for pair in zip(one["gate"], one["up"], strict=True)]
        )
    return made


def with_mtp_layer(tensors: Tensors) -> Tensors:
    """Adds an MTP layer in Qwen3.5's names: gated attention and an MLP, as the last decoder layer has them."""
    inner = re.compile(r"model\.language_model\.layers\.1\.(.*)")
    layer = {f"mtp.layers.0.{m[1]}": t for name, t in tensors.items() if (m := inner.match(name))}
    hidden = tensors["model.language_model.norm.weight"].numel()
    shapes = {
        f"mtp.{name}.weight": (hidden,) for name in ("norm", "pre_fc_norm_embedding", "pre_fc_norm_hidden")
    }
    shapes |= {"mtp.fc.weight": (hidden, 2 * hidden)} | {name: tensor.shape for name, tensor in layer.items()}
    return tensors | {name: values_of(name, shape) for name, shape in shapes.items()}


DOTS = EXPERTS | {
    "head_dim": 8,
    "n_routed_experts": 6,
    "n_shared_experts": 2,
    "first_k_dense_replace": 1,
    "n_group": 1,
    "topk_group": 1,
    "sliding_window": None,
    "attention_bias": False,
}

TOWER = {
    "vision_tower.patch_embed.proj.weight": (12, 3, 2, 2),
    "vision_tower.patch_embed.proj.bias": (12,),
    "vision_tower.encoder.blocks.0.wqkv.weight": (36, 12),
    "vision_tower.encoder.blocks.1.wqkv.weight": (36, 12),
}
# In place of the code that these repositories ship: a few of its modules, under the published names.
STAND_IN = '''"""Stands in for the code of the published repository."""

import torch
from torch import nn


class Block(nn.Module):
    def __init__(self):
        super().__init__()
        self.wqkv = nn.Linear(12, 36, bias=False)


class MoonVitPretrainedModel(nn.Module):
    dtype = torch.bfloat16

    def __init__(self, config):
        super().__init__()
        self.patch_embed, self.encoder = nn.Module(), nn.Module()
        self.patch_embed.proj = nn.Conv2d(3, 12, 2)
        self.encoder.blocks = nn.ModuleList([Block(), Block()])

    @classmethod
    def _from_config(cls, config, **kwargs):
        return cls(config).to(torch.bfloat16)


class KimiVLMultiModalProjector(nn.Module):
    def __init__(self, config):
        super().__init__()
        self.linear_1 = nn.Linear(12, 14)


MoonViT3dPretrainedModel = InternVisionModel = MoonVitPretrainedModel
PatchMergerMLP = KimiVLMultiModalProjector


class VisionTowerConfig:
    def __init__(self, config):
        self.torch_dtype = torch.bfloat16


ProjectorConfig = VisionTowerConfig
KimiVLForConditionalGeneration = KimiK25ForConditionalGeneration = InternVLChatModel = Block
'''

NEW: dict[str, New] = {
    "seed_oss": New(
        "seed_oss",
        {"head_dim": 8, "num_hidden_layers": 2, "attention_bias": True, "attention_out_bias": False},
    ),
    "mistral": New(
        "mistral", {"head_dim": 8, "num_hidden_layers": 2, "sliding_window": None, "vocab_size": 90}
    ),
    "gemma": New(
        "gemma",
        {
            "head_dim": 8,
            "num_hidden_layers": 2,
            "vocab_size": 90,
            "tie_word_embeddings": True,
            "hidden_act": "gelu_pytorch_tanh",
        },
    ),
    "nemotron": New(
        "nemotron",
        {
            "head_dim": 8,
            "num_hidden_layers": 2,
            "vocab_size": 90,
            "hidden_act": "relu2",
            "norm_eps": 1e-5,
            "partial_rotary_factor": 0.5,
        },
    ),
    "deepseek": New(
        "deepseek",
        DOTS,
        like="dots1",
        architecture="DeepseekForCausalLM",
        finish=renamed((r".*\.[qk]_norm\.weight$", ""), (r".*e_score_correction_bias$", "")),
    ),
    "hy_v3": New(
        "hy_v3",
        EXPERTS
        | {
            "head_dim": 8,
            "num_shared_experts": 1,
            "first_k_dense_replace": 1,
            "qk_norm": True,
            "moe_router_use_sigmoid": True,
        },
    ),
    "bailing_moe": New(
        "bailing_moe",
        DOTS | {"num_shared_experts": 2, "score_function": "sigmoid", "use_qk_norm": True, "use_bias": False},
        like="dots1",
        architecture="BailingMoeV2ForCausalLM",
        finish=then(
            joined(
                "model.layers.LAYER.self_attn.{}_proj.weight",
                "model.layers.LAYER.attention.query_key_value.weight",
            ),
            renamed(
                (r"embed_tokens", "word_embeddings"),
                (r"self_attn\.o_proj", "attention.dense"),
                (r"self_attn\.q_norm", "attention.query_layernorm"),
                (r"self_attn\.k_norm", "attention.key_layernorm"),
                (r"gate\.e_score_correction_bias", "gate.expert_bias"),
            ),
        ),
    ),
    "glm_moe_dsa": New("glm_moe_dsa", SPARSE | {"indexer_rope_interleave": True, "first_k_dense_replace": 1}),
    "deepseek_v32": New("deepseek_v32", SPARSE | NOAUX | {"first_k_dense_replace": 1, "vocab_size": 80}),
    "qwen3_5": New(
        "qwen3_5",
        {
            "text_config": TEXT
            | DELTA
            | {"mtp_num_hidden_layers": 1, "intermediate_size": 42, "model_type": "qwen3_5_text"},
            "vision_config": VISION | {"num_position_embeddings": 16},
        },
        auto="AutoModelForImageTextToText",
        finish=with_mtp_layer,
    ),
    "qwen3_5_moe": New(
        "qwen3_5_moe",
        {
            "text_config": TEXT
            | DELTA
            | EXPERTS
            | {"shared_expert_intermediate_size": 14, "model_type": "qwen3_5_moe_text"},
            "vision_config": VISION | {"num_position_embeddings": 16, "out_hidden_size": 22},
        },
        auto="AutoModelForImageTextToText",
        finish=stacked_experts,
    ),
    "glm4v": New(
        "glm4v",
        {
            "text_config": TEXT
            | {
                "num_hidden_layers": 2,
                "hidden_size": 36,
                "attention_bias": True,
                "rope_parameters": ROPE_3D | {"partial_rotary_factor": 0.5},
            },
            "vision_config": VISION | {"out_hidden_size": 36, "image_size": 8, "intermediate_size": 20},
        },
        auto="AutoModelForImageTextToText",
    ),
    "glm4v_moe": New(
        "glm4v_moe",
        {
            "text_config": TEXT
            | DOTS
            | {
                "hidden_size": 36,
                "attention_bias": True,
                "use_qk_norm": False,
                "rope_parameters": ROPE_3D | {"partial_rotary_factor": 0.5},
            },
            "vision_config": VISION | {"out_hidden_size": 36, "image_size": 8, "intermediate_size": 20},
        },
        auto="AutoModelForImageTextToText",
    ),
    "internvl": New(
        "internvl",
        {
            "text_config": TEXT | {"model_type": "qwen3", "head_dim": 8, "num_hidden_layers": 2},
            "vision_config": INTERN_VIT,
            "downsample_ratio": 0.5,
        },
        auto="AutoModelForImageTextToText",
    ),
    "llama4": New(
        "llama4",
        {
            "text_config": TEXT
            | {
                "model_type": "llama4_text",
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
            "vision_config": {
                "hidden_size": 12,
                "intermediate_size": 48,
                "num_hidden_layers": 2,
                "num_attention_heads": 2,
                "image_size": 8,
                "patch_size": 2,
                "vision_output_dim": 14,
                "projector_input_dim": 14,
                "projector_output_dim": 14,
            },
        },
        auto="AutoModelForImageTextToText",
    ),
    "minicpmv4_6": New(
        "minicpmv4_6",
        {
            "text_config": TEXT | DELTA | {"intermediate_size": 42, "model_type": "qwen3_5_text"},
            "vision_config": {
                "hidden_size": 12,
                "intermediate_size": 18,
                "num_hidden_layers": 2,
                "num_attention_heads": 2,
                "image_size": 8,
                "patch_size": 2,
            },
        },
        auto="AutoModelForImageTextToText",
    ),
    "mistral3": New(
        "mistral3",
        {
            "text_config": TEXT
            | {
                "model_type": "ministral3",
                "head_dim": 8,
                "num_hidden_layers": 2,
                "rms_norm_eps": 1e-5,
                "vocab_size": 90,
                "rope_parameters": YARN,
            },
            "vision_config": {
                "model_type": "pixtral",
                "hidden_size": 12,
                "intermediate_size": 18,
                "num_hidden_layers": 2,
                "num_attention_heads": 2,
                "head_dim": 6,
                "image_size": 8,
                "patch_size": 2,
            },
        },
        auto="AutoModelForImageTextToText",
    ),
    "qwen2_5_omni": New(
        "qwen2_5_omni",
        {
            "enable_audio_output": False,
            "thinker_config": {
                "text_config": TEXT
                | {
                    "hidden_size": 36,
                    "num_hidden_layers": 2,
                    "rope_scaling": {"rope_type": "default", "mrope_section": [1, 1, 1]},
                },
                "vision_config": VISION
                | {"out_hidden_size": 36, "fullatt_block_indexes": [1], "window_size": 8},
                "audio_config": AUDIO | {"output_dim": 36},
            },
        },
        auto="Qwen2_5OmniThinkerForConditionalGeneration",
        inner="thinker",
    ),
    "qwen3_omni_moe": New(
        "qwen3_omni_moe",
        {
            "enable_audio_output": False,
            "thinker_config": {
                "text_config": TEXT
                | EXPERTS
                | {"head_dim": 8, "rope_scaling": ROPE_3D, "mlp_only_layers": []},
                "vision_config": VISION
                | {"out_hidden_size": 22, "num_position_embeddings": 16, "deepstack_visual_indexes": [0]},
                "audio_config": AUDIO | {"output_dim": 22},
            },
        },
        auto="Qwen3OmniMoeThinkerForConditionalGeneration",
        inner="thinker",
    ),
    "nemotron_h": New(
        "nemotron_h",
        TEXT
        | {
            "head_dim": 8,
            "vocab_size": 90,
            "num_hidden_layers": 3,
            "hybrid_override_pattern": "M*-",
            "mamba_num_heads": 4,
            "mamba_head_dim": 7,
            "n_groups": 2,
            "ssm_state_size": 5,
            "conv_kernel": 4,
            "mlp_hidden_act": "relu2",
            "use_conv_bias": True,
        },
    ),
    "kimi_vl": New(
        "kimi_vl",
        {
            "text_config": LATENT
            | NOAUX
            | {"model_type": "deepseek_v3", "first_k_dense_replace": 1, "intermediate_size": 42}
        },
        architecture="KimiVLForConditionalGeneration",
        outer="text_config",
        files={"modeling_kimi_vl.py": STAND_IN},
        extra=TOWER
        | {"multi_modal_projector.linear_1.weight": (14, 12), "multi_modal_projector.linear_1.bias": (14,)},
    ),
    "kimi_k25": New(
        "kimi_k25",
        {
            "text_config": LATENT
            | NOAUX
            | {"model_type": "kimi_k2", "first_k_dense_replace": 1, "intermediate_size": 42},
            "vision_config": {"mm_projector_type": "patchmerger"},
        },
        architecture="KimiK25ForConditionalGeneration",
        like="deepseek_v3",
        outer="text_config",
        files={"modeling_kimi_k25.py": STAND_IN},
        extra=TOWER | {"mm_projector.linear_1.weight": (14, 12), "mm_projector.linear_1.bias": (14,)},
    ),
    "internvl_chat": New(
        "internvl_chat",
        {
            "llm_config": TEXT | {"model_type": "qwen2", "num_hidden_layers": 2, "hidden_size": 30},
            "vision_config": {"hidden_size": 12},
            "downsample_ratio": 0.5,
            "select_layer": -1,
            "ps_version": "v2",
        },
        architecture="InternVLChatModel",
        outer="llm_config",
        files={"modeling_intern_vit.py": STAND_IN, "modeling_internvl_chat.py": STAND_IN},
        extra={
            **{name.replace("vision_tower", "vision_model"): shape for name, shape in TOWER.items()},
            "mlp1.0.weight": (48,),
            "mlp1.0.bias": (48,),
            "mlp1.1.weight": (30, 48),
            "mlp1.1.bias": (30,),
            "mlp1.3.weight": (30, 30),
            "mlp1.3.bias": (30,),
        },
    ),
}
