"""What other software would misread in a model folder: rules from readers.json, each with its version and its source."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

from ckptconv.models import facts, published
from ckptconv.models.config_keys import Both, for_both
from ckptconv.models.hub_names import Named, Renamed
from ckptconv.tensors.view import Shape, stored

# Keys of config.json without which a reader of transformers 4 finds the same value in another way.
_ASIDE = (
    "torch_dtype",
    "topk_method",
    "use_routing_bias",
    "rotary_dim",
    "n_ctx",
    "rotary_pct",
    "scoring_func",
    "head_dim",
)


@dataclass(frozen=True, slots=True)
class Misread:
    """What one reader would misread.

    Args:
        reader: its name and version.
        what: what it does, as a verb phrase.
        source: the project and file in which this was seen.
        silent: True if it says nothing, so that the model is another one; False if it stops with an error.
        by_merge: True if a merge of the folder writes one that the reader reads rightly.
        any_folder: True if the reader has no code for what the model needs, so that it misreads every folder of it.
    """

    reader: str
    what: str
    source: str
    silent: bool
    by_merge: bool = True
    any_folder: bool = False


@dataclass(frozen=True, slots=True)
class Folder:
    """What a reader sees of a model folder.

    Args:
        config: its config.json.
        shapes: the shape of each tensor by name.
        tokenizer: what transformers 4 cannot read in tokenizer_config.json.
        both: the config with the keys that readers of both generations need.
    """

    config: Mapping[str, Any]
    shapes: Mapping[str, Shape]
    tokenizer: tuple[str, ...]
    both: Both

    @property
    def architecture(self) -> str | None:
        """The class that config.json names."""
        named = facts.named_architectures(self.config)
        return named[0] if named else facts.default_architecture(dict(self.config))


def misreads(
    config: Mapping[str, Any], shapes: Mapping[str, Shape], tokenizer: tuple[str, ...] = ()
) -> list[Misread]:
    """What readers would misread in a folder with this config.json and these tensors.

    Args:
        config: the parsed config.json.
        shapes: the shape of each tensor by name, in elements.
        tokenizer: what transformers 4 cannot read in tokenizer_config.json; see `publish.tokenizer_config.misread`.
    """
    folder = Folder(config, shapes, tokenizer, for_both(config, tuple(shapes)))
    found = []
    for rule in _data()["rules"]:
        hit = _CHECKS[rule["check"]](folder, rule)
        if hit:
            for reader in rule["readers"]:
                what = rule["says"].format(found=hit)
                version = f" {rule['version']}" if reader.startswith("transformers") else ""
                name = f"{reader.split()[0]}{version}" if version else reader
                flags = (rule["silent"], rule.get("by_merge", True), rule.get("any_folder", False))
                found.append(Misread(name, what, rule["source"], *flags))
    return found


@cache
def _data() -> dict[str, Any]:
    data: dict[str, Any] = json.loads(Path(__file__).with_name("readers.json").read_text("utf-8"))
    return data


def _old_keys(folder: Folder, _: dict[str, Any]) -> str:
    return ", ".join(path for path in folder.both.added if path.rpartition(".")[2] not in _ASIDE)


def _overridden(folder: Folder, _: dict[str, Any]) -> str:
    return ", ".join(f"{old} {one} ({new} is {two})" for old, one, new, two in folder.both.overridden)


def _disputed(folder: Folder, _: dict[str, Any]) -> str:
    return ", ".join(f"{old} {one} ({new} is {two})" for old, one, new, two in folder.both.disputed)


def _text_tie(folder: Folder, _: dict[str, Any]) -> str:
    return ", ".join(path for path in folder.both.respelled if path.endswith("tie_word_embeddings"))


def _new_values(folder: Folder, _: dict[str, Any]) -> str:
    return ", ".join(path for path in folder.both.respelled if not path.endswith("tie_word_embeddings"))


def _prefix(folder: Folder, _: dict[str, Any]) -> str:
    lacking = published.lacks_prefix(folder.shapes, dict(folder.config))
    return f"{lacking[0]} and {len(lacking) - 1:,} more" if len(lacking) > 1 else "".join(lacking)


def _turned(folder: Folder, _: dict[str, Any]) -> str:
    tensors = {
        name: Named(stored("", 0, shape, "uint8"), shape, (name,))
        for name, shape in folder.shapes.items()
        if "experts" in name
    }
    turned = published.as_published(Renamed(tensors, []), dict(folder.config)).tensors
    return next(
        (name for name, named in turned.items() if named.shape != folder.shapes.get(name, named.shape)), ""
    )


def _tokenizer(folder: Folder, _: dict[str, Any]) -> str:
    return " and ".join(folder.tokenizer)


def _model_type(folder: Folder, rule: dict[str, Any]) -> str:
    kind = folder.config.get("model_type")
    known = _data()["model_types"][rule["readers"][0]]
    own_code = isinstance(folder.config.get("auto_map"), dict)
    return str(kind) if isinstance(kind, str) and kind not in known and not own_code else ""


def _missing_key(folder: Folder, rule: dict[str, Any]) -> str:
    if folder.architecture not in rule["architectures"] or folder.config.get(rule["key"]) is not None:
        return ""
    end = rule.get("if_tensor", "")
    return str(rule["key"]) if not end or any(name.endswith(end) for name in folder.shapes) else ""


def _soft_cap(folder: Folder, rule: dict[str, Any]) -> str:
    key = "attn_logit_softcapping"
    cap = folder.config.get(key, 50.0)  # the default of the classes
    return f"{key} {cap}" if folder.architecture in rule["architectures"] and cap is not None else ""


def _scaled(folder: Folder, rule: dict[str, Any]) -> str:
    if folder.architecture not in rule["architectures"]:
        return ""
    for rope in _ropes(folder.config):
        kind = rope.get("rope_type", rope.get("type"))
        base = rope.get("rope_theta", folder.config.get("rope_theta"))
        if kind in rule["kinds"] and ("base" not in rule or base not in (None, rule["base"])):
            return str(kind)
    return ""


def _unscaled(folder: Folder, rule: dict[str, Any]) -> str:
    kinds = {rope.get("rope_type", rope.get("type")) for rope in _ropes(folder.config)}
    return "default" if folder.architecture in rule["architectures"] and kinds <= {None, "default"} else ""


def _base(folder: Folder, rule: dict[str, Any]) -> str:
    """The rotary base, where it is not the one that the reader takes."""
    if folder.architecture not in rule["architectures"]:
        return ""
    bases = [_text(folder.config).get(key) for key in ("rope_theta", "rotary_emb_base")]
    bases += [rope.get("rope_theta") for rope in _ropes(folder.config)]
    return next(
        (f"{base:g}" for base in bases if isinstance(base, (int, float)) and base != rule["base"]), ""
    )


def _fixed(folder: Folder, rule: dict[str, Any]) -> str:
    """A value of config.json that is not as the reader's code has it."""
    fixed = rule["fixed"].get(folder.architecture)
    if fixed is None:
        return ""
    value = _text(folder.config).get(rule["key"], rule["default"])
    return f"{rule['key']} {json.dumps(value)}" if isinstance(value, (bool, int)) and value != fixed else ""


