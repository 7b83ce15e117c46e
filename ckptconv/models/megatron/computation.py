"""Compare with config.json what a Megatron trainer computed where no tensor's shape shows it.

Another activation, another order of rotary pairs, or norms that add one to their weight: the weights have the same names and
shapes, and the class that config.json names computes something else with them. Only classes whose computation is known to be
the plain one are looked at. The settings are those of megatron/core/transformer/transformer_config.py, of
megatron/training/arguments.py and of Megatron-Bridge's providers.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from math import isclose, sqrt
from typing import Any, NamedTuple

from ckptconv.errors import CkptconvError
from ckptconv.models.family import Config
from ckptconv.models.nested import text_of
from ckptconv.tensors.checkpoint import TrainerSettings

# Classes of transformers with RMS norms, SiLU gates, rotary halves over whole heads, softmax routers and nothing else.
_PLAIN = {
    *("llama", "mistral", "mixtral", "olmoe", "qwen2", "qwen2_moe", "qwen3", "qwen3_moe"),
    *("qwen2_vl_text", "qwen2_5_vl_text", "qwen3_vl_text", "qwen3_vl_moe_text"),
}
# Classes of transformers whose norms multiply by 1 + weight.
_ADD_ONE = {"gemma", "gemma2", "gemma3_text", "qwen3_next", "qwen3_5_text", "qwen3_5_moe_text"}
# Megatron-LM's --swiglu sets these in the model, and leaves the arguments of the same names at their defaults
# (megatron/training/arguments.py, core_transformer_config_from_args).
_SET_BY_SWIGLU = ("activation_func", "gated_linear_unit")
# Names of activations, of torch and of transformers, and whether they mean SiLU.
_SILU = {
    **{"silu": True, "swish": True},
    **dict.fromkeys(("gelu", "fast_gelu", "gelu_new", "gelu_fast", "gelu_pytorch_tanh", "quick_gelu"), False),
    **dict.fromkeys(("relu", "relu2", "squared_relu", "sigmoid", "tanh"), False),
}


class _Trait(NamedTuple):
    """Something that a trainer may compute and a plain class does not.

    names: the trainer's names of the setting.
    differs: returns whether a value means that the trainer computed it, given the config.
    what: what the class lacks, for the message.
    """

    names: tuple[str, ...]
    differs: Callable[[Any, Config], bool]
    what: str


def check_computation(settings: Iterable[TrainerSettings], config: Config) -> None:
    """Raise CkptconvError if the trainer computed something that the class in config.json does not.

    Args:
        settings: what the trainer wrote, by its own names.
        config: the model's config.json.
    """
    text = text_of(config)
    kind = text.get("model_type")
    if not isinstance(kind, str):
        return
    for trainer in settings:
        if kind in _PLAIN:
            for trait in _TRAITS:
                for name in trait.names:
                    value = trainer.values.get(name)
                    if name in _SET_BY_SWIGLU and trainer.values.get("swiglu") is True:
                        continue
                    if value is not None and trait.differs(value, text):
                        raise _refusal(trainer, name, value, kind, f"no {trait.what}")
        name = "layernorm_zero_centered_gamma"
        adds_one = trainer.values.get("apply_layernorm_1p") is True  # older arguments have only this flag
        if kind in _ADD_ONE and trainer.values.get(name) is False and not adds_one:
            raise _refusal(trainer, name, False, kind, "norms that multiply by 1 + weight")


def _refusal(trainer: TrainerSettings, name: str, value: Any, kind: Any, has: str) -> CkptconvError:
    return CkptconvError(
        f"the trainer computed something else than model type {kind} does",
        where=trainer.where,
        found=f"{name} {value}",
        wanted=f"the computation of {kind}, which has {has}",
        hint="pass the config.json of the model that was trained: --config DIR, or correct the file that is wrong",
    )


def _is_true(value: Any, config: Config) -> bool:
    return value is True


def _is_false(value: Any, config: Config) -> bool:
    return value is False


def _is_other_number(plain: float) -> Callable[[Any, Config], bool]:
    def differs(value: Any, config: Config) -> bool:
        return type(value) in (int, float) and value != plain

    return differs


def _is_word(*words: str) -> Callable[[Any, Config], bool]:
    """The last part of a dotted name counts: run_config.yaml has a function's module before its name."""

    def differs(value: Any, config: Config) -> bool:
        return isinstance(value, str) and value.rpartition(".")[2].lower() in words

    return differs


def _is_set(value: Any, config: Config) -> bool:
    return value not in (False, 0, "", [])


