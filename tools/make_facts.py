"""Writes facts.json from the installed transformers: `python -m tools.make_facts`.

What a conversion must know of a model class without importing transformers (3 s): which weights are tied, which stay
in float32, and which class serves which task for a model type.
"""

from __future__ import annotations

import importlib
import json
import pkgutil
import re
from pathlib import Path
from typing import Any

_TASKS = {
    "causal": "MODEL_FOR_CAUSAL_LM_MAPPING_NAMES",
    "token": "MODEL_FOR_TOKEN_CLASSIFICATION_MAPPING_NAMES",
    "sequence": "MODEL_FOR_SEQUENCE_CLASSIFICATION_MAPPING_NAMES",
    "image_text": "MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING_NAMES",
    "multimodal": "MODEL_FOR_MULTIMODAL_LM_MAPPING_NAMES",
}
_HEAD = re.compile(r"head|predictions\.decoder")


def generate() -> dict[str, Any]:
    """The facts of every model class of the installed transformers."""
    import transformers
    from transformers import PreTrainedModel
    from transformers.models.auto import modeling_auto
    from transformers.models.auto.configuration_auto import CONFIG_MAPPING_NAMES

    classes: dict[str, dict[str, Any]] = {}
    for name in sorted(_modeling_modules()):
        try:
            module = importlib.import_module(name)
        except Exception:  # an optional dependency of one model
            continue
        for value in vars(module).values():
            if isinstance(value, type) and issubclass(value, PreTrainedModel) and value.__module__ == name:
                facts = _facts(value)
                built = _built_in_float32(value, facts.get("keep_fp32_strict", []))
                if built:
                    facts["built_fp32"] = built
                if facts:
                    classes[value.__name__] = facts
    tasks: dict[str, dict[str, str]] = {}
    for task, attribute in _TASKS.items():
        for model_type, architecture in getattr(modeling_auto, attribute, {}).items():
            name = architecture if isinstance(architecture, str) else architecture[0]
            tasks.setdefault(model_type, {})[task] = name
    return {
        "transformers": transformers.__version__,
        "classes": classes,
        "tasks": dict(sorted(tasks.items())),
        "tied_by_default": _tied_by_default(),
        "tied_by": _tied_by(),
        "model_types": sorted(CONFIG_MAPPING_NAMES),
        "layer_kinds": _layer_kinds(),
        "parts": _any_parts(),
    }


def _layer_kinds() -> dict[str, Any]:
    """The kinds of layers that configs may list, the former names that transformers replaces, the types with other kinds."""
    from transformers import PreTrainedConfig, configuration_utils
    from transformers.models.auto.configuration_auto import CONFIG_MAPPING, CONFIG_MAPPING_NAMES

    from tools.make_table import _CONFIG_ARGUMENTS

    known = set(configuration_utils.ALLOWED_LAYER_TYPES)
    other = []
    for model_type in CONFIG_MAPPING_NAMES:
        try:
            config_class = CONFIG_MAPPING[model_type]
            config = config_class(**_CONFIG_ARGUMENTS.get(config_class.__name__, {})).to_dict()
        except Exception:  # a config that needs arguments: its kinds are not known
            other.append(model_type)
            continue
        listed = {kind for key in ("layer_types", "mlp_layer_types") for kind in config.get(key) or ()}
        usual = config_class.validate_layer_type is PreTrainedConfig.validate_layer_type
        if listed - known or not usual or "num_hidden_layers" not in config:
            other.append(model_type)
    return {
        "layer_types": list(configuration_utils.ALLOWED_ATTN_LAYER_TYPES),
        "mlp_layer_types": list(configuration_utils.ALLOWED_MLP_LAYER_TYPES),
        "former": dict(configuration_utils._LEGACY_LAYER_TYPE_REMAP),
        "other": sorted(other),
    }


def _built_in_float32(model: Any, strict: list[str]) -> list[str]:
    """Ends of the names of tensors that the class makes in float32 whatever its dtype is, besides `strict` ones.

    from_pretrained keeps the dtype that such a tensor was made in, and save_pretrained writes it.
    Source: transformers, core_model_loading.convert_and_load_state_dict_in_model.
    """
    import torch

    from tools.make_table import _CONFIG_ARGUMENTS

    if model.__name__.endswith("PreTrainedModel") or model.config_class is None:
        return []
    torch.set_default_dtype(torch.bfloat16)
    try:
        config = model.config_class(**_CONFIG_ARGUMENTS.get(model.config_class.__name__, {}))
        with torch.device("meta"):
            tensors = model._from_config(config, dtype=torch.bfloat16).state_dict()
    except Exception:  # the default config is not a model, or an optional library is missing
        return []
    finally:
        torch.set_default_dtype(torch.float32)
    kept = {_end(name) for name, tensor in tensors.items() if tensor.dtype == torch.float32}
    cast = {_end(name) for name, tensor in tensors.items() if tensor.dtype == torch.bfloat16}
    return sorted(end for end in kept - cast - {""} if not any(part in end for part in strict))


