"""Make Hugging Face's config.json from the `model` of an OLMo-core experiment's config.json.

Reordered norms give OLMo 2, with sliding windows OLMo 3, with experts FlexOlmo; norms before attention and MLP give Llama,
with norms of single heads Qwen3. A setting that no class of transformers has, such as clipped queries, is refused: a model
of the right shapes would compute something else.
Source: olmo_core/nn/transformer/config.py, nn/attention/__init__.py, nn/rope.py, nn/hf/config.py, ai2-olmo-core 3.0.0.
"""

from __future__ import annotations

from collections.abc import Mapping
from math import log
from typing import Any

from ckptconv.errors import CkptconvError, Kind
from ckptconv.models.olmo_core.blocks import LAYER_NORMS, blocks_of, windows_of

Values = Mapping[str, Any]

_ACTIVATION = "silu"
_EPS = 1e-5  # the default of LayerNorm (olmo_core/nn/layer_norm.py)
# Settings of a block's attention and of its rotary embedding that change what it computes, and what they are when off.
_ATTENTION_OFF: dict[str, tuple[Any, ...]] = {
    "name": ("default", "fused", None),
    "clip_qkv": (None,),
    "gate": (None,),
    "scalable_softmax": (False, None),
    "attention_sinks": (False, None),
}
_ROPE_OFF: dict[str, tuple[Any, ...]] = {
    "name": ("default", "fused", None),  # "complex" rotates neighbouring rows
    "no_global_rope": (False, None),
    "partial_rotary_factor": (1.0, 1, None),
}
_BLOCK_OFF = {"attention_residual_alpha": (None, 1.0), "feed_forward_residual_alpha": (None, 1.0)}
_MODEL_OFF = {"embed_scale": (None, 1.0), "embedding_norm": (None,)}
_ROUTER_OFF = {
    "gating_function": ("softmax", None),
    "normalize_expert_weights": (None, 1, 1.0),
    "bias_gamma": (None,),
}


def hub_config(values: Values) -> dict[str, Any] | None:
    """Return the config.json of the model that an experiment trains.

    Args:
        values: the content of the experiment's config.json.

    Returns:
        The config, or None for a file that is not an OLMo-core experiment's.

    Raises:
        CkptconvError: the model has a setting that no class of transformers has.
    """
    model = values.get("model")
    if not isinstance(model, dict) or not str(model.get("_CLASS_", "")).startswith("olmo_core."):
        return None
    try:
        return _made(model, values)
    except (LookupError, TypeError, ValueError, AttributeError, ArithmeticError) as error:
        raise CkptconvError(
            "the model in OLMo-core's config.json cannot be read",
            found=f"{type(error).__name__}: {error}",
            hint="pass a Hugging Face config of the model: --config DIR",
            kind=Kind.UNSUPPORTED,
        ) from error


def _made(model: dict[str, Any], values: Values) -> dict[str, Any]:
    blocks = blocks_of(model)
    _require_off(model, _MODEL_OFF, "")
    for block in blocks:
        _check_block(block)
    first = blocks[0]
    attention, name = first["sequence_mixer"], str(first.get("name", "default"))
    windows = windows_of(blocks)
    config = {
        **_class_of(name, attention, windows),
        "vocab_size": model["vocab_size"],
        "hidden_size": model["d_model"],
        "num_hidden_layers": len(blocks),
        "num_attention_heads": attention["n_heads"],
        "num_key_value_heads": attention.get("n_kv_heads") or attention["n_heads"],
        "hidden_act": _ACTIVATION,
        "attention_bias": attention.get("bias") is not False,
        "rms_norm_eps": first["layer_norm"].get("eps") or _EPS,
        "tie_word_embeddings": bool(model.get("tie_word_embeddings")),
        **_rope(blocks, windows),
        **_tokens(values),
    }
    if attention.get("head_dim"):
        config["head_dim"] = attention["head_dim"]
    elif config["model_type"] == "qwen3":
        config["head_dim"] = model["d_model"] // attention["n_heads"]
    if any(window is not None for window in windows):
        config["sliding_window"] = next(window for window in windows if window is not None)
        config["layer_types"] = [
            "full_attention" if window is None else "sliding_attention" for window in windows
        ]
    return config | _mlp(first)


def _class_of(name: str, attention: Values, windows: list[int | None]) -> dict[str, Any]:
    slides = any(window is not None for window in windows)
    heads = bool(attention.get("use_head_qk_norm"))
    norm = attention.get("qk_norm")
    if name == "reordered_norm" and not heads:
        kind = ("olmo3", "Olmo3ForCausalLM") if slides else ("olmo2", "Olmo2ForCausalLM")
    elif name == "moe_reordered_norm" and not heads and not slides:
        kind = ("flex_olmo", "FlexOlmoForCausalLM")
    elif name == "default" and not norm and not slides:
        kind = ("llama", "LlamaForCausalLM")
    elif name == "default" and norm and heads and not slides:
        kind = ("qwen3", "Qwen3ForCausalLM")
    else:
        norms = "norms of single heads" if heads else "QK norms" if norm else "no QK norms"
        raise _beyond("block.name", f"{name} with {norms}{' and sliding windows' if slides else ''}")
    return {"architectures": [kind[1]], "model_type": kind[0]}


