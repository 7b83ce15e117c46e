"""The mapping of a model type that the shipped table lacks, from the transformers that is installed.

This module imports transformers, and is itself imported only for such a model type. `tools/make_table.py` uses the same
functions to make the table.
"""

from __future__ import annotations

import importlib
import json
import re
from dataclasses import dataclass
from functools import lru_cache
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from ckptconv.errors import CkptconvError, Kind

Config = dict[str, Any]


@dataclass(frozen=True, slots=True)
class Mapping:
    """What the installed transformers says of one class.

    Args:
        version: of transformers.
        rules: entry -> its rules, as in the table.
        classes: class -> its sub-models, as in the table.
        keep_fp32: name parts of the tensors that stay in float32.
    """

    version: str
    rules: dict[str, Any]
    classes: dict[str, Any]
    keep_fp32: tuple[str, ...]


def installed_version() -> str | None:
    """The version of transformers that is installed; it is not imported."""
    from importlib.metadata import PackageNotFoundError, version  # takes as long as a tenth of our modules

    try:
        return version("transformers")
    except PackageNotFoundError:
        return None


def mapping_of(config: Config) -> Mapping | None:
    """The installed transformers' own mapping for a config; None if it does not know the model type.

    Raises:
        CkptconvError: it knows the model type, and the class cannot be built to see which sub-models it has.
    """
    stated = config.get("architectures")
    name = stated[0] if isinstance(stated, list) and stated and isinstance(stated[0], str) else ""
    return _mapping(str(config.get("model_type")), name, json.dumps(config, sort_keys=True, default=str))


def layer_kinds(key: str, known: str) -> list[str]:
    """The kinds of layers that the installed transformers accepts in `layer_types` or `mlp_layer_types`.

    Args:
        key: one of the two.
        known: a version of transformers whose kinds the caller knows; [] if it is the installed one.
    """
    if installed_version() in (None, known):
        return []
    from transformers import configuration_utils

    name = "ALLOWED_MLP_LAYER_TYPES" if key == "mlp_layer_types" else "ALLOWED_ATTN_LAYER_TYPES"
    every = getattr(configuration_utils, "ALLOWED_LAYER_TYPES", ())  # older versions have one list
    return list(getattr(configuration_utils, name, every))


def lists(kind: str) -> bool:
    """Whether the installed transformers lists a model type; read from its sources, since an import takes seconds."""
    found = find_spec("transformers")
    if found is None or not found.submodule_search_locations:
        return False
    folder = Path(found.submodule_search_locations[0]) / "models/auto"
    sources = [folder / name for name in ("auto_mappings.py", "configuration_auto.py")]
    return any(f'"{kind}"' in source.read_text("utf-8") for source in sources if source.is_file())


@lru_cache(maxsize=4)
def _mapping(kind: str, name: str, text: str) -> Mapping | None:
    if not lists(kind):
        return None
    import transformers
    from transformers.models.auto.configuration_auto import CONFIG_MAPPING

    if kind not in CONFIG_MAPPING or not hasattr(transformers, name):
        return None
    try:
        model = on_meta(getattr(transformers, name), CONFIG_MAPPING[kind].from_dict(json.loads(text)))
    except Exception as error:  # whatever a class makes of a config
        raise CkptconvError(
            f"the table of names does not have the model type {kind}, and transformers "
            f"{transformers.__version__} cannot build {name} to tell its names",
            where="config.json",
            found=str(error).splitlines()[0][:120] if str(error) else type(error).__name__,
            hint="save this model with its own save_pretrained",
            kind=Kind.UNSUPPORTED,
        ) from error
    classes: dict[str, Any] = {}
    note_parts(model, classes)
    wanted = (
        {kind, name}
        | {part for found in classes.values() if found for part in (found["type"],)}
        | set(classes)
    )
    strict = tuple(sorted(set(getattr(model, "_keep_in_fp32_modules_strict", None) or ())))
    return Mapping(transformers.__version__, make_rules(wanted), classes, strict)


def on_meta(cls: Any, config: Any) -> Any:
    """A model without storage."""
    import torch
    from transformers.initialization import no_init_weights

    with torch.device("meta"), no_init_weights():
        return cls._from_config(config)


