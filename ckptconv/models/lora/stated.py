"""Compare adapter_config.json with the tensors that PEFT stored next to it.

PEFT loads an adapter that lacks tensors with a warning and keeps their first values, and drops tensors that its settings do
not name. A merge would be another model than the one that was trained. Sources: peft/tuners/lora/config.py (LoraConfig),
peft/tuners/tuners_utils.py (check_target_module_exists), peft/utils/save_and_load.py (get_peft_model_state_dict).
"""

from __future__ import annotations

import re
from collections.abc import Collection, Iterator, Mapping
from typing import Any

from ckptconv.errors import CkptconvError, Kind
from ckptconv.models import mtp
from ckptconv.models.lora.kinds import is_adapter_config
from ckptconv.models.lora.names import Separated, is_named_by
from ckptconv.models.lora.scaling import matching, of_module
from ckptconv.models.lora.tasks import HEADS, stated_task
from ckptconv.models.nested import text_of

_NUMBER = re.compile(r"(?<=\.)\d+(?=\.)")
_LIBRARY = re.compile(r"transformers\.models\.(\w+)\.")
_SHOWN = 3
# LoraConfig of PEFT 0.21, and what Unsloth adds.
_KNOWN = {
    *("alora_invocation_tokens", "alpha_pattern", "arrow_config", "auto_mapping", "base_model_name_or_path", "bias"),
    *("corda_config", "ensure_weight_tying", "eva_config", "exclude_modules", "fan_in_fan_out", "inference_mode"),
    *("init_lora_weights", "kasa_config", "layer_replication", "layers_pattern", "layers_to_transform", "loftq_config"),
    *("lora_alpha", "lora_bias", "lora_dropout", "lora_ga_config", "megatron_config", "megatron_core", "modules_to_save"),
    *("monteclora_config", "peft_type", "peft_version", "qalora_group_size", "r", "rank_pattern", "revision"),
    *("runtime_config", "target_modules", "target_parameters", "task_type", "trainable_token_indices", "use_bdlora"),
    *("use_dora", "use_qalora", "use_rslora", "velora_config", "unsloth_fixed"),
}  # fmt: skip


def check_stated(
    parts: Separated, meta: Mapping[str, Any], weights: Collection[str], config: Mapping[str, Any]
) -> list[str]:
    """Refuse an adapter that lacks what its settings name; return notes on what only a person can judge.

    Args:
        parts: the adapter's tensors.
        meta: the LoRA settings. Only PEFT's own adapter_config.json is compared.
        weights: names of the model's weights; empty if they are not known.
        config: the model's config.json.
    """
    lost = _without_factors(parts)
    if not is_adapter_config(meta) or not (parts.factors or parts.tokens or parts.trained):
        return lost
    own = {name for name in weights if not any(re.search(each, name) for each in mtp.patterns(config))}
    for lacking, setting in (
        *_kinds(parts, meta),
        *_layers(parts, meta),
        *_targets(parts, meta, own, config),
        *_saved(parts, meta, own),
        *_biases(parts, meta, own),
        *_heads(parts, meta, own),
        *_class(meta, config),
    ):
        raise CkptconvError(
            "adapter_config.json does not describe the tensors next to it",
            found=lacking,
            wanted=setting,
            hint="name the base model that the adapter was trained on with --base DIR, copy both files of one save again, "
            "or correct adapter_config.json",
            kind=Kind.DAMAGED,
        )
    return [*lost, *_not_named(parts, meta), *_overlapping(parts, meta), *_unknown(meta)]


Difference = tuple[str, str]  # (what is stored, what adapter_config.json says)