def _check_block(block: Values) -> None:
    attention = block["sequence_mixer"]
    rope = attention.get("rope")
    if not isinstance(rope, dict):
        raise _beyond("rope", rope)
    _require_off(block, _BLOCK_OFF, "block.")
    _require_off(attention, _ATTENTION_OFF, "attention.")
    _require_off(rope, _ROPE_OFF, "rope.")
    if block["layer_norm"].get("name") not in LAYER_NORMS:
        raise _beyond("layer_norm.name", block["layer_norm"].get("name"))
    mlp = block.get("feed_forward")
    if mlp is not None and mlp.get("activation", _ACTIVATION) != _ACTIVATION:
        raise _beyond("feed_forward.activation", mlp.get("activation"))


def _mlp(block: Values) -> dict[str, Any]:
    moe = block.get("feed_forward_moe")
    if moe is None:
        return {"intermediate_size": block["feed_forward"]["hidden_size"]}
    if block.get("feed_forward") is not None or moe.get("shared_mlp") or moe.get("latent_moe"):
        raise _beyond("feed_forward_moe", "experts beside a dense MLP")
    router = moe.get("router") or {}
    _require_off(router, _ROUTER_OFF, "router.")
    return {
        "intermediate_size": moe["hidden_size"],
        "num_experts": moe["num_experts"],
        "num_experts_per_tok": router.get("top_k", 1),
        "norm_topk_prob": router.get("normalize_expert_weights") is not None,
    }


def _rope(blocks: list[dict[str, Any]], windows: list[int | None]) -> dict[str, Any]:
    """The rotary base, and the scaling of the layers with full attention, which transformers scales alone too."""
    ropes = [block["sequence_mixer"]["rope"] for block in blocks]
    thetas = {rope.get("theta", 500_000) for rope in ropes}
    scalings = [rope.get("scaling") for rope in ropes]
    full = [scaling for scaling, window in zip(scalings, windows, strict=True) if window is None]
    sliding = [scaling for scaling, window in zip(scalings, windows, strict=True) if window is not None]
    if len(thetas) > 1 or any(scaling != full[0] for scaling in full) or any(sliding):
        raise _beyond("rope", "layers of one kind with different settings, or scaled sliding layers")
    theta = float(thetas.pop())
    scaling = _scaling(full[0]) if full and full[0] else {}
    plain = {"rope_type": "default", "rope_theta": theta}
    whole = plain | scaling
    # transformers 4 reads rope_theta and rope_scaling, transformers 5 rope_parameters: of each kind of layers for OLMo 3,
    # whose sliding layers would otherwise get the class's default base (configuration_olmo3.py).
    parameters = {"full_attention": whole, "sliding_attention": plain} if sliding else whole
    older = {"rope_theta": theta} | ({"rope_scaling": scaling} if scaling else {})
    return {**older, "rope_parameters": parameters}


def _scaling(scaling: Values) -> dict[str, Any]:
    kind = str(scaling.get("_CLASS_")).rpartition(".")[2]
    if scaling.get("attention_rescale_factor", 1.0) != 1.0 and not kind.startswith("YaRN"):
        raise _beyond("rope.scaling.attention_rescale_factor", scaling["attention_rescale_factor"])
    if kind == "PIRoPEScalingConfig":
        return {"rope_type": "linear", "factor": scaling["factor"]}
    if kind == "StepwiseRoPEScalingConfig":
        return {
            "rope_type": "llama3",
            "factor": scaling["factor"],
            "original_max_position_embeddings": scaling["old_context_len"],
            "low_freq_factor": 1.0 / (1 - scaling["low_freq_proportion"]),
            "high_freq_factor": 1.0 / scaling["high_freq_proportion"],
        }
    if kind == "YaRNRoPEScalingConfig":
        return {
            "rope_type": "yarn",
            "factor": scaling["factor"],
            "original_max_position_embeddings": scaling["old_context_len"],
            "beta_fast": scaling["beta_fast"],
            "beta_slow": scaling["beta_slow"],
            "attention_factor": 0.1 * log(scaling["factor"]) + 1.0,
        }
    raise _beyond("rope.scaling", kind)


def _tokens(values: Values) -> dict[str, Any]:
    """Special tokens and the longest sequence, which the experiment keeps beside the model."""
    dataset = values.get("dataset")
    dataset = dataset if isinstance(dataset, dict) else {}
    tokenizer = dataset.get("tokenizer") or values.get("tokenizer") or {}
    module = values.get("train_module") or {}
    found = {key: tokenizer.get(key) for key in ("bos_token_id", "eos_token_id", "pad_token_id")}
    length = module.get("max_sequence_length") or dataset.get("sequence_length")
    return found | ({"max_position_embeddings": length} if length else {})


def _require_off(values: Values, off: Mapping[str, tuple[Any, ...]], where: str) -> None:
    for key, allowed in off.items():
        if values.get(key) not in allowed:
            raise _beyond(where + key, values[key])


def _beyond(setting: str, value: object) -> CkptconvError:
    return CkptconvError(
        "OLMo-core trained this model with a setting that no class of transformers has",
        found=f"{setting}: {value}",
        hint="export it with OLMo-core's own tools, if they can",
        kind=Kind.UNSUPPORTED,
    )