def make_rules(only: set[str] | None = None) -> dict[str, Any]:
    """The rules of every entry (a model type or a class name), module -> Hub, in the order they are applied.

    An entry equal to an earlier one is that one's name.

    Args:
        only: the entries; None for all.
    """
    conversion_mapping = importlib.import_module("transformers.conversion_mapping")
    entries: dict[str, Any] = {}
    seen: dict[str, str] = {}
    for name, transforms in sorted(conversion_mapping._build_checkpoint_conversion_mapping().items()):
        if name == "legacy" or (only is not None and name not in only):
            continue
        rules = [_both_ways(transform) for transform in reversed(transforms)]
        text = json.dumps(rules)
        entries[name] = seen.get(text, rules)
        seen.setdefault(text, name)
    return entries


def _both_ways(transform: Any) -> dict[str, Any]:
    """A rule, module -> Hub, and under "load" the patterns that transformers loads it back with."""
    found, load = _rule(transform.reverse_transform()), _rule(transform)
    return found | {"load": {key: load[key] for key in ("from", "to", "patterns", "offset") if key in load}}


def _rule(transform: Any) -> dict[str, Any]:
    kind = type(transform).__name__
    found: dict[str, Any] = {"from": [_anchored(p) for p in transform.source_patterns]}
    found["to"] = list(transform.target_patterns)
    if kind == "WeightConverter":
        found["patterns"] = list(transform.source_patterns)
        found["ops"] = [[type(op).__name__, _public(op)] for op in transform.operations]
    elif kind == "PrefixChange":
        found["prefix"] = True
    elif kind == "GroupWeightRename":
        found["group"] = True
    elif kind == "Inkling2IndexOffsetWeightRename":
        found["offset"] = transform.offset
    elif kind != "WeightRenaming":
        found["unknown"] = kind
    return found


def _anchored(pattern: str) -> str:
    """The regex that transformers searches with: a glob star becomes `.*`, and a name ends where the pattern ends."""
    regex = pattern.replace("*.", r".*\.")
    return regex + r"(?!\w)" if re.search(r"[a-zA-Z0-9]$", regex) else regex


def _public(op: Any) -> dict[str, Any]:
    plain = (str, int, bool, list, tuple)
    return {k: v for k, v in vars(op).items() if not k.startswith("_") and isinstance(v, plain)}


def note_parts(model: Any, built: dict[str, Any]) -> None:
    """Write down the model's nearest sub-models: [path, class, config key, model type, auto class]."""
    from transformers import PreTrainedModel

    parts: list[Any] = []
    inside: list[str] = []
    for path, module in model.named_modules():
        if path and isinstance(module, PreTrainedModel) and not any(path.startswith(p + ".") for p in inside):
            inside.append(path)
            key = _config_key(model.config, module.config)
            auto = _auto_class(module) if key and type(module).__module__ != type(model).__module__ else None
            parts.append([path, type(module).__name__, key, module.config.model_type, auto])
            if built.get(type(module).__name__) is None:
                note_parts(module, built)
    found = {"type": model.config.model_type, "prefix": model.base_model_prefix, "parts": parts}
    built[type(model).__name__] = found


def _config_key(config: Any, wanted: Any) -> str | None:
    """The key under which a config holds another; "" where they are one; None where it is not found."""
    if wanted is config:
        return ""
    for same in (lambda value: value is wanted, lambda value: type(value) is type(wanted)):
        keys = [key for key, value in vars(config).items() if same(value)]
        if keys:
            return str(keys[0])
    return "" if type(wanted) is type(config) else None


def auto_maps() -> dict[str, dict[str, Any]]:
    """Auto class -> model type -> model class."""
    from transformers.models.auto import modeling_auto as auto

    return {
        "AutoModel": auto.MODEL_MAPPING_NAMES,
        "AutoModelForCausalLM": auto.MODEL_FOR_CAUSAL_LM_MAPPING_NAMES,
        "AutoBackbone": auto.MODEL_FOR_BACKBONE_MAPPING_NAMES,
    }


def _auto_class(module: Any) -> str | None:
    for name, classes in auto_maps().items():
        if type(module).__name__ in names_of(classes.get(module.config.model_type, ())):
            return name
    return None


def names_of(value: Any) -> tuple[str, ...]:
    """The classes of one model type in an auto mapping."""
    return (value,) if isinstance(value, str) else tuple(value)