def _without_factors(parts: Separated) -> list[str]:
    """A note where no adapted module has its factors; PEFT names the weight of an adapted module X.base_layer.

    Raises:
        CkptconvError: some of these modules have factors, and others have not.
    """
    modules = {each.module for each in parts.factors} | {each.module for each in parts.tokens}
    adapted = {
        bare: name
        for bare, name in parts.origin.items()
        if ".base_layer." in name and bare not in parts.trained
    }
    lacking = [
        name for bare, name in adapted.items() if not {bare.rpartition(".")[0], *_parents(bare)} & modules
    ]
    if lacking and modules:
        raise CkptconvError(
            "an adapted module has no LoRA factors",
            found=", ".join(lacking[:_SHOWN]),
            wanted=f"lora_A and lora_B, as {len(modules)} other modules have them",
            hint="the checkpoint lost tensors: take another step",
            kind=Kind.INCOMPLETE,
        )
    if not lacking:
        return []
    return [
        f"{len(lacking)} weights have PEFT's name base_layer, and no LoRA factors are stored: the weights are those of the "
        "base model, unless the adapter was merged into them before the save"
    ]


def _parents(bare: str) -> Iterator[str]:
    """The modules above a weight: the experts of a stack may be adapted as one."""
    while "." in bare:
        bare = bare.rpartition(".")[0]
        yield bare


def _kinds(parts: Separated, meta: Mapping[str, Any]) -> Iterator[Difference]:
    """DoRA's magnitudes and biases of B, which every layer has or none; stacks of experts have no such tensors."""
    plain = [each for each in parts.factors if not each.parameters]
    for setting, what, has in (
        ("use_dora", "lora_magnitude_vector", [each.magnitude is not None for each in plain]),
        ("lora_bias", "lora_B.bias", [each.bias is not None for each in plain]),
    ):
        stated = meta.get(setting)
        if stated is True and not all(has):
            yield f"no {what} for {plain[has.index(False)].module}", f"{setting} true"
        if stated is False and any(has):
            yield f"a {what} for {plain[has.index(True)].module}", f"{setting} false"


def _layers(parts: Separated, meta: Mapping[str, Any]) -> Iterator[Difference]:
    stated = meta.get("layers_to_transform")
    allowed = {stated} if type(stated) is int else set(stated) if isinstance(stated, list) else set()
    for each in parts.factors if allowed else ():
        numbers = {int(number) for number in _NUMBER.findall(f".{each.module}.")}
        if numbers and not numbers & allowed:
            yield f"LoRA on {each.module}", f"layers_to_transform {sorted(allowed)}"


def _targets(
    parts: Separated, meta: Mapping[str, Any], weights: Collection[str], config: Mapping[str, Any]
) -> Iterator[Difference]:
    """Modules that target_modules names and that have no factors, although PEFT adapts every module of that name.

    Experts are not looked at: the Hub stores them one by one where the module of transformers may hold them as one
    parameter. Nor are layers that share keys and values, which a module may lack although the Hub stores them.
    """
    targets = meta.get("target_modules")
    narrowed = meta.get("layers_to_transform") is not None or meta.get("exclude_modules")
    if not isinstance(targets, list) or narrowed or text_of(config).get("num_kv_shared_layers"):
        return
    adapted = {each.module for each in parts.factors}
    saved = {name.rpartition(".")[0] for name in parts.trained}
    by_target: dict[str, dict[str, list[str]]] = {}
    for name in sorted(weights):
        module, _, leaf = name.rpartition(".")
        if leaf != "weight" or ".experts." in module or module in saved - adapted:
            continue
        if (target := _target_of(module, targets)) is not None:
            by_target.setdefault(target, {}).setdefault(_NUMBER.sub("*", module), []).append(module)
    for target, kinds in by_target.items():
        found = [modules for modules in kinds.values() if adapted & {*modules}]
        for modules in found or kinds.values():
            lacking = [module for module in modules if module not in adapted]
            if lacking:
                more = f" and {len(lacking) - _SHOWN} more" if len(lacking) > _SHOWN else ""
                yield f"no factors for {', '.join(lacking[:_SHOWN])}{more}", f"target_modules names {target}"


