"""Facts about transformers' model classes, without importing it: tied weights, float32 weights, classes by task.

They are in facts.json, which tools/make_facts.py writes from the transformers version that the file names.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from functools import lru_cache
from pathlib import Path
from typing import Any

from ckptconv.models.nested import parts_of

_WHOLE = "^"


@lru_cache(maxsize=1)
def _facts() -> dict[str, Any]:
    data: dict[str, Any] = json.loads(Path(__file__).with_name("facts.json").read_text(encoding="utf-8"))
    return data


def tied_names(architecture: str) -> dict[str, str]:
    """Tied name -> the name that it repeats, in the class's own module: names, modules or regexes."""
    return dict(_class(architecture).get("tied", ()))


def layer_kinds(key: str) -> list[str]:
    """The kinds of layers that transformers accepts in `layer_types` or `mlp_layer_types`, under its names of today."""
    kinds: list[str] = _facts()["layer_kinds"][key]
    return kinds


def refuses_layer_kind(model_type: Any, key: str, kind: str) -> bool:
    """Whether transformers, the shipped facts' version and the installed one, has no such kind of layer.

    Args:
        model_type: that of the config which lists the kind; some types have kinds of their own.
        key: "layer_types" or "mlp_layer_types".
        kind: the kind.
    """
    if model_type not in _facts()["model_types"] or model_type in _facts()["layer_kinds"]["other"]:
        return False
    if kind_today(kind) in layer_kinds(key):
        return False
    from ckptconv.models import installed  # imports transformers if it has to

    return kind not in installed.layer_kinds(key, _facts()["transformers"])


def other_part(config: Mapping[str, Any]) -> tuple[str, str] | None:
    """The (key, model type) of a part that may be any model's and is not the class's default one, such as a backbone."""
    for key, usual in _facts()["parts"].get(str(config.get("model_type")), {}).items():
        part = config.get(key)
        kind = part.get("model_type") if isinstance(part, Mapping) else None
        if isinstance(kind, str) and kind != usual:
            return key, kind
    return None


def tied_by(config: Mapping[str, Any]) -> str:
    """The level of a config whose tie_word_embeddings ties the head of its class.

    Returns:
        "top" for the model's own config alone, "inside" for its language model's alone, "either" where one is enough, "each"
        where the language model's ties other weights, "none" where the head is never tied; "" for a class without another
        model inside, and for one that the facts do not have. tools/make_facts.py builds each class to learn it.
    """
    named = next(iter(named_architectures(config)), None) or default_architecture(dict(config))
    level: str = _facts()["tied_by"].get(named or "", "")
    return level


def kind_today(kind: Any) -> Any:
    """The name by which transformers calls a kind of layer today: "mamba" became "linear_attention"."""
    return _facts()["layer_kinds"]["former"].get(kind, kind) if isinstance(kind, str) else kind


def says_tied(config: dict[str, Any]) -> bool:
    """Whether the model's embeddings are tied: by the level that its class reads, or by default if the config omits it."""
    level = tied_by(config)
    stated = [part.get("tie_word_embeddings") for part in parts_of(config)]
    if level == "none":
        return False
    if level == "either" and True in stated:
        return True
    for value in (stated[1:] if level == "inside" else []) + stated:
        if isinstance(value, bool):
            return value
    return ties_by_default(str(config.get("model_type")))


def ties_by_default(kind: str) -> bool:
    """Whether the class of a model type ties its embeddings if the config does not say."""
    return kind in _facts()["tied_by_default"]


