"""Keys that readers of the other transformers generation need in config.json, next to those that the trainer wrote.

transformers 5 moved values to other keys: `rope_theta` into `rope_parameters`, Qwen3-MoE's `num_experts` to
`num_local_experts`. transformers 4 ignores the new keys without a word and takes its class's defaults. config_keys.json,
which tools/make_config_keys.py makes from both, says per model type which old key has which new one's value.
"""

from __future__ import annotations

import copy
import json
from collections.abc import Iterator, Mapping
from functools import cache
from pathlib import Path
from typing import Any, NamedTuple

from ckptconv.models.config_spelling import respell

Config = dict[str, Any]

_ROPE = "rope_parameters"
_SCALING = "rope_scaling"
# What rope_parameters has and rope_scaling has not: transformers 4 keeps them as keys of their own.
_OWN_KEYS = ("rope_theta", "partial_rotary_factor")
# transformers 4 accepts no other keys in rope_scaling (Phi3Config._rope_scaling_validation).
_THREE_KEYS = {
    "phi3": ("type", "short_factor", "long_factor"),
    "phi4_multimodal": ("type", "short_factor", "long_factor"),
}
# llama.cpp asks for rotary_dim, as MiniMax published it (conversion/minimax.py, set_gguf_parameters).
_ROTARY_DIM = "minimax_m2"
# llama.cpp asks for n_ctx, as OpenAI published it (conversion/gpt2.py, set_gguf_parameters).
_CONTEXT = "gpt2"
# llama.cpp (conversion/falcon_h1.py, set_gguf_parameters) and vLLM (glm4_moe.py, Glm4MoeDecoderLayer) ask for head_dim, as
# these were published; transformers divides where it is missing.
_HEAD_DIM = ("falcon_h1", "glm4_moe")
_ENGINES_ONLY = ("rotary_dim", "n_ctx", "head_dim")
# Without rope_scaling, transformers 4 scales the positions of these classes.
_SCALED_BY_DEFAULT = ("apertus", "gpt_oss")
# transformers 4 wants an object in rope_scaling (modeling_qwen3_vl.py, the text model's rotary embedding).
_SCALING_OBJECT = ("qwen3_omni_moe_text", "qwen3_vl_moe_text", "qwen3_vl_text")
# transformers 5 gives the base of a flat rope_theta to one kind of OLMo 3's layers, and its class's default to the other
# (configuration_olmo3.py, convert_rope_params_to_dict). It does not look for DBRX's, which is in attn_config.
_LOSES_BASE, _LOSES_INNER_BASE = "olmo3", "dbrx"
# vLLM has a place for the router's bias only where topk_method says noaux_tc (deepseek_v2.py, DeepseekV2MoE) or
# use_routing_bias is true (minimax_m2.py, MiniMaxM2MoE).
_ROUTER_BIAS = ".e_score_correction_bias"
_WITH_BIAS = ("topk_method", "use_routing_bias")
_SIGMOID = {"scoring_func": "sigmoid"}
# Values that the classes of transformers have in their code, and engines only from config.json. llama.cpp
# (conversion/base.py, set_gguf_parameters) and vLLM (deepseek_v2.py) take softmax where scoring_func is missing, vLLM stops
# at MiniMax-M2 (minimax_m2.py), and llama.cpp at Cohere 2 without rotary_pct (conversion/command_r.py). The published files
# have them.
_FOR_ENGINES: dict[str, Config] = {
    "Cohere2ForCausalLM": {"rotary_pct": 1.0},
    "DeepseekV3ForCausalLM": _SIGMOID | {"topk_method": "noaux_tc"},
    "DeepseekV32ForCausalLM": _SIGMOID | {"topk_method": "noaux_tc"},
    "GlmMoeDsaForCausalLM": _SIGMOID | {"topk_method": "noaux_tc"},
    "MiniMaxM2ForCausalLM": _SIGMOID | {"use_routing_bias": True},
}


class Both(NamedTuple):
    """A config for both generations.

    Args:
        config: the config with the added keys.
        added: their paths, such as "text_config.rope_theta".
        respelled: the paths of values with another spelling, which transformers 5 reads as the same value.
        disputed: (path of an old key, its value, path of the new one, its value), where the config states both and they
            differ.
        overridden: (path of rope_scaling, its value, path of rope_parameters, its value), where the first scales positions
            in another way than the second.
    """

    config: Config
    added: tuple[str, ...]
    respelled: tuple[str, ...] = ()
    disputed: tuple[tuple[str, Any, str, Any], ...] = ()
    overridden: tuple[tuple[str, Any, str, Any], ...] = ()

    @property
    def summary(self) -> str:
        """One line on what was changed; "" if that is nothing."""
        later = [path for path in self.added if path.rpartition(".")[2] == _ROPE]
        if later:
            return f"{', '.join(later)} added for readers of transformers 5"
        parts = (("added", self.added), ("spelled in the old way", self.respelled))
        changes = ", and ".join(f"{', '.join(paths)} {what}" for what, paths in parts if paths)
        engines = {key for keys in (_ENGINES_ONLY, *_FOR_ENGINES.values()) for key in keys}
        others = "" if engines.isdisjoint(self.added) else " and of engines"
        return f"{changes} for readers of transformers 4{others}" if changes else ""

    @property
    def disputes(self) -> list[str]:
        """What only a person can judge."""
        return [
            f"config.json states {old} {one} and {new} {two}: transformers 4 reads the first, transformers 5 the second"
            for old, one, new, two in self.disputed
        ] + [
            f"config.json states {old} {one} and {new} {two}: transformers reads the first in place of the second; "
            "it then takes rope_theta from the same level of config.json, or the default of the class"
            for old, one, new, two in self.overridden
        ]