def _end(name: str) -> str:
    """A name from its last number on, which is the same in every layer."""
    parts = name.split(".")
    last = max((place for place, part in enumerate(parts) if part.isdigit()), default=-1)
    return ".".join(parts[last + 1 :])


def _tied_by_default() -> list[str]:
    """Model types whose config ties the head when it does not say; save_pretrained leaves defaults out."""
    from transformers.models.auto.configuration_auto import CONFIG_MAPPING, CONFIG_MAPPING_NAMES

    found = []
    for model_type in CONFIG_MAPPING_NAMES:
        try:
            config = CONFIG_MAPPING[model_type]()
        except Exception:  # a config that needs arguments, or an optional dependency
            continue
        if getattr(config, "tie_word_embeddings", False):
            found.append(model_type)
    return sorted(found)


def _tied_by() -> dict[str, str]:
    """Class with a language model inside -> the level of its config whose tie_word_embeddings ties its head.

    "top": the model alone; "inside": its text_config alone; "either": one of them is enough; "each": the top ties
    the head, and text_config other weights; "none": the head is never tied.
    """
    import torch
    import transformers
    from transformers.models.auto import modeling_auto

    from tools.make_table import _CONFIG_ARGUMENTS

    levels = {(True, False): "top", (False, True): "inside", (True, True): "either", (False, False): "none"}
    found = {}
    for task in ("image_text", "multimodal"):
        for name in getattr(modeling_auto, _TASKS[task]).values():
            try:
                cls = getattr(transformers, name)
                config = cls.config_class(**_CONFIG_ARGUMENTS.get(cls.config_class.__name__, {})).to_dict()
                tied = {}
                for outer, inner in ((True, False), (False, True), (False, False)):
                    config["tie_word_embeddings"] = outer
                    config["text_config"]["tie_word_embeddings"] = inner
                    with torch.device("meta"):
                        model = cls._from_config(cls.config_class.from_dict(config))
                    tied[outer, inner] = set(model.all_tied_weights_keys or ())
            except Exception:  # a class without a text_config, or whose default config is not a model
                continue
            names = set(model.state_dict())
            heads = {key for key in names if _HEAD.search(key)}
            level = levels[bool(heads & tied[True, False]), bool(heads & tied[False, True])]
            if level == "top" and tied[False, True] != tied[False, False]:
                level = "each"
            if heads:
                found[name] = level
    return dict(sorted(found.items()))


def _any_parts() -> dict[str, dict[str, str]]:
    """Model type -> each part of its config that may be any model's -> the model type that it is by default."""
    from transformers.models.auto.configuration_auto import CONFIG_MAPPING, CONFIG_MAPPING_NAMES

    from tools.make_table import _CONFIG_ARGUMENTS

    found: dict[str, dict[str, str]] = {}
    for model_type in CONFIG_MAPPING_NAMES:
        try:
            config_class = CONFIG_MAPPING[model_type]
            config = config_class(**_CONFIG_ARGUMENTS.get(config_class.__name__, {}))
        except Exception:  # a config that needs arguments, or an optional dependency
            continue
        for key, spec in getattr(config_class, "sub_configs_defaults", {}).items():
            if key == "text_config" or getattr(spec, "config_class", None).__name__ != "AutoConfig":
                continue
            kind = getattr(getattr(config, key, None), "model_type", None) or spec.model_type
            if kind:
                found.setdefault(model_type, {})[key] = kind
    return found


def _modeling_modules() -> list[str]:
    import transformers.models as models

    found = []
    for package in pkgutil.iter_modules(models.__path__):
        folder = Path(models.__path__[0]) / package.name
        found += [f"transformers.models.{package.name}.{p.stem}" for p in folder.glob("modeling_*.py")]
    return found


def _facts(model: Any) -> dict[str, Any]:
    tied = _plain(model._tied_weights_keys)
    facts = {
        "tied": [
            [name, tied[name] if isinstance(tied, dict) else ""] for name in tied
        ],  # the last of two is valid
        "keep_fp32": sorted(_plain(model._keep_in_fp32_modules)),
        "keep_fp32_strict": sorted(_plain(model._keep_in_fp32_modules_strict)),
    }
    return {key: value for key, value in facts.items() if value}


def _plain(value: Any) -> Any:
    """A class attribute's value; some classes make it a property of the instance, which says nothing here."""
    return value if isinstance(value, dict | list | tuple | set) else ()


def main() -> None:
    path = Path(__file__).parents[1] / "ckptconv/models/facts.json"
    path.write_text(json.dumps(generate(), indent=0, sort_keys=True) + "\n", encoding="utf-8")
    print(f"{path.name}: {path.stat().st_size:,} bytes")


if __name__ == "__main__":
    main()