def keeps_fp32(config: dict[str, Any], target: str) -> tuple[str, ...]:
    """Parts of the names of tensors that transformers keeps in float32; `is_kept` compares a name with them.

    It keeps those in `_keep_in_fp32_modules_strict` always, those in `_keep_in_fp32_modules` if the model is in float16
    (transformers/modeling_utils.py), and those that the class builds in float32 whatever its dtype is
    (core_model_loading.py).

    Args:
        config: the parsed config.json.
        target: the dtype in which the model is served.
    """
    # A router's bias, by its names on the Hub and in Megatron; some classes do not list it.
    kept = ["e_score_correction_bias", "expert_bias"]
    for architecture in architectures(config):
        facts = _class(architecture)
        kept += facts.get("keep_fp32_strict", [])
        kept += [_WHOLE + end for end in facts.get("built_fp32", [])]
        if target == "float16":
            kept += facts.get("keep_fp32", [])
    if not knows(config):
        from ckptconv.models import installed  # imports transformers

        found = installed.mapping_of(config)
        kept += found.keep_fp32 if found else ()
    return tuple(dict.fromkeys(kept))


def is_kept(name: str, parts: Iterable[str]) -> bool:
    """True if a name has one of the parts, which ends where a word ends, as transformers searches for it.

    A part that begins with "^" is all that follows the name's last number.
    """
    for part in parts:
        if part.startswith(_WHOLE):
            if name.rpartition(".")[2].isdigit():
                continue
            parts_of_name = name.split(".")
            last = max((place for place, one in enumerate(parts_of_name) if one.isdigit()), default=-1)
            if ".".join(parts_of_name[last + 1 :]) == part[1:]:
                return True
            continue
        at = name.find(part)
        while at >= 0:
            end = at + len(part)
            if end == len(name) or not (part[-1].isalnum() and (name[end].isalnum() or name[end] == "_")):
                return True
            at = name.find(part, at + 1)
    return False


def knows(config: Mapping[str, Any]) -> bool:
    """True if the facts and the table of names cover a config's model, or if they need not: its repository has the code."""
    own_code = isinstance(config.get("auto_map"), dict)
    return own_code or not isinstance(config.get("model_type"), str) or in_transformers(config)


def in_transformers(config: Mapping[str, Any]) -> bool:
    """True if transformers itself has the model type or the class that a config names."""
    known = config.get("model_type") in _facts()["model_types"]
    return known or any(_class(name) for name in named_architectures(config))


def unknown_note(config: Mapping[str, Any]) -> str | None:
    """What the user must know of a model type that the shipped facts do not have; None for one that they have."""
    if knows(config):
        return None
    from ckptconv.models import installed  # imports transformers if it has to

    kind, known = config["model_type"], _facts()["transformers"]
    newer = f"the model type {kind} is newer than the table of names (transformers {known})"
    found = installed.mapping_of(dict(config))
    if found is not None:
        return f"{newer}: names and layouts are those of the installed transformers {found.version}"
    there = installed.installed_version()
    other = (
        f"the installed transformers {there} does not have it either"
        if there
        else "transformers is not installed"
    )
    return f"{newer} and {other}: names are written as they are stored"


def architecture_for(config: dict[str, Any], task: str) -> str | None:
    """The class for a task ("causal", "token", "image_text") of the config's model type; None if there is none."""
    classes: dict[str, str] = _facts()["tasks"].get(str(config.get("model_type")), {})
    return classes.get(task)


def default_architecture(config: dict[str, Any]) -> str | None:
    """The class that loads the config's model type if the config names no class; None if there is none."""
    classes: dict[str, str] = _facts()["tasks"].get(str(config.get("model_type")), {})
    return next((classes[task] for task in ("image_text", "causal", "multimodal") if task in classes), None)


def named_architectures(config: Mapping[str, Any]) -> list[str]:
    """The names in a config's `architectures`; values that are not strings are left out."""
    stated = config.get("architectures")
    return [name for name in stated if isinstance(name, str)] if isinstance(stated, list) else []


def _class(architecture: str) -> dict[str, Any]:
    facts: dict[str, Any] = _facts()["classes"].get(architecture, {})
    return facts


def architectures(config: dict[str, Any]) -> list[str]:
    """The classes that a config names, and the default one of its model type if the facts know none of them."""
    named = named_architectures(config)
    default = default_architecture(config)
    if not any(_class(name) for name in named) and default:
        named.append(default)
    return named
