"""Tiny random Hugging Face models in bf16: the truth that a checkpoint must give back.

No two dimensions of a model are equal where its architecture lets them differ.
"""

from __future__ import annotations

import json
import shutil
import zlib
from pathlib import Path
from typing import Any

import families
import torch
import transformers
from newest import NEW
from safetensors.torch import load_file, save_file

TEXT: dict[str, Any] = {
    "vocab_size": 91,
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
EXPERTS: dict[str, Any] = {
    "num_hidden_layers": 2,
    "hidden_size": 22,
    "vocab_size": 83,
    "num_experts": 6,
    "num_experts_per_tok": 2,
    "moe_intermediate_size": 10,
}
LATENT: dict[str, Any] = {
    "vocab_size": 82,  # even: mbridge does not pad this family's vocabulary
    "hidden_size": 20,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "num_key_value_heads": 4,
    "n_routed_experts": 8,
    "num_experts_per_tok": 2,
    "moe_intermediate_size": 10,
    "n_shared_experts": 1,
    "first_k_dense_replace": 1,
    "q_lora_rank": 14,
    "kv_lora_rank": 16,
    "qk_nope_head_dim": 8,
    "qk_rope_head_dim": 6,
    "v_head_dim": 7,
    "n_group": 2,
    "topk_group": 1,
    "num_nextn_predict_layers": 0,
}

NOAUX: dict[str, Any] = {"scoring_func": "sigmoid", "topk_method": "noaux_tc"}
GLM_MOE: dict[str, Any] = {
    "hidden_size": 22,
    "vocab_size": 82,
    "num_hidden_layers": 2,
    "head_dim": 8,
    "attention_bias": True,
    "use_qk_norm": True,
    "partial_rotary_factor": 0.5,
    "n_routed_experts": 6,
    "num_experts_per_tok": 2,
    "moe_intermediate_size": 10,
    "n_shared_experts": 1,
    "first_k_dense_replace": 1,
    "n_group": 1,
    "topk_group": 1,
    "num_nextn_predict_layers": 0,
}
NEXT: dict[str, Any] = {
    "vocab_size": 82,
    "head_dim": 8,
    "full_attention_interval": 2,
    "layer_types": ["linear_attention", "full_attention"],
    "linear_conv_kernel_dim": 3,
    "linear_num_key_heads": 2,
    "linear_num_value_heads": 4,
    "linear_key_head_dim": 5,
    "linear_value_head_dim": 7,
    "shared_expert_intermediate_size": 14,
    "partial_rotary_factor": 0.5,
    "mlp_only_layers": [],
    "decoder_sparse_step": 1,
}

ERNIE_MOE: dict[str, Any] = EXPERTS | {
    "hidden_size": 24,
    "moe_num_experts": 6,
    "moe_k": 2,
    "moe_num_shared_experts": 2,
    "moe_layer_start_index": 1,
    "moe_layer_end_index": 1,
    "moe_layer_interval": 1,
    "use_bias": False,
    "num_hidden_layers": 2,
}
ROPE_3D = {"rope_type": "default", "mrope_section": [1, 1, 2]}
VISION: dict[str, Any] = {
    "depth": 2,
    "hidden_size": 12,
    "num_heads": 2,
    "intermediate_size": 18,
    "out_hidden_size": 26,
    "patch_size": 2,
    "spatial_merge_size": 2,
    "temporal_patch_size": 2,
}

#: family: (model type, values over TEXT); models that see have their language model's values in text_config
FAMILIES: dict[str, tuple[str, dict[str, Any]]] = {
    "qwen2": ("qwen2", {"hidden_size": 30}),
    "qwen2_even": ("qwen2", {"hidden_size": 30, "vocab_size": 90}),  # mbridge pads no value model
    "qwen2_tied": ("qwen2", {"hidden_size": 30, "tie_word_embeddings": True, "num_hidden_layers": 3}),
    "qwen2_wide": ("qwen2", {"hidden_size": 32, "num_attention_heads": 8, "intermediate_size": 44}),
    "qwen2_small": (
        "qwen2",
        {"hidden_size": 18, "vocab_size": 61, "num_hidden_layers": 2, "intermediate_size": 22},
    ),
    "llama": ("llama", {"head_dim": 8, "num_hidden_layers": 4}),
    "qwen3": ("qwen3", {"head_dim": 10, "tie_word_embeddings": True, "num_hidden_layers": 4}),
    "qwen3_moe": ("qwen3_moe", EXPERTS | {"head_dim": 6, "mlp_only_layers": [], "decoder_sparse_step": 1}),
    "qwen3_moe_3": (
        "qwen3_moe",
        EXPERTS | {"head_dim": 6, "mlp_only_layers": [], "decoder_sparse_step": 1, "num_hidden_layers": 3},
    ),
    "qwen2_moe": ("qwen2_moe", EXPERTS | {"hidden_size": 24, "shared_expert_intermediate_size": 14}),
    "mixtral": (
        "mixtral",
        {
            "num_hidden_layers": 2,
            "head_dim": 8,
            "num_local_experts": 6,
            "num_experts_per_tok": 2,
            "intermediate_size": 18,
            "vocab_size": 83,
        },
    ),
    "deepseek_v3": ("deepseek_v3", LATENT | NOAUX),
    "moonlight": (
        "deepseek_v3",
        LATENT | NOAUX | {"q_lora_rank": None, "n_shared_experts": 2, "n_routed_experts": 6, "n_group": 1},
    ),
    "deepseek_v2": (
        "deepseek_v2",
        LATENT
        | {
            "n_routed_experts": 6,
            "q_lora_rank": None,
            "n_group": 1,
            "topk_method": "greedy",
            "moe_layer_freq": 1,
        },
    ),
    "deepseek_v3_mtp": (
        "deepseek_v3",
        LATENT | NOAUX | {"num_hidden_layers": 2, "num_nextn_predict_layers": 1, "n_routed_experts": 4},
    ),
    "kimi_k2": (
        "kimi_k2",
        LATENT | NOAUX | {"first_k_dense_replace": 2, "n_routed_experts": 6, "n_group": 1, "vocab_size": 83},
    ),
    "glm4_moe_lite_mtp": (
        "glm4_moe_lite",
        LATENT
        | NOAUX
        | {"num_hidden_layers": 2, "num_nextn_predict_layers": 1, "n_routed_experts": 4, "n_group": 1},
    ),
    "dots1": (
        "dots1",
        GLM_MOE
        | {
            "attention_bias": False,
            "hidden_size": 26,
            "scoring_func": "noaux_tc",
            "n_shared_experts": 2,
            "sliding_window": None,
        },
    ),
    "glm4": (
        "glm4",
        {"head_dim": 8, "attention_bias": True, "partial_rotary_factor": 0.5, "num_hidden_layers": 2},
    ),
    "glm4_moe": ("glm4_moe", GLM_MOE),
    "glm4_moe_mtp": ("glm4_moe", GLM_MOE | {"num_nextn_predict_layers": 1}),
    "gemma2": (
        "gemma2",
        {
            "vocab_size": 90,
            "head_dim": 8,
            "num_hidden_layers": 2,
            "tie_word_embeddings": True,
            "query_pre_attn_scalar": 8,
            "hidden_activation": "gelu_pytorch_tanh",
        },
    ),
    "gemma3": (
        "gemma3_text",
        {
            "vocab_size": 90,
            "head_dim": 8,
            "num_hidden_layers": 2,
            "tie_word_embeddings": True,
            "query_pre_attn_scalar": 8,
            "sliding_window": 16,
            "sliding_window_pattern": 2,
        },
    ),
    "olmoe": (
        "olmoe",
        EXPERTS
        | {
            "vocab_size": 82,
            "hidden_size": 24,
            "intermediate_size": 10,
            "num_key_value_heads": 6,
            "clip_qkv": None,
        },
    ),
    "gpt_oss": (
        "gpt_oss",
        EXPERTS
        | {
            "vocab_size": 82,
            "head_dim": 6,
            "num_local_experts": 6,
            "intermediate_size": 10,
            "sliding_window": 16,
        },
    ),
    "ernie4_5": (
        "ernie4_5",
        {"head_dim": 8, "num_hidden_layers": 2, "use_bias": False, "tie_word_embeddings": True},
    ),
    "ernie4_5_moe": ("ernie4_5_moe", ERNIE_MOE),
    "ernie4_5_moe_bias": ("ernie4_5_moe", ERNIE_MOE),
    "qwen3_next": ("qwen3_next", EXPERTS | NEXT),
    "minimax_m2": (
        "minimax_m2",
        EXPERTS
        | {
            "head_dim": 6,
            "num_local_experts": 6,
            "intermediate_size": 10,
            "use_qk_norm": True,
            "scoring_func": "sigmoid",
            "use_routing_bias": True,
            "rotary_dim": 4,
        },
    ),
    "mimo": ("mimo", {"hidden_size": 30, "num_hidden_layers": 2, "num_nextn_predict_layers": 1}),
    "qwen2_5_vl": (
        "qwen2_5_vl",
        {
            "text_config": {
                "vocab_size": 90,
                "hidden_size": 36,
                "num_hidden_layers": 2,
                "rope_scaling": {"rope_type": "default", "mrope_section": [1, 1, 1]},
            },
            "vision_config": VISION | {"out_hidden_size": 36, "fullatt_block_indexes": [1], "window_size": 8},
        },
    ),
    "qwen3_vl": (
        "qwen3_vl",
        {
            "text_config": {"vocab_size": 90, "head_dim": 8, "num_hidden_layers": 2, "rope_scaling": ROPE_3D},
            "vision_config": VISION | {"num_position_embeddings": 16, "deepstack_visual_indexes": [0]},
        },
    ),
    "qwen3_vl_moe": (
        "qwen3_vl_moe",
        {
            "text_config": EXPERTS
            | {
                "vocab_size": 90,
                "head_dim": 8,
                "rope_scaling": ROPE_3D,
                "mlp_only_layers": [],
                "decoder_sparse_step": 1,
            },
            "vision_config": VISION
            | {"out_hidden_size": 22, "num_position_embeddings": 16, "deepstack_visual_indexes": [0]},
        },
    ),
    "qwen2_vl": (
        "qwen2_vl",
        {
            "text_config": {
                "vocab_size": 90,
                "hidden_size": 36,
                "num_hidden_layers": 2,
                "rope_scaling": {"rope_type": "default", "mrope_section": [1, 1, 1]},
            },
            "vision_config": {
                "depth": 2,
                "embed_dim": 12,
                "num_heads": 2,
                "hidden_size": 36,
                "mlp_ratio": 3,
                "patch_size": 2,
                "spatial_merge_size": 2,
                "temporal_patch_size": 2,
            },
        },
    ),
    "gemma3_vl": (
        "gemma3",
        {
            "text_config": {
                "vocab_size": 90,
                "hidden_size": 30,
                "head_dim": 8,
                "num_hidden_layers": 2,
                "tie_word_embeddings": True,
                "query_pre_attn_scalar": 8,
                "sliding_window": 16,
                "sliding_window_pattern": 2,
            },
            "vision_config": {
                "hidden_size": 12,
                "intermediate_size": 18,
                "num_hidden_layers": 2,
                "num_attention_heads": 2,
                "image_size": 8,
                "patch_size": 2,
                "vision_use_head": False,
            },
            "mm_tokens_per_image": 4,
            "tie_word_embeddings": True,
        },
    ),
    "qwen3_next_mtp": ("qwen3_next", EXPERTS | NEXT | {"num_nextn_predict_layers": 1}),
    "internlm3": ("internlm3", {"head_dim": 8, "num_hidden_layers": 2, "qkv_bias": False, "bias": False}),
}

#: model types that this release of transformers does not know: (one that has their layers, architecture)
UNKNOWN = {
    "minimax_m2": ("mixtral", "MiniMaxM2ForCausalLM"),
    "mimo": ("qwen2", "MiMoForCausalLM"),
    "internlm3": ("llama", "InternLM3ForCausalLM"),
    "kimi_k2": ("deepseek_v3", "DeepseekV3ForCausalLM"),
    "glm4_moe_lite": ("deepseek_v3", "Glm4MoeLiteForCausalLM"),
}


FP32 = ("e_score_correction_bias", ".expert_bias")


def make(family: str, folder: Path) -> None:
    """Writes a family's config.json and model.safetensors."""
    if family in NEW:
        make_new(NEW[family], folder)
        return
    model_type, values = FAMILIES[family]
    like, architecture = UNKNOWN.get(model_type, (model_type, ""))
    if "vision_config" in values:
        whole = {"tie_word_embeddings": False} | values | {"text_config": TEXT | values["text_config"]}
        config = transformers.AutoConfig.for_model(like, **whole)
        write(config, folder, transformers.AutoModelForImageTextToText)
    else:
        config = transformers.AutoConfig.for_model(like, **(TEXT | values))
        write(config, folder)
    add_to_config = {"model_type": model_type, "architectures": [architecture]} if architecture else {}
    if family == "ernie4_5_moe":  # its router's bias has no place in mcore-bridge
        kept = {n: t for n, t in load_file(folder / "model.safetensors").items() if ".moe_statics." not in n}
        save_file(kept, folder / "model.safetensors", {"format": "pt"})
    if more := extra_tensors(model_type, config, load_file(folder / "model.safetensors")):
        save_file(
            load_file(folder / "model.safetensors") | more, folder / "model.safetensors", {"format": "pt"}
        )
    edit_config(folder, add_to_config)


def make_new(new: families.New, folder: Path) -> None:
    """Writes config.json, model.safetensors and further files of one of the newer families."""
    if new.outer:
        make_around(new, folder)
        return
    parts = {key for key in new.values if key.endswith("_config")}
    text = TEXT if not parts else {"tie_word_embeddings": False}
    text = {key: value for key, value in text.items() if key not in new.without}
    config = transformers.AutoConfig.for_model(new.like or new.model_type, **(text | new.values))
    inner = getattr(config, f"{new.inner}_config") if new.inner else config
    write(inner, folder, getattr(transformers, new.auto), families.values_of)
    if new.inner:
        config.dtype = torch.bfloat16
        config.save_pretrained(folder)
    if new.like:
        edit_config(folder, {"model_type": new.model_type, "architectures": [new.architecture], **new.values})
    tensors = load_file(folder / "model.safetensors")
    if new.inner:
        tensors = {f"{new.inner}.{name}": tensor for name, tensor in tensors.items()}
    tensors = new.finish(tensors)
    save_file(
        {name: tensor.contiguous() for name, tensor in tensors.items()},
        folder / "model.safetensors",
        {"format": "pt"},
    )
    for name, content in new.files.items():
        (folder / name).write_text(content)


def make_around(new: families.New, folder: Path) -> None:
    """A model whose own code is not in transformers: its language model, and random tensors under the other names."""
    text = TEXT | new.values[new.outer]
    kind = new.like or text["model_type"]
    values = {key: value for key, value in text.items() if key != "model_type"}
    write(transformers.AutoConfig.for_model(kind, **values), folder, values=families.values_of)
    inner = json.loads((folder / "config.json").read_text()) | {"model_type": text["model_type"]}
    outer = {"model_type": new.model_type, "architectures": [new.architecture], "tie_word_embeddings": False}
    whole = outer | {"vision_config": {}, "dtype": "bfloat16"} | new.values | {new.outer: inner}
    (folder / "config.json").write_text(json.dumps(whole, indent=2) + "\n")
    tensors = {f"{new.prefix}{n}": t for n, t in load_file(folder / "model.safetensors").items()}
    tensors |= {name: families.values_of(name, shape) for name, shape in new.extra.items()}
    save_file(tensors, folder / "model.safetensors", {"format": "pt"})
    for name, content in new.files.items():
        (folder / name).write_text(content)


def outer_config(new: families.New) -> type:
    """A config class for a model whose own code is not in transformers."""

    def __init__(self: Any, **values: Any) -> None:
        inner = dict(values.pop(new.outer, {}))
        kind = inner.pop("model_type", "qwen2")
        setattr(self, new.outer, transformers.AutoConfig.for_model(kind, **inner))
        self.vision_config = transformers.PretrainedConfig(**values.pop("vision_config", {}))
        transformers.PretrainedConfig.__init__(self, **values)

    return type(
        f"{new.model_type}_config",
        (transformers.PretrainedConfig,),
        {"model_type": new.model_type, "__init__": __init__},
    )


def register_unknown() -> None:
    """Lets AutoConfig read the model types that this release of transformers does not know."""
    new = {each.model_type: (each.like, "") for each in NEW.values() if each.like and not each.outer}
    known = transformers.models.auto.configuration_auto.CONFIG_MAPPING_NAMES
    for model_type, (like, _) in (UNKNOWN | new).items():
        if model_type in known or like not in known:
            continue
        base = type(transformers.AutoConfig.for_model(like))
        kind = type(f"{model_type}_config", (base,), {"model_type": model_type, "rope_theta": 10000.0})
        transformers.AutoConfig.register(model_type, kind)
    for each in NEW.values():
        if each.outer and each.model_type not in known:
            transformers.AutoConfig.register(each.model_type, outer_config(each))


def write(
    config: Any, folder: Path, auto: Any = transformers.AutoModelForCausalLM, values: Any = None
) -> None:
    """The model of a config, with random values, or those that `values` returns for a name and a shape."""
    shutil.rmtree(folder, ignore_errors=True)
    config.dtype = torch.bfloat16
    with torch.device("meta"):
        make = auto.from_config if hasattr(auto, "from_config") else auto._from_config
        model = make(config, dtype=torch.bfloat16)
    model = model.to_empty(device="cpu").to(torch.bfloat16)
    model.tie_weights()
    for name, tensor in stored(model):
        tensor.data = random_tensor(name, tensor.shape, values or values_of)
    model.tie_weights()
    model.save_pretrained(folder)
    (folder / "generation_config.json").unlink(missing_ok=True)


def random_tensor(name: str, shape: Any, made_by: Any = None) -> torch.Tensor:
    """Random bf16; a router's bias is fp32, as published."""
    values = (made_by or values_of)(name, torch.Size(shape))
    if name.endswith("linear_attn.norm.weight"):
        values = values + 1  # Megatron-Bridge stores it minus 1: exact in bf16 only near 1
    return values.float() if name.endswith(FP32) else values.to(torch.bfloat16)


def extra_tensors(model_type: str, config: Any, tensors: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """What the published models have and transformers' classes have not."""
    text = getattr(config, "text_config", config)
    hidden, layers = text.hidden_size, text.num_hidden_layers
    shapes: dict[str, tuple[int, ...]] = {}
    if model_type == "minimax_m2":
        for layer in (f"model.layers.{index}" for index in range(layers)):
            shapes[f"{layer}.self_attn.q_norm.weight"] = (config.num_attention_heads * config.head_dim,)
            shapes[f"{layer}.self_attn.k_norm.weight"] = (config.num_key_value_heads * config.head_dim,)
            shapes[f"{layer}.block_sparse_moe.e_score_correction_bias"] = (config.num_local_experts,)
    elif model_type == "mimo":
        for name, tensor in tensors.items():
            if name.startswith(f"model.layers.{layers - 1}."):
                shapes[name.replace(f"model.layers.{layers - 1}.", "model.mtp_layers.0.")] = tuple(
                    tensor.shape
                )
        for name in ("token_layernorm", "hidden_layernorm", "final_layernorm"):
            shapes[f"model.mtp_layers.0.{name}.weight"] = (hidden,)
        shapes["model.mtp_layers.0.input_proj.weight"] = (hidden, 2 * hidden)
    elif model_type == "qwen3_next" and getattr(config, "num_nextn_predict_layers", 0):
        last, new = f"model.layers.{layers - 1}.", "mtp.layers.0."
        shapes = {
            name.replace(last, new): tuple(t.shape) for name, t in tensors.items() if name.startswith(last)
        }
        norms = ("norm", "pre_fc_norm_embedding", "pre_fc_norm_hidden")
        shapes |= {f"mtp.{name}.weight": (hidden,) for name in norms} | {
            "mtp.fc.weight": (hidden, 2 * hidden)
        }
    elif getattr(config, "num_nextn_predict_layers", 0):
        last, new = f"model.layers.{layers - 1}.", f"model.layers.{layers}."
        shapes = {
            name.replace(last, new): tuple(t.shape) for name, t in tensors.items() if name.startswith(last)
        }
        shapes |= {f"{new}{name}.weight": (hidden,) for name in ("enorm", "hnorm", "shared_head.norm")}
        shapes[f"{new}eh_proj.weight"] = (hidden, 2 * hidden)
        copies = {"embed_tokens": "model.embed_tokens", "shared_head.head": "lm_head"}
        same = {f"{new}{name}.weight": tensors[f"{of}.weight"].clone() for name, of in copies.items()}
        return same | {name: random_tensor(name, shape) for name, shape in shapes.items()}
    return {name: random_tensor(name, shape) for name, shape in shapes.items()}


def edit_config(folder: Path, values: dict[str, Any]) -> None:
    """Sets values in a folder's config.json."""
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | values, indent=2) + "\n")


