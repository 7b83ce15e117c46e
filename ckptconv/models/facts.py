"""What is known of model classes without importing transformers: ties, float32 keepers, classes by task.

Read from facts.json, which `make_facts` writes from the transformers version named in it.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from functools import lru_cache
from pathlib import Path
from typing import Any

from ckptconv.models.nested import parts_of

_HEAD = "lm_head.weight"


@lru_cache(maxsize=1)
def _facts() -> dict[str, Any]:
    data: dict[str, Any] = json.loads(Path(__file__).with_name("facts.json").read_text(encoding="utf-8"))
    return data


def tied_pairs(config: dict[str, Any], names: Iterable[str]) -> list[tuple[str, str]]:
    """(tied name, the name it repeats) among the tensor names of a model, as its class states them."""
    import re

    present = list(names)
    stated: dict[str, str] = {}
    for architecture in _architectures(config):
        stated.update(_class(architecture).get("tied", {}))
    if not stated and _HEAD in present:
        stated = {_HEAD: next((n for n in present if n.endswith("embed_tokens.weight")), "")}
    pairs = []
    for pattern, source in stated.items():
        targets = [n for n in present if re.fullmatch(pattern, n)] if _is_pattern(pattern) else [pattern]
        source = source if source in present else _namesake(source, present)
        for target in targets:
            if target in present and source in present:
                pairs.append((target, source))
    return pairs


def _namesake(module_name: str, present: list[str]) -> str:
    """The one tensor with the same end: on the Hub, Qwen2.5-VL's embedding is not under its module's name."""
    end = "." + ".".join(module_name.split(".")[-2:])
    found = [name for name in present if name.endswith(end)]
    return found[0] if len(found) == 1 else module_name


def says_tied(config: dict[str, Any]) -> bool:
    """What the config says of tie_word_embeddings; configs leave a class's default out, so that is looked up."""
    for part in parts_of(config):
        if isinstance(part.get("tie_word_embeddings"), bool):
            return bool(part["tie_word_embeddings"])
    return config.get("model_type") in _facts()["tied_by_default"]


def keeps_fp32(config: dict[str, Any], target: str) -> tuple[str, ...]:
    """Name parts of the tensors that the model keeps in float32 when served in `target`.

    transformers keeps `_keep_in_fp32_modules_strict` in float32 always, `_keep_in_fp32_modules` when in float16.
    """
    kept = ["e_score_correction_bias"]  # a router's bias; some classes forget to say it
    for architecture in _architectures(config):
        facts = _class(architecture)
        kept += facts.get("keep_fp32_strict", [])
        if target == "float16":
            kept += facts.get("keep_fp32", [])
    return tuple(dict.fromkeys(kept))


def architecture_for(config: dict[str, Any], task: str) -> str | None:
    """The class that serves a task ("causal", "token", "image_text") for the config's model type."""
    classes: dict[str, str] = _facts()["tasks"].get(str(config.get("model_type")), {})
    return classes.get(task)


def default_architecture(config: dict[str, Any]) -> str | None:
    """The class to load a model type with when the config names none."""
    classes: dict[str, str] = _facts()["tasks"].get(str(config.get("model_type")), {})
    return next((classes[task] for task in ("image_text", "causal", "multimodal") if task in classes), None)


def named_architectures(config: Mapping[str, Any]) -> list[str]:
    """What a config's `architectures` names; anything else in it is no name."""
    stated = config.get("architectures")
    return [name for name in stated if isinstance(name, str)] if isinstance(stated, list) else []


def _class(architecture: str) -> dict[str, Any]:
    facts: dict[str, Any] = _facts()["classes"].get(architecture, {})
    return facts


def _architectures(config: dict[str, Any]) -> list[str]:
    named = named_architectures(config)
    default = default_architecture(config)
    if not any(_class(name) for name in named) and default:
        named.append(default)
    return named


def _is_pattern(text: str) -> bool:
    return any(mark in text for mark in "\\^$*+?([|")