def _target_of(module: str, targets: list[Any]) -> str | None:
    """The target that names a module by the end of its name."""
    return next((each for each in targets if isinstance(each, str) and is_named_by(module, each)), None)


def _saved(parts: Separated, meta: Mapping[str, Any], weights: Collection[str]) -> Iterator[Difference]:
    names = meta.get("modules_to_save")
    for target in names if isinstance(names, list) else ():
        there = [name for name in weights if _target_of(name.rpartition(".")[0], [target])]
        if there and not any(_target_of(name.rpartition(".")[0], [target]) for name in parts.trained):
            yield f"no weight of {target}", f"modules_to_save names {target}"


def _biases(parts: Separated, meta: Mapping[str, Any], weights: Collection[str]) -> Iterator[Difference]:
    stated = meta.get("bias")
    if stated not in ("all", "lora_only"):
        return
    modules = {each.module for each in parts.factors}
    wanted = [name for name in weights if name.endswith(".bias")]
    if stated == "lora_only":
        wanted = [name for name in wanted if name.removesuffix(".bias") in modules]
    lacking = sorted({*wanted} - {*parts.trained})
    if lacking:
        yield f"no {lacking[0]}", f"bias {stated}"


def _heads(parts: Separated, meta: Mapping[str, Any], weights: Collection[str]) -> Iterator[Difference]:
    task = stated_task(meta)
    held = (*parts.trained, *weights, *(each.weight for each in parts.factors))
    if task.key and weights and not any(name.startswith(HEADS) for name in held):
        yield "no score or classifier", f"task_type {meta['task_type']}, which has a head for {task.called}"


def _class(meta: Mapping[str, Any], config: Mapping[str, Any]) -> Iterator[Difference]:
    """The class that PEFT adapted, which it writes if no task type was given
    (peft/peft_model.py, `save_pretrained`).
    """
    mapping, kind = meta.get("auto_mapping"), str(config.get("model_type") or "").replace("-", "_")
    library = _LIBRARY.match(str(mapping.get("parent_library"))) if isinstance(mapping, dict) else None
    if library and kind and not (kind.startswith(library[1]) or library[1].startswith(kind)):
        yield (
            f"a base model of model_type {kind}",
            f"auto_mapping {mapping['base_model_class']}" if mapping else "",
        )


def _not_named(parts: Separated, meta: Mapping[str, Any]) -> Iterator[str]:
    targets = meta.get("target_modules")
    if not isinstance(targets, list) or not targets:
        return
    ends = [str(target) for target in targets]
    others = [
        each.module
        for each in parts.factors
        if not each.parameters
        and _target_of(each.module, ends) is None
        and not any(end.endswith(f".{each.module}") for end in ends)
    ]
    if others:
        yield (
            f"target_modules in adapter_config.json does not name {len(others)} modules whose factors are stored and "
            f"merged: {', '.join(others[:_SHOWN])}"
        )


def _overlapping(parts: Separated, meta: Mapping[str, Any]) -> Iterator[str]:
    """A note on alphas that depend on the order of patterns: PEFT takes the first that matches, and sorts them when it saves
    (peft/config.py, save_pretrained).
    """
    modules = [each.trained_module for each in parts.factors if not each.parameters]
    unclear = [name for name in modules if len({*matching(meta.get("alpha_pattern"), name)}) > 1]
    if unclear:
        used = of_module(meta.get("alpha_pattern"), unclear[0], None)
        yield (
            f"several patterns of alpha_pattern with different values match {len(unclear)} modules: {unclear[0]} is scaled "
            f"by alpha {used}, as PEFT does when it loads this adapter. adapter_config.json sorts its patterns, so training "
            "may have used another one"
        )


def _unknown(meta: Mapping[str, Any]) -> Iterator[str]:
    unknown = sorted(key for key, value in meta.items() if key not in _KNOWN and value)
    if unknown:
        yield f"settings in adapter_config.json that ckptconv does not know were not applied: {', '.join(unknown)}"
