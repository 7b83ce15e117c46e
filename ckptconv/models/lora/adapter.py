"""An adapter as PEFT saves it: the names in adapter_model.safetensors, and adapter_config.json.

Source: peft/utils/save_and_load.py (get_peft_model_state_dict) and peft/tuners/lora/config.py (LoraConfig).
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

from ckptconv.errors import CkptconvError, Kind
from ckptconv.models.lora.factors import PREFIX, Factors
from ckptconv.models.lora.kinds import is_adapter_config
from ckptconv.models.lora.names import Separated, saved_factor
from ckptconv.models.lora.place import Placed
from ckptconv.models.lora.scaling import of_module, scale
from ckptconv.tensors.view import Shape, View

Tensor = tuple[str, View, Shape, str]  # PEFT's name, the elements in C order, the shape, the stored name


def trained_tensors(parts: Separated) -> list[Tensor]:
    """The weights that were trained completely. PEFT saves those of an adapted layer under its base_layer."""
    modules = {each.module: "" for each in parts.factors}
    modules |= {each.module: "token_adapter." for each in parts.tokens}
    found = []
    for name in parts.trained:
        module, _, leaf = name.rpartition(".")
        inner = f"{module}.{modules[module]}base_layer.{leaf}" if module in modules else name
        found.append((f"{PREFIX}{inner}", parts.weights[name], parts.weights[name].shape, name))
    return found


def token_tensors(parts: Separated) -> list[Tensor]:
    """The single rows of embeddings that were trained."""
    return [
        (f"{PREFIX}{each.module}.token_adapter.trainable_tokens_delta", view, view.shape, name)
        for each in parts.tokens
        for name, view in (each.rows,)
    ]


def adapter_tensors(placed: Placed) -> list[Tensor]:
    """The tensors of one layer. PEFT omits the adapter's name from their names."""
    factors = placed.factors
    stem = f"{PREFIX}{placed.module}.lora_"
    if (
        factors.embedding or placed.by_column
    ):  # saved as stored, since `left` and `right` are their transposes
        kind, tail = ("embedding_", "") if factors.embedding else ("", ".weight")
        found = [
            (f"{stem}{kind}A{tail}", factors.a[1], factors.a[1].shape, factors.a[0]),
            (f"{stem}{kind}B{tail}", factors.b[1], factors.b[1].shape, factors.b[0]),
        ]
    else:
        rows, columns = placed.shape
        rank = placed.right.shape[0]
        found = [
            (f"{stem}A.weight", placed.right, (rank, columns), factors.a[0]),
            (f"{stem}B.weight", placed.left, (rows, rank), factors.b[0]),
        ]
    if placed.bias and factors.bias:
        view = placed.bias[1]
        found.append((f"{stem}B.bias", view, (view.numel,), factors.bias[0]))
    if placed.magnitude is not None and factors.magnitude:
        view = placed.magnitude
        found.append((f"{stem}magnitude_vector", view, (view.numel,), factors.magnitude[0]))
    return found


def stack_tensors(factors: Factors) -> list[Tensor]:
    """The tensors of a stack of experts. PEFT saves them in the layout of training."""
    return [(saved_factor(name), view, view.shape, name) for name, view in factors.stored]


def adapter_config(
    placed: Sequence[Placed],
    parts: Separated,
    meta: Mapping[str, Any],
    alpha: float | None,
    config: Mapping[str, Any],
) -> dict[str, Any]:
    """adapter_config.json for exported factors. If PEFT's own file is known, it is kept.

    Args:
        placed: the updates by Hub name.
        parts: the stored factors and trained weights.
        meta: the checkpoint's LoRA settings.
        alpha: the user's --lora-alpha; None to take it from `meta`.
        config: the model's config.json.

    Raises:
        CkptconvError: alpha is not known, or it is not known which expert parameters were adapted.
    """
    for each in parts.factors:
        for parameter in each.parameters or ("",):
            scale(each, meta, alpha, parameter)  # the same refusals as in a merge
    if is_adapter_config(meta):
        return {**meta, "inference_mode": True, **({} if alpha is None else {"lora_alpha": alpha})}
    rank, ranks = _ranks(placed, meta)
    layers = config.get("num_hidden_layers")
    newer = {  # settings that older versions of PEFT do not take
        "use_rslora": bool(meta.get("use_rslora")),
        "use_dora": any(each.magnitude is not None for each in placed),
        "lora_bias": any(each.bias for each in placed),
        "target_parameters": _parameters(parts),
    }
    return {
        "peft_type": "LORA",
        "task_type": meta.get("task_type"),
        "base_model_name_or_path": meta.get("base_model_name_or_path") or config.get("_name_or_path") or None,
        "r": rank,
        "lora_alpha": alpha if alpha is not None else meta["lora_alpha"],
        "target_modules": _targets([each.module for each in placed], layers),
        "lora_dropout": 0.0,
        "bias": "none",
        "rank_pattern": ranks,
        "alpha_pattern": dict(meta.get("alpha_pattern") or {}),
        "fan_in_fan_out": bool(meta.get("fan_in_fan_out")),
        "inference_mode": True,
        "init_lora_weights": True,
        "modules_to_save": sorted({name.rsplit(".", 2)[-2] for name in parts.trained}) or None,
        **{key: value for key, value in newer.items() if value},
    }


def _parameters(parts: Separated) -> list[str]:
    """target_parameters, if all stacked parameters of each module were adapted; otherwise they are not known."""
    pairs: dict[str, int] = {}
    for each in parts.stacks:
        pairs[each.module] = pairs.get(each.module, 0) + 1
        if pairs[each.module] > len(each.parameters):
            raise CkptconvError(f"more LoRA pairs than parameters are stored for {each.module}")
    for each in parts.stacks:
        if pairs[each.module] != len(each.parameters):
            raise CkptconvError(
                f"LoRA on some of the stacked parameters of {each.module}; which ones is not known",
                wanted="target_parameters in adapter_config.json",
                hint="merge it: --lora merge",
                kind=Kind.UNSUPPORTED,
            )
    names = [re.sub(r"^.*\.\d+\.", "", parameter) for each in parts.stacks for parameter in each.parameters]
    return list(dict.fromkeys(names))


def _ranks(placed: Sequence[Placed], meta: Mapping[str, Any]) -> tuple[int, dict[str, int]]:
    """The most common rank, and module -> rank for the modules with another rank."""
    patterns = dict(meta.get("rank_pattern") or {})
    if patterns and isinstance(meta.get("r"), int):
        return meta["r"], patterns
    if not placed:
        return int(meta["r"]), patterns
    ((rank, _),) = Counter(each.right.shape[0] for each in placed).most_common(1)
    others = [each for each in placed if of_module(patterns, each.module, rank) != each.right.shape[0]]
    return rank, patterns | {each.module: each.right.shape[0] for each in others}


def _targets(modules: Sequence[str], layers: object) -> list[str]:
    """target_modules: the last segments of the names if every layer has them, else full names.

    PEFT adapts every module whose name ends with a target (peft/tuners/tuners_utils.py, check_target_module_exists).
    """
    kinds: dict[str, set[str]] = {}
    for module in modules:
        numbers = [segment for segment in module.split(".") if segment.isdigit()]
        kinds.setdefault(module.rpartition(".")[2], set()).add(numbers[0] if numbers else "")
    whole = all(found == {""} or layers in (None, len(found)) for found in kinds.values())
    return (
        sorted(kinds) if whole and not any(".experts." in module for module in modules) else sorted(modules)
    )