def for_both(config: Mapping[str, Any], names: Iterator[str] | tuple[str, ...] = ()) -> Both:
    """Add the keys that readers of the other generation need, next to those that are there.

    Args:
        config: the model's config.json.
        names: the model's tensor names, by which some keys are decided.
    """
    new = copy.deepcopy(dict(config))
    added: list[str] = []
    respelled: list[str] = []
    disputed: list[tuple[str, Any, str, Any]] = []
    overridden: list[tuple[str, Any, str, Any]] = []
    for prefix, part in _parts(new):
        respelled += [prefix + key for key in respell(part)]
        lost = _lost_by_five(part)
        if lost is not None:
            part[_ROPE] = lost
            added.append(prefix + _ROPE)
            continue
        if _overrides(part.get(_SCALING), _lookup_scaled(part)):
            overridden.append((prefix + _SCALING, part[_SCALING], prefix + _ROPE, part[_ROPE]))
        for key, path, value in _wanted(part):
            if key == _SCALING and overridden and overridden[-1][0] == prefix + key:
                continue
            holder, last = _holder(part, key)
            if last not in holder:
                holder[last] = value
                added.append(prefix + key)
            elif holder[last] is not None and not _same(holder[last], value):
                disputed.append((prefix + key, holder[last], prefix + path, value))
    for key, value in _for_engines(new, names):
        if key not in new:
            new[key] = value
            added.append(key)
    return Both(new, tuple(added), tuple(respelled), tuple(disputed), tuple(overridden))


def _lookup_scaled(part: Config) -> Any:
    """The rope_parameters that rope_scaling replaces: where each kind of layer has its own, those of full attention."""
    stated = part.get(_ROPE)
    return stated.get("full_attention", stated) if isinstance(stated, dict) else None


def _overrides(scaling: Any, stated: Any) -> bool:
    """True if rope_scaling, where it is not null, states another scaling than the rope_parameters next to it.

    transformers 5 reads rope_scaling then, as its users write it into a config by hand
    (modeling_rope_utils.py, RotaryEmbeddingConfigMixin.convert_rope_params_to_dict).
    """
    if not isinstance(scaling, dict) or not scaling or not isinstance(stated, dict):
        return False
    kinds = {str(each.get("rope_type", each.get("type", "default"))) for each in (scaling, stated)}
    if len(kinds) == 2 and kinds != {"mrope", "default"}:
        return True
    shared = (scaling.keys() & stated.keys()) - {"type", "rope_type", *_OWN_KEYS}
    return ("factor" in scaling) != ("factor" in stated) or any(scaling[k] != stated[k] for k in shared)


def _holder(part: Config, path: str) -> tuple[Config, str]:
    """The config that has the last key of a path, and that key."""
    inner, _, last = path.rpartition(".")
    return (part[inner] if inner else part), last


def _lost_by_five(part: Config) -> Config | None:
    """rope_parameters of a config of transformers 4 whose rotary base transformers 5 would not find; None if it does."""
    kind, inner = part.get("model_type"), part.get("attn_config")
    if _ROPE in part:
        return None
    if kind == _LOSES_BASE and "rope_theta" in part:
        return _per_layer(part)
    if kind == _LOSES_INNER_BASE and isinstance(inner, dict) and "rope_theta" in inner:
        return {"rope_type": "default", "rope_theta": inner["rope_theta"]}
    return None


def _per_layer(part: Config) -> Config:
    """OLMo 3's rope_parameters; only the layers with full attention are scaled (modeling_olmo3.py of transformers 4)."""
    plain = {"rope_type": "default", "rope_theta": part["rope_theta"]}
    scaling = part.get(_SCALING)
    full = plain | (scaling if isinstance(scaling, dict) else {})
    if "type" in full:
        full["rope_type"] = full.pop("type")
    return {"full_attention": full, "sliding_attention": plain}


