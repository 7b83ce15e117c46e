"""Writes transformers_table.json from the installed transformers: `python -m tools.make_table`.

It reads `transformers.conversion_mapping`, lets transformers itself turn
every transform round (Hub -> module becomes module -> Hub) and writes the result as data; and it builds every model
class on the meta device, to note which sub-models lie in it and which key of the config describes them.
"""

from __future__ import annotations

import importlib
import json
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from ckptconv.models import installed

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

_COHERE_COMPASS = {"rope_parameters": {"full_attention": {"rope_type": "default", "rope_theta": 10000.0}}}
_DIFFUSION_GEMMA = {"num_experts": 4, "top_k_experts": 2, "moe_intermediate_size": 64}

# Configs whose defaults alone build no model.
_CONFIG_ARGUMENTS: dict[str, dict[str, Any]] = {
    "AutoformerConfig": {"prediction_length": 24},
    "AyaVisionConfig": {"vision_config": {"model_type": "siglip_vision_model", "num_attention_heads": 12}},
    "BeitConfig": {"out_indices": [3, 5, 7, 11]},
    "BridgeTowerConfig": {"contrastive_hidden_size": 512, "logit_scale_init_value": 2.65},
    "ChameleonConfig": {"vocabulary_map": {"<image>": 8711}},
    "CohereCompassConfig": {"text_config": _COHERE_COMPASS},
    "CohereCompassTextConfig": _COHERE_COMPASS,
    "DbrxConfig": {"attn_config": {"rope_theta": 10000.0}},
    "DeepseekOcr2Config": {"text_config": {"mlp_layer_types": ["dense", "sparse"], "num_hidden_layers": 2}},
    "DeepseekOcr2TextConfig": {"mlp_layer_types": ["dense", "sparse"], "num_hidden_layers": 2},
    "DiffusionGemmaConfig": {"text_config": _DIFFUSION_GEMMA},
    "DiffusionGemmaTextConfig": _DIFFUSION_GEMMA,
    "Dots1Config": {"n_routed_experts": 8, "n_shared_experts": 1},
    "Emu3Config": {"vocabulary_map": {"<image>": 1, "<|extra_200|>": 2}},
    "EsmConfig": {"vocab_size": 33},
    "Gemma4AssistantConfig": {
        "text_config": {
            "model_type": "gemma4_text",
            "hidden_size_per_layer_input": 0,
            "vocab_size_per_layer_input": 0,
        }
    },
    "Granite4VisionConfig": {
        "deepstack_layer_map": [[0, 0]],
        "spatial_target_layers": [0],
        "downsample_rate": "1/2",
    },
    "HunYuanDenseV1Config": {"head_dim": 128},
    "HunYuanMoEV1Config": {"head_dim": 128},
    "HunYuanVLConfig": {"text_config": {"head_dim": 128}},
    "HunYuanVLTextConfig": {"head_dim": 128},
    "InformerConfig": {"prediction_length": 24},
    "Lfm2MoeConfig": {
        "layer_types": ["conv", "full_attention"],
        "num_hidden_layers": 2,
        "num_dense_layers": 1,
    },
    "MoonshineStreamingConfig": {"encoder_config": {"num_key_value_heads": 8}},
    "MinistralConfig": {"head_dim": 128},
    "NemotronConfig": {"num_key_value_heads": 8},
    "Qwen3OmniMoeConfig": {
        "talker_config": {"text_config": {"shared_expert_intermediate_size": 768}, "spatial_merge_size": 2}
    },
    "PerceptionLMConfig": {"vision_config": {"model_args": {"embed_dim": 1024, "depth": 24}}},
    "Qwen3OmniMoeTalkerTextConfig": {"shared_expert_intermediate_size": 768},
    "Qwen3OmniMoeTalkerConfig": {
        "text_config": {"shared_expert_intermediate_size": 768},
        "spatial_merge_size": 2,
    },
    "Qwen4ExpTextConfig": _QWEN4_EXP,
    "Qwen4ExpConfig": {"text_config": _QWEN4_EXP},
    "TimeSeriesTransformerConfig": {"prediction_length": 24},
}


def make_classes(entries: dict[str, Any]) -> dict[str, Any]:
    """Per model class with entries or tied weights in it: model type, base_model_prefix, sub-models.

    None: it could not be built.
    """
    built: dict[str, Any] = {}
    tying: set[str] = set()
    for cls in _model_classes():
        if isinstance(cls._tied_weights_keys, dict) and cls._tied_weights_keys:
            tying.add(cls.__name__)
        try:
            model = _on_meta(cls)
        except Exception:  # an optional library is missing, or the default config is not a model
            built[cls.__name__] = None
            continue
        installed.note_parts(model, built)
    useful: set[str] = {
        name
        for name, found in built.items()
        if found and ({name, found["type"]} & set(entries) or name in tying)
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
    return installed.on_meta(cls, cls.config_class(**_CONFIG_ARGUMENTS.get(cls.config_class.__name__, {})))


def make_auto(classes: dict[str, Any]) -> dict[str, dict[str, str]]:
    """Auto class -> model type -> model class, for the classes that have a place in the table."""
    return {
        auto: {
            kind: name
            for kind, names in sorted(mapping.items())
            for name in installed.names_of(names)[:1]
            if classes.get(name) is not None
        }
        for auto, mapping in installed.auto_maps().items()
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

    rules = installed.make_rules()
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