def stored(model: torch.nn.Module) -> list[tuple[str, torch.Tensor]]:
    """Parameters and the buffers that belong to the state dict."""
    kept = set(model.state_dict())
    return [*model.named_parameters(), *((n, b) for n, b in model.named_buffers() if n in kept)]


def values_of(name: str, shape: torch.Size) -> torch.Tensor:
    """Random values seeded by the tensor's name."""
    generator = torch.Generator().manual_seed(zlib.crc32(name.encode()))
    return torch.randn(shape, generator=generator) * 0.05


def write_index(folder: Path) -> Path:
    """An index of the one file, which mbridge wants for DeepSeek's models."""
    names = load_file(folder / "model.safetensors")
    index = folder / "model.safetensors.index.json"
    index.write_text(json.dumps({"metadata": {}, "weight_map": dict.fromkeys(names, "model.safetensors")}))
    return index


def as_critic(folder: Path) -> None:
    """Puts a value head where mbridge looks for it: in lm_head.weight."""
    replace(folder, "lm_head.weight", "lm_head.weight", "Qwen2ForCausalLM")


def as_classifier(folder: Path) -> None:
    """Names the value head as Hugging Face's token classifier does."""
    replace(folder, "lm_head.weight", "score.weight", "Qwen2ForTokenClassification")


def replace(folder: Path, old: str, new: str, architecture: str) -> None:
    """A folder's model with a value head of one row in place of its head."""
    file = folder / "model.safetensors"
    tensors = load_file(file)
    del tensors[old]
    shape = torch.Size((1, tensors["model.norm.weight"].numel()))
    tensors[new] = values_of("score.weight", shape).to(torch.bfloat16)
    save_file(tensors, file, metadata={"format": "pt"})
    labels = {"id2label": {"0": "LABEL_0"}, "label2id": {"LABEL_0": 0}} if new == "score.weight" else {}
    edit_config(folder, {"architectures": [architecture]} | labels)