def _for_engines(config: Config, names: Iterator[str] | tuple[str, ...]) -> Iterator[tuple[str, Any]]:
    """(key, value) of what engines read in config.json alone."""
    stated = config.get("architectures")
    for key, value in _FOR_ENGINES.get(
        str(stated[0]) if isinstance(stated, list) and stated else "", {}
    ).items():
        if key not in _WITH_BIAS or any(name.endswith(_ROUTER_BIAS) for name in names):
            yield key, value
    if config.get("model_type") == _ROTARY_DIM:
        size, share = config.get("head_dim"), _lookup(config, f"{_ROPE}.partial_rotary_factor")
        if isinstance(size, int) and isinstance(share, int | float):
            yield _ENGINES_ONLY[0], int(size * share)
    if config.get("model_type") == _CONTEXT and isinstance(config.get("n_positions"), int):
        yield _ENGINES_ONLY[1], config["n_positions"]
    if config.get("model_type") in _HEAD_DIM:
        width, heads = config.get("hidden_size"), config.get("num_attention_heads")
        if isinstance(width, int) and isinstance(heads, int) and heads > 0:
            yield _ENGINES_ONLY[2], width // heads


def _parts(config: Config, prefix: str = "") -> Iterator[tuple[str, Config]]:
    """The config and the configs of its sub-models."""
    yield prefix, config
    for key, value in config.items():
        if isinstance(value, dict) and isinstance(value.get("model_type"), str):
            yield from _parts(value, f"{prefix}{key}.")


def _wanted(part: Config) -> list[tuple[str, str, Any]]:
    """(old key, path of the new one, value) for one config, whether the old key is there or not."""
    kind = str(part.get("model_type"))
    found: list[tuple[str, str, Any]] = []
    if isinstance(part.get("dtype"), str):
        found.append(("torch_dtype", "dtype", part["dtype"]))
    base = _lookup(part, f"{_ROPE}.rope_theta")
    if kind == _LOSES_INNER_BASE and base is not None and isinstance(part.get("attn_config"), dict):
        found.append(("attn_config.rope_theta", f"{_ROPE}.rope_theta", base))
    for key, path in _keys(kind):
        if key == _SCALING:
            inner = _lookup(part, path)
            scaling = _scaling(inner, kind) if isinstance(inner, dict) else None
            if scaling is not None or (isinstance(inner, dict) and kind in _SCALED_BY_DEFAULT):
                found.append((key, path, scaling))
            continue
        value = _lookup(part, path)
        if value is not None and not isinstance(value, dict):
            found.append((key, path, value))
    return found


def _scaling(parameters: Config, kind: str) -> Config | None:
    """rope_scaling as transformers 4 has it; None where the positions are not scaled."""
    rest = {key: value for key, value in parameters.items() if key not in _OWN_KEYS}
    if not rest or rest == {"rope_type": "default"}:
        return {"rope_type": "default"} if kind in _SCALING_OBJECT else None
    if kind in _THREE_KEYS:
        rest.setdefault("type", rest.get("rope_type"))
        return {key: rest[key] for key in _THREE_KEYS[kind] if key in rest}
    return rest


def _lookup(part: Config, path: str) -> Any:
    """The value at a path. Of rope parameters that are stated per kind of layer, the value that all agree on."""
    keys = path.split(".")
    value: Any = part
    for place, key in enumerate(keys):
        if not isinstance(value, dict):
            return None
        if keys[:place] == [_ROPE] and key not in value:
            if value and all(isinstance(inner, dict) for inner in value.values()):  # per kind of layer
                found = [inner.get(key) for inner in value.values()]
                return found[0] if all(each == found[0] for each in found) else None
            if len(keys) - place > 1 or (key.endswith("_attention")):  # one for all kinds of layers
                continue
        value = value.get(key)
    if (
        path == _ROPE
        and isinstance(value, dict)
        and value
        and all(isinstance(v, dict) for v in value.values())
    ):
        found = list(value.values())
        return found[0] if all(each == found[0] for each in found) else None
    return value


def _same(one: Any, two: Any) -> bool:
    if isinstance(one, dict) and isinstance(two, dict):
        aside = ("type", "rope_type", *_OWN_KEYS)
        kinds = [value.get("rope_type", value.get("type")) for value in (one, two)]
        rest = [{k: v for k, v in value.items() if k not in aside} for value in (one, two)]
        return rest[0] == rest[1] and (kinds[0] == kinds[1] or set(kinds) == {"mrope", "default"})
    return bool(one == two)


@cache
def _table() -> Config:
    found: Config = json.loads(Path(__file__).with_name("config_keys.json").read_text("utf-8"))
    return found


@cache
def _keys(kind: str) -> tuple[tuple[str, str], ...]:
    """(old key, path of the new one) for a model type."""
    return tuple(
        (key, path)
        for key, paths in _table()["keys"].items()
        for path, kinds in paths.items()
        if kind in kinds
    )
