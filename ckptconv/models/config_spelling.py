"""Values of config.json that transformers 5 writes in a form at which transformers 4 stops, in a form that both read."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from ckptconv.models import facts

Config = dict[str, Any]

# Values that transformers 5 renamed; it reads the old names too, and transformers 4 stops at the new ones.
_MAMBA = {"linear_attention": "mamba"}
_OLD_VALUES: dict[str, dict[str, dict[str, str]]] = {
    "granitemoehybrid": {"layer_types": _MAMBA | {"full_attention": "attention"}},
    "zamba": {"layers_block_type": _MAMBA},
    "zamba2": {"layers_block_type": _MAMBA},
}
# How transformers 5 writes a float that JSON has no word for; transformers 4 takes it for an object. Both read Infinity.
_FLOAT = "__float__"
# transformers 4 stops at a CSM whose tie_word_embeddings is true; transformers 5 writes it and does not read it, but
# tie_codebooks_embeddings (configuration_csm.py).
_REFUSES_TIES = "csm"
# What transformers 5 writes into each inner config where nothing else is stated (PreTrainedConfig).
_DEFAULTS: Config = {
    "_name_or_path": "", "architectures": None, "chunk_size_feed_forward": 0, "dtype": None, "is_encoder_decoder": False,
    "id2label": {"0": "LABEL_0", "1": "LABEL_1"}, "label2id": {"LABEL_0": 0, "LABEL_1": 1}, "model_type": "",
    "output_attentions": False, "output_hidden_states": False, "problem_type": None, "return_dict": True,
}  # fmt: skip
# Inner configs in which transformers 4 stops at each key that it does not know: configuration_dbrx.py (DbrxAttentionConfig,
# DbrxFFNConfig) and the dataclasses of configuration_esm.py.
_STRICT = {
    "dbrx": ("attn_config", "ffn_config"),
    "esm": ("esmfold_config", "esmfold_config.trunk", "esmfold_config.trunk.structure_module"),
}
# Both pass the key to SuperPoint's config, transformers 4 twice (configuration_lightglue.py).
_TWICE = ("lightglue", "keypoint_detector_config", "attn_implementation", "eager")


def respell(part: Config) -> Iterator[str]:
    """Spell values of one config in a way that both generations read, and yield their keys."""
    kind = str(part.get("model_type"))
    renamed = _OLD_VALUES.get(kind, {})
    for key, value in part.items():
        if not isinstance(value, list):
            continue
        old = [
            renamed.get(key, {}).get(item, item) if isinstance(item, str) else _number(item) for item in value
        ]
        if old != value:
            part[key] = old
            yield key
    if kind == _REFUSES_TIES and part.get("tie_word_embeddings") is True:
        part["tie_word_embeddings"] = False
        yield "tie_word_embeddings"
    text = part.get("text_config")
    if isinstance(text, dict):
        tied = _tied_inside(part)
        if tied is not None and text.get("tie_word_embeddings") is (not tied):
            text["tie_word_embeddings"] = tied
            yield "text_config.tie_word_embeddings"
    yield from _without_defaults(part, kind)


def _tied_inside(part: Config) -> bool | None:
    """What the text model's config has to state of tied heads; None where it may stay as it is.

    transformers 4 asks the text model alone (get_text_config in tie_weights), transformers 5 the level of the class.
    """
    level, outer = facts.tied_by(part), part.get("tie_word_embeddings")
    if level == "top" and isinstance(outer, bool):
        return outer
    if level == "either" and outer is True:
        return True
    return False if level == "none" else None


def _without_defaults(part: Config, kind: str) -> Iterator[str]:
    """Take the defaults out of inner configs that may not state them."""
    for path in _STRICT.get(kind, ()):
        inner: Any = part
        for key in path.split("."):
            inner = inner.get(key) if isinstance(inner, dict) else None
        if not isinstance(inner, dict):
            continue
        stated = [key for key, value in _DEFAULTS.items() if key in inner and inner[key] == value]
        # transformers 5 takes the width of DBRX's experts from d_model, whatever this key is (DbrxConfig.__post_init__).
        stated += ["hidden_size"] if path == "ffn_config" and "hidden_size" in inner else []
        for key in stated:
            del inner[key]
        if stated:
            yield path
    model, path, key, value = _TWICE
    inner = part.get(path)
    if kind == model and isinstance(inner, dict) and inner.get(key) == value:
        del inner[key]
        yield path


def _number(item: Any) -> Any:
    if isinstance(item, dict) and item.keys() == {_FLOAT} and isinstance(item[_FLOAT], str):
        try:
            return float(item[_FLOAT])
        except ValueError:
            return item
    return item
