"""The scale of a LoRA update: alpha / rank, and the files that state both."""

from __future__ import annotations

import re
from collections.abc import Mapping
from math import inf, sqrt
from typing import Any

from ckptconv.errors import CkptconvError, Kind
from ckptconv.models import facts
from ckptconv.models.lora.factors import Factors

_TRANSPOSED = ("gpt_oss", "openai_privacy_filter")  # experts with is_transposed
# The types whose layers are transformers.pytorch_utils.Conv1D, and the names of these layers; their heads are Linear.
_CONV1D = ("gpt2", "openai-gpt", "imagegpt", "decision_transformer")
_CONV1D_LAYERS = (".c_attn", ".c_fc", ".c_proj", ".q_attn")


def rank_of(factors: Factors, meta: Mapping[str, Any], parameter: str = "") -> int:
    """The rank of a LoRA layer.

    Args:
        factors: the pair.
        meta: the LoRA settings; only they tell the rank of a stack of experts.
        parameter: the name of the stack of experts; "" for an ordinary layer.

    Raises:
        CkptconvError: the rank of a stack is not stated, or does not divide its rows.
    """
    if not parameter:
        return factors.rank
    rank = of_module(meta.get("rank_pattern"), parameter, meta.get("r"))
    if not isinstance(rank, int) or rank < 1 or factors.rank % rank:
        raise CkptconvError(
            f"the rank of the LoRA on the experts {parameter} is not known",
            found=f"{factors.rank} rows in {factors.a[0]}; r = {rank}",
            wanted="r in adapter_config.json or lora_train_meta.json",
            kind=Kind.UNSUPPORTED,
        )
    return rank


def scale(factors: Factors, meta: Mapping[str, Any], alpha: float | None, parameter: str = "") -> float:
    """The factor of the update: alpha / r, or alpha / sqrt(r) for rsLoRA (peft/tuners/lora/layer.py, update_layer).

    Args:
        factors: the pair.
        meta: the LoRA settings.
        alpha: the user's --lora-alpha; None to take it from `meta`.
        parameter: the name of the stack of experts; "" for an ordinary layer.

    Raises:
        CkptconvError: alpha is not known, or the settings state another rank than the pair has.
    """
    target = parameter or factors.trained_module
    rank = rank_of(factors, meta, parameter)
    if alpha is None:
        alpha = of_module(meta.get("alpha_pattern"), target, meta.get("lora_alpha"))
        stated = matching(meta.get("rank_pattern"), target) or [meta.get("r")]
        if rank not in stated and isinstance(stated[0], int) and stated[0] > 0:
            raise CkptconvError(
                "the LoRA metadata does not match these tensors",
                found=f"r = {rank} in {factors.a[0]}",
                wanted=f"r = {stated[0]}",
                hint="pass the alpha: --lora-alpha N",
            )
    if not isinstance(alpha, int | float) or isinstance(alpha, bool) or not 0 < alpha < inf:
        raise CkptconvError(
            "the checkpoint has LoRA weights but does not record their alpha",
            found="no lora_alpha above 0 in lora_train_meta.json, adapter_config.json or run_config.yaml",
            hint="pass --lora-alpha N (see the training configuration)",
            kind=Kind.INCOMPLETE,
        )
    return alpha / (sqrt(rank) if meta.get("use_rslora") else rank)


def is_fan_in_fan_out(meta: Mapping[str, Any], config: Mapping[str, Any], module: str) -> bool:
    """True if a module's weight is (in, out): it is a Conv1D, or PEFT's config says so of other code.

    PEFT looks at the module: it sets fan_in_fan_out itself for Conv1D, and unsets it for Linear (peft/tuners/lora/model.py).

    Args:
        meta: the LoRA settings.
        config: the model's config.json.
        module: the module's name.
    """
    if config.get("model_type") in _CONV1D:
        return module.endswith(_CONV1D_LAYERS)
    linear = "model_type" in config and facts.knows({"model_type": config["model_type"]})
    return bool(meta.get("fan_in_fan_out")) and not linear


def ways_of_stacks(meta: Mapping[str, Any], config: Mapping[str, Any]) -> tuple[bool, ...]:
    """How PEFT may have read stacked experts (E, x, y): (True,) as (E, in, out), (False,) as (E, out, in), or both.

    Up to version 0.18, PEFT reads every stack as (E, in, out). Since 0.19 it looks at `is_transposed` of transformers, which
    the experts of only a few models have (Aria's only in newer versions). For square experts the shapes do not tell.
    Sources: peft/tuners/lora/layer.py, ParamWrapper.update_layer; transformers/integrations/moe.py,
    use_experts_implementation.

    Args:
        meta: the LoRA settings, with the version of PEFT.
        config: the model's config.json.
    """
    if config.get("model_type") in _TRANSPOSED:
        return (True,)
    stated = re.match(r"(\d+)\.(\d+)\.(\d+)(\.dev)?", str(meta.get("peft_version")))
    if stated is None or stated[4]:
        return (False, True)
    if (int(stated[1]), int(stated[2])) < (0, 19):
        return (True,)
    return (False, True) if str(config.get("model_type")).startswith("aria") else (False,)


def of_module(patterns: Any, module: str, default: Any) -> Any:
    """The value for a module in a rank_pattern or alpha_pattern (peft/utils/other.py, get_pattern_key), or the default."""
    return next(iter(matching(patterns, module)), default)


def matching(patterns: Any, module: str) -> list[Any]:
    """The values of all patterns that match a module, in the order of adapter_config.json; PEFT takes the first."""
    items = patterns.items() if isinstance(patterns, dict) else ()
    return [value for pattern, value in items if re.match(rf"(?:.*\.)?(?:{pattern})$", module)]
