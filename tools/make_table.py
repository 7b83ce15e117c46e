"""Writes transformers_table.json from the installed transformers: `python -m tools.make_table`.

It reads `transformers.conversion_mapping`, lets transformers itself turn
every transform round (Hub -> module becomes module -> Hub) and writes the result as data; and it builds every model
class on the meta device, to note which sub-models lie in it and which key of the config describes them.
"""

from __future__ import annotations

import importlib
import json
import os
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

TABLE = Path(__file__).parents[1] / "ckptconv/models/transformers_table.json"

_QWEN4_EXP = {
    "num_hidden_layers": 4,
    "indexer_n_heads": 8,
    "indexer_kv_heads": 1,
    "indexer_head_dim": 256,
    "indexer_budget": 1024,
    "indexer_compress_ratio": 4,
    "ple_layer_ids": [1],
    "eos_token_id": 1,
}

# Configs whose defaults alone build no model.
_CONFIG_ARGUMENTS: dict[str, dict[str, Any]] = {
    "AyaVisionConfig": {"vision_config": {"model_type": "siglip_vision_model", "num_attention_heads": 12}},
    "BeitConfig": {"out_indices": [3, 5, 7, 11]},
    "ChameleonConfig": {"vocabulary_map": {"<image>": 8711}},
    "DeepseekOcr2Config": {"text_config": {"mlp_layer_types": ["dense", "sparse"], "num_hidden_layers": 2}},
    "DiffusionGemmaConfig": {
        "text_config": {"num_experts": 4, "top_k_experts": 2, "moe_intermediate_size": 64},
    },
    "Dots1Config": {"n_routed_experts": 8, "n_shared_experts": 1},
    "Emu3Config": {"vocabulary_map": {"<image>": 1, "<|extra_200|>": 2}},
    "EsmConfig": {"vocab_size": 33},
    "Granite4VisionConfig": {
        "deepstack_layer_map": [[0, 0]],
        "spatial_target_layers": [0],
        "downsample_rate": "1/2",
    },
    "HunYuanDenseV1Config": {"head_dim": 128},
    "HunYuanMoEV1Config": {"head_dim": 128},
    "HunYuanVLConfig": {"text_config": {"head_dim": 128}},
    "Lfm2MoeConfig": {
        "layer_types": ["conv", "full_attention"],
        "num_hidden_layers": 2,
        "num_dense_layers": 1,
    },
    "Qwen3OmniMoeConfig": {
        "talker_config": {"text_config": {"shared_expert_intermediate_size": 768}, "spatial_merge_size": 2}
    },
    "Qwen3OmniMoeTalkerConfig": {
        "text_config": {"shared_expert_intermediate_size": 768},
        "spatial_merge_size": 2,
    },
    "Qwen4ExpTextConfig": _QWEN4_EXP,
    "Qwen4ExpConfig": {"text_config": _QWEN4_EXP},
}


def make_rules() -> dict[str, Any]:
    """The rules of every entry (a model type or a class name), module -> Hub, in the order they are applied.

    An entry equal to an earlier one is that one's name.
    """
    from transformers import conversion_mapping

    entries: dict[str, Any] = {}
    seen: dict[str, str] = {}
    for name, transforms in sorted(conversion_mapping._build_checkpoint_conversion_mapping().items()):
        if name == "legacy":
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


def make_classes(entries: dict[str, Any]) -> dict[str, Any]:
    """Per model class with entries in it: model type, base_model_prefix, sub-models. None: it could not be built."""
    built: dict[str, Any] = {}
    for cls in _model_classes():
        try:
            model = _on_meta(cls)
        except Exception:  # an optional library is missing, or the default config is not a model
            built[cls.__name__] = None
            continue
        _note(model, built)
    useful: set[str] = {
        name for name, found in built.items() if found and {name, found["type"]} & set(entries)
    }
    while True:
        more = {
            name
            for name, found in built.items()
            if found and any(part[4] or part[1] in useful for part in found["parts"])
        }
        if more <= useful:
            break
        useful |= more
    for name in useful:
        built[name]["parts"] = [part for part in built[name]["parts"] if part[4] or part[1] in useful]
    return {name: built[name] for name in sorted(built) if name in useful or built[name] is None}


