"""Whether config.json contradicts itself: one fact stated twice, sizes that exclude each other, a class of another type."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from ckptconv.errors import Kind
from ckptconv.models import facts, mtp
from ckptconv.models.nested import KEYS, text_of
from ckptconv.models.skeleton import Skeleton, package_of
from ckptconv.models.values import Values
from ckptconv.plan.misfit import NotTheModel

_Path = tuple[str, ...]
_EXPERTS = ("num_experts", "num_local_experts", "n_routed_experts")
_PER_TOKEN = (
    "num_experts_per_tok",
    "num_experts_per_token",
    "experts_per_token",
    "top_k_experts",
)
# Sizes of a language model that older configs have at the top level. transformers reads the nested ones where there are any.
_SIZES = (
    "hidden_size", "intermediate_size", "num_hidden_layers", "num_attention_heads", "num_key_value_heads",
    "num_experts", "num_local_experts", "vocab_size",
)  # fmt: skip
_PADDED = 512  # rows; PaliGemma, LLaVA and Ovis 2 state the tokens at the top level, and the embedding's rows inside


def require_consistent(skeleton: Skeleton, config: Mapping[str, Any], where: Path, notes: list[str]) -> None:
    """Raise CkptconvError where config.json states a number that decides the tensors twice, with two values.

    The same holds for a class that the model type does not have, and for more experts per token than there are.

    Args:
        skeleton: the class that the config names.
        config: the config.json that will be written.
        where: the checkpoint's folder, for messages.
        notes: receives the sizes at the top level that differ from those of the language model's own config.
    """
    values = Values(skeleton, config)
    _require_kin(skeleton, config, where)
    text = text_of(config)
    experts, chosen = (_first(text, keys) for keys in (_EXPERTS, _PER_TOKEN))
    if experts and chosen and chosen[1] > experts[1] > 0:
        raise _refusal(where, (), dict((chosen, experts)))
    for path in skeleton.aliases:
        stated = values.stated(path)
        if len({repr(value) for value in stated.values()}) > 1:
            raise _refusal(where, path, stated)
    for path, layers in _lists(skeleton).items():
        listed, count = values.of(path, stated=True), values.number(layers)
        if isinstance(listed, list) and count is not None:
            more = len(listed) - count
            if more and more != mtp.stated(dict(config)):
                raise _refusal(
                    where, path, {path[-1]: f"for {len(listed)} layers", values.text(layers): count}
                )
    types, count = text.get("layer_types"), text.get("num_hidden_layers")
    if (
        isinstance(types, list)
        and type(count) is int
        and len(types) - count not in (0, mtp.stated(dict(config)))
    ):
        raise _refusal(where, (), {"layer_types": f"for {len(types)} layers", "num_hidden_layers": count})
    notes += _at_two_levels(skeleton, config)


def _require_kin(skeleton: Skeleton, config: Mapping[str, Any], where: Path) -> None:
    """Refuse a class that is another model type's: transformers goes by the type, other readers by the class."""
    kind = config.get("model_type")
    usual = facts.default_architecture({"model_type": kind})
    own, named = package_of(usual), package_of(skeleton.architecture)
    its_own = named == str(kind).replace(
        "-", "_"
    )  # ShieldGemma 2 has a class, and Gemma 3's is the usual one
    if own and named and own != named and not its_own and not config.get("auto_map"):
        raise NotTheModel(
            "config.json contradicts itself",
            where=where,
            found=f"model_type {kind} and architectures {skeleton.architecture}",
            wanted=f"a class of that type, such as {usual}: readers differ in the one that they take",
            hint="correct config.json, or name the right model's folder with --config DIR",
            kind=Kind.DOES_NOT_FIT,
        )


def _first(config: Mapping[str, Any], keys: tuple[str, ...]) -> tuple[str, int] | None:
    """The first of these keys that the config states as a number, with its value."""
    return next(((key, config[key]) for key in keys if type(config.get(key)) is int), None)


def _refusal(where: Path, path: _Path, stated: Mapping[str, Any]) -> NotTheModel:
    part = ".".join(path[:-1])
    return NotTheModel(
        "config.json contradicts itself" + (f" in {part}" if part else ""),
        where=where,
        found=" and ".join(f"{name} {value}" for name, value in stated.items()),
        wanted="one value, since readers differ in the one that they take",
        hint="correct config.json, or name the right model's folder with --config DIR",
        kind=Kind.DOES_NOT_FIT,
    )


def _lists(skeleton: Skeleton) -> dict[_Path, Any]:
    """The path of each list with an element per layer -> the expression that counts the layers."""
    return {
        tuple(group.when[1]): count
        for group in skeleton.groups
        if group.when[0] == "list" and (count := skeleton.stacks[group.stack].number) is not None
    }


def _at_two_levels(skeleton: Skeleton, config: Mapping[str, Any]) -> list[str]:
    """A note on each size that the top level and the language model's own config state differently."""
    found = []
    for part in KEYS:
        inner = config.get(part)
        if not isinstance(inner, dict):
            continue
        for key in _SIZES:
            outer, own = config.get(key), inner.get(key)
            if key == "vocab_size" and type(outer) is int and type(own) is int and 0 < own - outer <= _PADDED:
                continue
            if type(outer) is int and type(own) is int and outer != own and (key,) not in skeleton.keys:
                found.append(
                    f"config.json states {key} {outer} and {part}.{key} {own}: transformers 5 reads the second"
                )
    return found