def _halved_window(folder: Folder, _: dict[str, Any]) -> str:
    """The window that is read of one that was halved when it was saved.

    The classes replace a window by half of it and one. What transformers 5.24 writes back is even, and so is the published
    number; an odd one is a window that was replaced before it was saved.
    """
    text = _text(folder.config)
    window = text.get("sliding_window")
    if str(text.get("model_type")) not in ("gemma3_text", "gemma3") or not isinstance(window, int):
        return ""
    is_halved = text.get("use_bidirectional_attention") is True and window > 1 and window % 2 == 1
    return f"{window // 2 + 1} of sliding_window {window}" if is_halved else ""


def _yarn_range(folder: Folder, _: dict[str, Any]) -> str:
    found = any(rope.get("truncate") is False for rope in _ropes(folder.config) if "yarn" in rope.values())
    return "truncate false" if found else ""


def _layer_pattern(folder: Folder, rule: dict[str, Any]) -> str:
    every = rule["pattern"].get(folder.architecture)
    types = _text(folder.config).get("layer_types")
    if not every or not isinstance(types, list):
        return ""
    assumed = ["sliding_attention" if n % every else "full_attention" for n in range(1, len(types) + 1)]
    return {2: "second", 4: "fourth", 6: "sixth"}[every] if types != assumed else ""


def _text(config: Mapping[str, Any]) -> Mapping[str, Any]:
    """The config of the language model."""
    inner = config.get("text_config")
    return inner if isinstance(inner, dict) else config


def _ropes(config: Mapping[str, Any]) -> list[Mapping[str, Any]]:
    """The language model's rotary settings: one, or one for each kind of layer."""
    text = _text(config)
    stated = text.get("rope_parameters") or text.get("rope_scaling")
    if not isinstance(stated, dict):
        return []
    inner = [value for value in stated.values() if isinstance(value, dict)]
    return list(inner) or [stated]


def _missing_tensor(folder: Folder, rule: dict[str, Any]) -> str:
    there = any(name.startswith(rule["tensor"]) for name in folder.shapes)
    return str(rule["tensor"]) if folder.architecture in rule["architectures"] and not there else ""


_CHECKS: dict[str, Callable[[Folder, dict[str, Any]], str]] = {
    "old_keys": _old_keys,
    "disputed": _disputed,
    "overridden": _overridden,
    "text_tie": _text_tie,
    "new_values": _new_values,
    "prefix": _prefix,
    "turned": _turned,
    "tokenizer": _tokenizer,
    "model_type": _model_type,
    "missing_key": _missing_key,
    "missing_tensor": _missing_tensor,
    "soft_cap": _soft_cap,
    "scaled": _scaled,
    "unscaled": _unscaled,
    "base": _base,
    "fixed": _fixed,
    "halved_window": _halved_window,
    "yarn_range": _yarn_range,
    "layer_pattern": _layer_pattern,
}
