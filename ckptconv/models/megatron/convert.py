"""Runs a family's table over a checkpoint's tensors, and back. One look-up a kind of name, whatever the depth."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any, TypeVar

from ckptconv.errors import CkptconvError
from ckptconv.models.facts import named_architectures
from ckptconv.models.hub_names import Named, Renamed
from ckptconv.models.megatron.family import Config, Family, Rule
from ckptconv.models.megatron.tables import FAMILIES
from ckptconv.models.rules import Piece, to_hub_layout, to_trained_layout
from ckptconv.view import narrow

T = TypeVar("T")
_NUMBER = re.compile(r"(?<=\.)\d+(?=\.)")
_HEAD, _SCORE = "output_layer.weight", "score.weight"


def family_of(config: Config) -> Family:
    """The table for a config's model type. Raises CkptconvError where there is none, and lists what is there."""
    model_type = str(config.get("model_type"))
    if model_type not in FAMILIES:
        raise CkptconvError(
            f"no table says how Megatron names the tensors of {model_type!r}",
            found=", ".join(named_architectures(config)) or None,
            wanted=", ".join(sorted(FAMILIES)),
            hint="a table is about 20 lines: see docs/adding-a-model.md; inspect works without one",
        )
    return FAMILIES[model_type]


def to_hub(tensors: Mapping[str, T], config: Config) -> Renamed[T]:
    """Megatron's tensors, by canonical name, as the Hub names and lays them out.

    Vocabulary padding is left out, with its reason. Raises CkptconvError for a name that no rule knows.
    """
    family = family_of(config)
    found: dict[str, Named[T]] = {}
    left_out: list[tuple[str, T, str]] = []
    counts: dict[Rule, int] = {}
    by_kind: dict[str, Rule] = {}
    for name, value in tensors.items():
        kind = _NUMBER.sub("0", name)
        if kind not in by_kind:
            by_kind[kind] = _rule_for(family, name)
        rule = by_kind[kind]
        counts[rule] = counts.get(rule, 0) + 1
        if name == _HEAD and _is_value_head(value, config):
            names, piece = [_SCORE], Piece.of(value)
            pieces = [piece]
        else:
            piece, padding = _cut_padding(name, Piece.of(value), rule, config)
            if padding is not None:
                left_out.append((name, padding, "vocabulary padding"))
            names, pieces = _apply(name, piece, rule, config)
        for hub, made in zip(names, pieces, strict=True):
            if hub in found:
                raise CkptconvError(
                    f"two stored tensors become {hub}", found=f"{name}, {found[hub].sources[0]}"
                )
            found[hub] = Named(made.value, made.shape, (name,))
    rules = [f"{rule.trained.text} -> {rule.hub.text} ({count:,})" for rule, count in counts.items()]
    return Renamed(found, [f"{family.name} in Megatron's names", *rules], left_out)


def to_trained(tensors: Mapping[str, T], config: Config) -> dict[str, T]:
    """The way back: the Hub's tensors under Megatron's canonical names (numpy arrays or torch tensors)."""
    family = family_of(config)
    groups: dict[str, tuple[Rule, dict[int, Piece[T]]]] = {}
    for name, value in tensors.items():
        rule, place, holes = _rule_back(family, name)
        trained = rule.trained.fill(holes)
        groups.setdefault(trained, (rule, {}))[1][place] = Piece.of(value)
    made = {}
    for trained, (rule, pieces) in groups.items():
        (piece,) = to_trained_layout(rule.layouts(config), [pieces[i] for i in range(len(pieces))])
        made[trained] = piece.plain
    return made


def _rule_for(family: Family, name: str) -> Rule:
    for rule in family.rules:
        if rule.trained.match(name) is not None:
            return rule
    raise CkptconvError(
        f"the table of {family.name} does not know the stored tensor {name}",
        hint="it may be of a newer Megatron, or the config of another model: see docs/adding-a-model.md",
    )


def _rule_back(family: Family, name: str) -> tuple[Rule, int, dict[str, str]]:
    for rule in family.rules:
        for place, pattern in enumerate(rule.hub.names):
            holes = pattern.match(name)
            if holes is not None:
                return rule, place, holes
    raise CkptconvError(f"the table of {family.name} does not know the Hub's tensor {name}")


def _apply(name: str, piece: Piece[T], rule: Rule, config: Config) -> tuple[list[str], list[Piece[T]]]:
    holes = rule.trained.match(name) or {}
    names = [pattern.fill(holes) for pattern in rule.hub.names]
    try:
        pieces = to_hub_layout(rule.layouts(config), [piece])
    except (CkptconvError, KeyError) as error:
        raise CkptconvError(
            f"{name} does not have the layout that the config gives it",
            found=f"shape {list(piece.shape)}; {error}",
            hint="name the right model's folder with --config DIR",
        ) from error
    return names, pieces


def _is_value_head(value: Any, config: Config) -> bool:
    """A critic's output layer has one row (or a few) where a language model has the vocabulary."""
    return int(value.shape[0]) < int(config.get("vocab_size") or 0)


def _cut_padding(name: str, piece: Piece[T], rule: Rule, config: Config) -> tuple[Piece[T], T | None]:
    """Rows beyond the config's vocabulary; a tensor with fewer rows than that is an error."""
    if not rule.vocab:
        return piece, None
    rows, vocab = piece.shape[0], int(config["vocab_size"])
    if rows < vocab:
        raise CkptconvError(
            f"{name} has fewer rows than the vocabulary",
            found=f"{rows:,}",
            wanted=f"vocab_size {vocab:,}",
            hint="name the right model's folder with --config DIR",
        )
    if rows == vocab:
        return piece, None
    return Piece.of(narrow(piece.value, 0, 0, vocab)), narrow(piece.value, 0, vocab, rows - vocab)