def _note(model: Any, built: dict[str, Any]) -> None:
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
                _note(module, built)
    found = {"type": model.config.model_type, "prefix": model.base_model_prefix, "parts": parts}
    built[type(model).__name__] = found


def _config_key(config: Any, wanted: Any) -> str | None:
    """The key under which a config holds another; "" where they are one; None where it is not found."""
    if wanted is config:
        return ""
    for same in (lambda value: value is wanted, lambda value: type(value) is type(wanted)):
        keys = [key for key, value in vars(config).items() if same(value)]
        if keys:
            return keys[0]
    return "" if type(wanted) is type(config) else None


def _auto_maps() -> dict[str, dict[str, Any]]:
    from transformers.models.auto import modeling_auto as auto

    return {
        "AutoModel": auto.MODEL_MAPPING_NAMES,
        "AutoModelForCausalLM": auto.MODEL_FOR_CAUSAL_LM_MAPPING_NAMES,
        "AutoBackbone": auto.MODEL_FOR_BACKBONE_MAPPING_NAMES,
    }


def _auto_class(module: Any) -> str | None:
    for name, classes in _auto_maps().items():
        if type(module).__name__ in _names(classes.get(module.config.model_type, ())):
            return name
    return None


def _names(value: Any) -> tuple[str, ...]:
    return (value,) if isinstance(value, str) else tuple(value)


def _model_classes() -> Iterator[Any]:
    import transformers.models
    from transformers import PreTrainedModel

    root = Path(transformers.models.__path__[0])
    for file in sorted(root.glob("*/modeling_*.py")):
        try:
            module = importlib.import_module(f"transformers.models.{file.parent.name}.{file.stem}")
        except ImportError:  # an optional library
            continue
        for name, cls in sorted(vars(module).items()):
            own = (
                isinstance(cls, type)
                and issubclass(cls, PreTrainedModel)
                and cls.__module__ == module.__name__
            )
            if own and cls.config_class is not None and not name.endswith("PreTrainedModel"):
                yield cls


def _on_meta(cls: Any) -> Any:
    import torch
    from transformers.initialization import no_init_weights

    config = cls.config_class(**_CONFIG_ARGUMENTS.get(cls.config_class.__name__, {}))
    with torch.device("meta"), no_init_weights():
        return cls._from_config(config)


def make_auto(classes: dict[str, Any]) -> dict[str, dict[str, str]]:
    """Auto class -> model type -> model class, for the classes that have a place in the table."""
    return {
        auto: {
            kind: name
            for kind, names in sorted(mapping.items())
            for name in _names(names)[:1]
            if classes.get(name) is not None
        }
        for auto, mapping in _auto_maps().items()
    }


def make_heads() -> dict[str, str]:
    """Model type -> what its config.json calls num_attention_heads, where that is another name."""
    from transformers.models.auto.configuration_auto import CONFIG_MAPPING

    found = {}
    for kind in sorted(CONFIG_MAPPING.keys()):
        name = CONFIG_MAPPING[kind].attribute_map.get("num_attention_heads")
        if name:
            found[kind] = name
    return found


def make_table() -> dict[str, Any]:
    """The whole table, ready to be written."""
    import transformers

    rules = make_rules()
    classes = make_classes(rules)
    auto = make_auto(classes)
    version = transformers.__version__
    return {"transformers": version, "rules": rules, "classes": classes, "auto": auto, "heads": make_heads()}


def dump(table: dict[str, Any]) -> str:
    """JSON with one line an entry, so that a difference between two versions can be read."""
    sections = []
    for name, section in table.items():
        if isinstance(section, str):
            sections.append(f"{json.dumps(name)}:{json.dumps(section)}")
            continue
        lines = [f"{json.dumps(k)}:{json.dumps(v, separators=(',', ':'))}" for k, v in section.items()]
        sections.append(f"{json.dumps(name)}:{{\n" + ",\n".join(lines) + "\n}")
    return "{" + ",\n".join(sections) + "}\n"


if __name__ == "__main__":
    os.environ.setdefault("HF_HUB_OFFLINE", "1")
    TABLE.write_text(dump(make_table()))
    print(f"{TABLE}: {TABLE.stat().st_size:,} bytes")