def _is_part(value: Any, config: Config) -> bool:
    parameters = config.get("rope_parameters")
    stated = [table.get("partial_rotary_factor") for table in (config, parameters) if isinstance(table, dict)]
    return not any(stated) and _is_other_number(1)(value, config)


def _is_window(value: Any, config: Config) -> bool:
    used = config.get("sliding_window") is not None and config.get("use_sliding_window") is not False
    return _is_set(value, config) and not used


def _is_scaled(value: Any, config: Config) -> bool:
    """Whether rotary positions were scaled, where config.json states no scaling."""
    return not _states_scaling(config) and (value is True or _is_other_number(1)(value, config))


def _is_not_scaled(value: Any, config: Config) -> bool:
    """Whether Megatron-Bridge did not scale positions as Llama 3.1 does, and config.json says so."""
    return value is False and "llama3" in _scalings(config)


def _states_scaling(config: Config) -> bool:
    return any(kind not in (None, "default", "mrope") for kind in _scalings(config))


def _scalings(config: Config) -> list[Any]:
    tables = [
        table for key in ("rope_scaling", "rope_parameters") if isinstance(table := config.get(key), dict)
    ]
    return [table.get("rope_type", table.get("type")) for table in tables]


def _is_experts(value: Any, config: Config) -> bool:
    stated = any(config.get(key) for key in ("num_experts", "num_local_experts", "n_routed_experts"))
    return type(value) is int and value > 1 and not stated


def _is_softmax_scale(value: Any, config: Config) -> bool:
    hidden, heads = config.get("hidden_size"), config.get("num_attention_heads")
    dim = config.get("head_dim") or (
        hidden // heads if type(hidden) is int and type(heads) is int and heads > 0 else 0
    )
    known = type(value) in (int, float) and type(dim) is int and dim > 0
    return known and not isclose(value, 1 / sqrt(dim), rel_tol=1e-4)


def _is_other_activation(value: Any, config: Config) -> bool:
    """Whether one of two names means SiLU and the other one does not; names that are not known are not compared."""
    used, stated = (
        _SILU.get(str(name).rpartition(".")[2].lower()) for name in (value, config.get("hidden_act"))
    )
    return None not in (used, stated) and used != stated


_TRAITS = (
    _Trait(
        ("layernorm_zero_centered_gamma", "apply_layernorm_1p"), _is_true, "norms that multiply by 1 + weight"
    ),
    _Trait(("normalization",), _is_word("layernorm"), "norms that subtract the mean"),
    _Trait(("rotary_interleaved",), _is_true, "rotary embeddings over neighbouring pairs"),
    _Trait(
        ("position_embedding_type",),
        _is_word("none", "learned_absolute", "relative"),
        "positions of that kind: it rotates queries and keys",
    ),
    _Trait(("rotary_percent",), _is_part, "partly rotated heads"),
    _Trait(("no_rope_freq",), _is_set, "layers without rotary embeddings"),
    _Trait(
        (
            *("use_rope_scaling", "rope_scaling"),
            *("seq_len_interpolation_factor", "rotary_seq_len_interpolation_factor"),
        ),
        _is_scaled,
        "scaled rotary positions by this config.json",
    ),
    _Trait(("rope_scaling",), _is_not_scaled, "unscaled rotary positions by this config.json"),
    _Trait(("window_size",), _is_window, "attention window by this config.json"),
    _Trait(("multi_latent_attention", "attention_output_gate"), _is_true, "attention of that kind"),
    _Trait(("qk_l2_norm",), _is_true, "norms without weights on queries and keys"),
    _Trait(("softmax_type",), _is_word("learnable", "off-by-one"), "attention sinks"),
    _Trait(("softmax_scale",), _is_softmax_scale, "such scale: it divides by the root of the head's size"),
    _Trait(
        ("apply_residual_connection_post_layernorm",),
        _is_true,
        "residual connections that begin after a norm",
    ),
    _Trait(("gated_linear_unit",), _is_false, "MLP without a gate"),
    _Trait(("squared_relu", "quick_geglu"), _is_true, "activation of that kind"),
    _Trait(("activation_func",), _is_other_activation, "activation of that kind by this config.json"),
    _Trait(("glu_linear_offset",), _is_other_number(0), "offset in its MLP"),
    _Trait(("activation_func_clamp_value",), _is_other_number(0), "limit in its MLP"),
    _Trait(("num_moe_experts",), _is_experts, "experts by this config.json"),
    _Trait(("moe_router_score_function",), _is_word("sigmoid"), "router with sigmoid scores"),
)
