"""Groups stored tensors by the rule that applies to them. Names that differ only in their numbers share one look-up."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Generic, TypeVar

from ckptconv.errors import CkptconvError, Kind
from ckptconv.models.family import Family, Rule
from ckptconv.tensors.names import number_spans, numbered_parts

T = TypeVar("T")
# (index among the rule's trained names, the gathered numbers in the name)
Place = tuple[int, tuple[int, ...]]


@dataclass
class Group(Generic[T]):
    """The stored tensors that one application of a rule consumes."""

    rule: Rule
    holes: dict[str, str]
    found: dict[Place, tuple[str, T]] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class _Kind:
    """Names that differ only in numbers, and the rule for all of them.

    number: the index of the rule in the family.
    place: the index of the pattern in the rule.
    slots: each hole of the pattern with its text, or with the index of the number that fills it; None if that does not
        follow from the first name, so that every name has to be matched.
    """

    rule: Rule
    number: int
    place: int
    slots: tuple[tuple[str, str | int], ...] | None


def _kind_of(family: Family, name: str) -> _Kind:
    rule, number, place = _rule_for(family, name)
    spans = rule.trained.names[place].spans(name) or {}
    numbers = {span: index for index, span in enumerate(number_spans(name))}
    slots = tuple((hole, numbers.get(span, name[slice(*span)])) for hole, span in spans.items())
    is_plain = sorted(slot for _, slot in slots if isinstance(slot, int)) == list(range(len(numbers)))
    return _Kind(rule, number, place, slots if is_plain else None)


def collect(family: Family, tensors: Mapping[str, T]) -> list[Group[T]]:
    """Return the groups of stored tensors, each of one rule.

    Args:
        family: the table.
        tensors: canonical name -> tensor.

    Raises:
        CkptconvError: the table has no entry for a name, or two tensors are one piece of a Hub tensor.
    """
    groups: dict[tuple[object, ...], Group[T]] = {}
    by_kind: dict[str, _Kind] = {}
    for name, value in tensors.items():
        text, numbers = numbered_parts(name)
        kind = by_kind.get(text)
        if kind is None:
            kind = by_kind[text] = _kind_of(family, name)
        rule, number, place = kind.rule, kind.number, kind.place
        if kind.slots is not None:
            holes = {hole: numbers[slot] if type(slot) is int else str(slot) for hole, slot in kind.slots}
        else:
            rule, number, place = _rule_for(family, name)
            holes = rule.trained.names[place].match(name) or {}
        gathered = tuple([int(holes.pop(hole)) for hole in rule.gathered if hole in holes])
        key = (number, *holes.values()) if rule.hub.text else (number,)
        group = groups.get(key)
        if group is None:
            group = groups[key] = Group(rule, holes)
        if (place, gathered) in group.found and rule.hub.text:
            raise CkptconvError(f"two stored tensors are one piece of {rule.hub.text}", where=name)
        group.found[(place, gathered) if rule.hub.text else (len(group.found), ())] = (name, value)
    return list(groups.values())


def _rule_for(family: Family, name: str) -> tuple[Rule, int, int]:
    for number, rule in enumerate(family.rules):
        for place, pattern in enumerate(rule.trained.names):
            if pattern.match(name) is not None:
                return rule, number, place
    raise CkptconvError(
        f"the table of {family.name} has no entry for the stored tensor {name}",
        hint="it may be of a newer trainer, or the config of another model: see docs/adding-a-model.md",
        kind=Kind.UNSUPPORTED,
    )
