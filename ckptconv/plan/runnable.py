"""Whether config.json describes a model that transformers can build and run: its layers, heads, windows, its tied head."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping
from pathlib import Path
from typing import Any

from ckptconv.errors import Kind
from ckptconv.models import facts
from ckptconv.models.nested import text_of
from ckptconv.models.skeleton import Skeleton
from ckptconv.models.values import Values
from ckptconv.plan.misfit import NotTheModel

_KINDS = ("layer_types", "mlp_layer_types")
_SLIDING = "sliding_attention"
_CORRECT = "correct config.json, or name the right model's folder with --config DIR"


def require_runnable(
    skeleton: Skeleton, config: Mapping[str, Any], names: Collection[str], where: Path, notes: list[str]
) -> None:
    """Raise CkptconvError where transformers cannot build or run the model that config.json describes.

    Args:
        skeleton: the class that the config names.
        config: the config.json that will be written.
        names: the names of the planned tensors.
        where: the checkpoint's folder, for messages.
        notes: receives what only some readers misread.
    """
    for part in _parts(config):
        _require_known_kinds(part, where)
    values = Values(skeleton, config)
    for path in skeleton.keys:
        if path[-1] == "num_key_value_heads":
            _require_whole_groups(values, path, where)
    _require_one_tie(skeleton, config, names, where)
    notes += _windows(text_of(config))


def _parts(config: Mapping[str, Any]) -> Iterator[Mapping[str, Any]]:
    """Yield a config and the configs inside it."""
    yield config
    for part in config.values():
        if isinstance(part, Mapping):
            yield from _parts(part)


def _require_known_kinds(part: Mapping[str, Any], where: Path) -> None:
    """transformers refuses a kind of layer that it does not know, or takes it for another one."""
    for key in _KINDS:
        listed = part.get(key)
        for kind in listed if isinstance(listed, list) else ():
            if isinstance(kind, str) and facts.refuses_layer_kind(part.get("model_type"), key, kind):
                raise NotTheModel(
                    "config.json names a kind of layer that transformers does not have",
                    where=where,
                    found=f"{kind!r} in {key}",
                    wanted=f"one of {', '.join(facts.layer_kinds(key))}",
                    hint=_CORRECT,
                    kind=Kind.DOES_NOT_FIT,
                )


def _require_whole_groups(values: Values, path: tuple[str, ...], where: Path) -> None:
    """Each key head serves the same number of query heads."""
    key_heads, heads = (
        values.of((*path[:-1], key), stated=True) for key in (path[-1], "num_attention_heads")
    )
    if type(key_heads) is int and type(heads) is int and key_heads > 0 and heads % key_heads:
        raise _contradiction(
            where, f"num_attention_heads {heads} and num_key_value_heads {key_heads}", "a divisor"
        )


def _require_one_tie(
    skeleton: Skeleton, config: Mapping[str, Any], names: Collection[str], where: Path
) -> None:
    """A head that is not stored must be tied by the level of the config that the class reads."""
    outer = config.get("tie_word_embeddings")
    inner = text_of(config).get("tie_word_embeddings")
    if outer is not False or inner is not True or any("lm_head" in name for name in names):
        return
    if facts.tied_by(config) in ("top", "each"):
        raise _contradiction(
            where,
            "tie_word_embeddings false, true for the language model inside, and no head",
            f"true at the top level, which {skeleton.architecture} reads, or a stored head",
        )


def _windows(text: Mapping[str, Any]) -> list[str]:
    """A note on layers of sliding attention whose window is switched off."""
    kinds = text.get("layer_types")
    if not isinstance(kinds, list) or _SLIDING not in kinds:
        return []
    for key, off in (("use_sliding_window", False), ("sliding_window", None)):
        if key in text and text[key] is off:
            return [
                f"config.json lists {kinds.count(_SLIDING)} layers of {_SLIDING} and states {key} "
                f"{'null' if off is None else 'false'}: transformers has no window to give them"
            ]
    return []


def _contradiction(where: Path, found: str, wanted: str) -> NotTheModel:
    return NotTheModel(
        "config.json contradicts itself",
        where=where,
        found=found,
        wanted=wanted,
        hint=_CORRECT,
        kind=Kind.DOES_NOT_FIT,
    )
