"""The Hub's names and layouts for the tensors of a module of transformers.

In the module, transformers 5 fuses experts and uses other names than on the Hub. `to_hub` does what `save_pretrained`
does, by the table that tools/make_table.py wrote, as moves on views: nothing is read. Source for the order of the steps:
transformers/core_model_loading.py, revert_weight_conversion.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any, Generic, TypeVar

from ckptconv.errors import CkptconvError, Kind
from ckptconv.models.table import Config, TableRule, readable, rules_of, targets_of
from ckptconv.tensors.names import MODULE, without_wrappers
from ckptconv.tensors.view import Shape

T = TypeVar("T")  # a View, a numpy array or a torch tensor


@dataclass(frozen=True)
class Named(Generic[T]):
    """What a Hub tensor is made of.

    Args:
        value: its elements, in C order.
        shape: its shape, which may differ from that of `value`.
        sources: the trained names.
        added: a number that is added to each element.
        factor: a number by which each element is multiplied.
        summed: further parts, which are added to `value` element by element.
    """

    value: T
    shape: Shape
    sources: tuple[str, ...]
    added: float = 0.0
    summed: tuple[T, ...] = ()
    factor: float = 1.0


@dataclass(frozen=True)
class Renamed(Generic[T]):
    """The tensors under their Hub names.

    Args:
        tensors: Hub name -> tensor.
        rules: a short text for each rule that was applied.
        left_out: (trained name, value, reason) of what no Hub tensor holds, such as the padding of a vocabulary.
        copies: further Hub name -> the name in `tensors` that it repeats.
        notes: findings for the user.
    """

    tensors: dict[str, Named[T]]
    rules: list[str]
    left_out: list[tuple[str, T, str]] = field(default_factory=list)
    copies: dict[str, str] = field(default_factory=dict)
    notes: list[str] = field(default_factory=list)


@dataclass
class _Group(Generic[T]):
    """The trained tensors that one application of a rule consumes, by the pattern they matched."""

    rule: TableRule
    pieces: dict[str, tuple[str, T]] = field(default_factory=dict)


def strip_wrappers(tensors: Mapping[str, T]) -> dict[str, T]:
    """Remove the segments of wrappers from the names, and `module.` if every name begins with it.

    Raises:
        CkptconvError: two tensors get the same name.
    """
    names = [without_wrappers(name) for name in tensors]
    while names and all(name.startswith(f"{MODULE}.") for name in names):
        names = [name[len(MODULE) + 1 :] for name in names]
    found: dict[str, T] = {}
    for name, old in zip(names, tensors, strict=True):
        if name in found:
            raise CkptconvError(
                "two tensors have the same name once wrapper prefixes are removed",
                where=name,
                kind=Kind.DAMAGED,
            )
        found[name] = tensors[old]
    return found


def to_hub(tensors: Mapping[str, T], config: Config, *, prefix_changes: bool = False) -> Renamed[T]:
    """The tensors as `save_pretrained` of the config's class writes them. A name without a rule stays as it is.

    Args:
        tensors: module name -> tensor.
        config: the parsed config.json.
        prefix_changes: also add the prefixes that from_pretrained removes. transformers adds them only to a model that it
            loaded with them.

    Raises:
        CkptconvError: only some of a rule's tensors are there, two tensors get one name, or a conversion is not known.
    """
    rules = rules_of(config, tensors.keys(), prefix_changes=prefix_changes)
    converters = [rule for rule in rules if rule.ops is not None]
    renamings = [rule for rule in rules if rule.ops is None]
    groups, rest = _collect(tensors, converters)
    made: list[tuple[str, Named[T]]] = [(name, plain(tensors[name], name)) for name in rest]
    applied: dict[str, int] = {}
    for key, group in groups.items():
        outputs = _convert(key, group, config)
        text = f"{readable(group.rule.patterns)} -> {{}} x {readable(group.rule.targets)}"
        applied[text] = applied.get(text, 0) + 1
        made += outputs
    names, renamed = rename_all([name for name, _ in made], renamings)
    texts = [text.replace("{}", f"{count:,}", 1) for text, count in applied.items()]
    return Renamed(unique(names, [named for _, named in made]), texts + renamed)


def taken_either_way(names: Iterable[str], config: Config) -> dict[str, tuple[int, int]]:
    """Hub name -> two dims, for the tensors that transformers also loads with these dims swapped (it looks at the shape).

    Args:
        names: Hub names.
        config: the parsed config.json.
    """
    names = list(names)
    found = {}
    for rule in rules_of(config, names):
        for operation, arguments in rule.ops or ():
            if operation == "Transpose" and arguments.get("check_dims"):
                dims = (arguments["dim0"], arguments["dim1"])
                found.update({name: dims for name in names if rule.search(name)})
    return found


def _collect(tensors: Mapping[str, T], converters: list[TableRule]) -> tuple[dict[str, _Group[T]], list[str]]:
    """Sort the tensors by the converter that takes them; each name has at most one.

    If two converters have the same pattern, the last one's layout is used, as in transformers.

    Returns:
        The groups by the name that transformers gives them, and the names that no converter takes.
    """
    by_pattern = {pattern: rule for rule in converters for pattern in rule.patterns}
    groups: dict[str, _Group[T]] = {}
    rest: list[str] = []
    for name, value in tensors.items():
        for rule in converters:
            found = rule.search(name)
            if found:
                break
        else:
            rest.append(name)
            continue
        prefix, match, index = found
        pattern = rule.patterns[index]
        key = prefix + replaced(match, rule.targets[0])
        group = groups.setdefault(key, _Group(by_pattern[pattern]))
        if pattern in group.pieces:
            raise CkptconvError(
                f"two tensors are the same piece of {key}", where=name, found=group.pieces[pattern][0]
            )
        group.pieces[pattern] = (name, value)
    return groups, rest


def _convert(key: str, group: _Group[T], config: Config) -> list[tuple[str, Named[T]]]:
    """Apply a converter to one group of tensors; the names are those before renaming."""
    from ckptconv.models.operations import layouts_of
    from ckptconv.models.pieces import Piece
    from ckptconv.models.rules import to_hub_layout

    rule = group.rule
    missing = [pattern for pattern in rule.patterns if pattern not in group.pieces]
    if missing:
        raise CkptconvError(
            f"some pieces needed for {key} are missing",
            where=", ".join(name for name, _ in group.pieces.values()),
            wanted=readable(tuple(missing)),
            hint="the checkpoint holds some pieces of a fused tensor and not the others",
        )
    sources = [group.pieces[pattern] for pattern in rule.patterns]
    targets = targets_of(rule, config)
    layouts = layouts_of(rule, len(targets), config)
    try:
        pieces = to_hub_layout(layouts, [Piece.of(value) for _, value in sources])
    except CkptconvError as error:
        raise error.within(where=sources[0][0]) from error
    trained = tuple(name for name, _ in sources)
    names = expanded(key, targets, len(pieces))
    return [
        (name, Named(piece.value, piece.shape, (trained[i],) if len(trained) == len(pieces) else trained))
        for i, (name, piece) in enumerate(zip(names, pieces, strict=True))
    ]


def expanded(key: str, targets: tuple[str, ...], count: int) -> list[str]:
    """The names of the tensors that a converter makes.

    Args:
        key: the name of the group, which contains the first target.
        targets: the patterns of the names; each `*` is replaced by the number of a piece.
        count: the number of tensors.

    Returns:
        The key with each target in the place of the first; all names of one target come before those of the next.
    """
    each, left = divmod(count, len(targets))
    stars = [target for target in targets if "*" in target]
    if left or (each != 1 and len(stars) != len(targets)):
        raise CkptconvError(f"{count} tensors cannot be named after {len(targets)} patterns", where=key)
    names = [target.replace("*", str(i)) for target in targets for i in range(each)]
    full = key.replace("*.", "0.")
    anchor = next((name for name in names if name in full), None)
    if anchor is None:
        raise CkptconvError("no pattern is found in the name that it made", where=full)
    prefix, _, suffix = full.partition(anchor)
    return [prefix + name + suffix for name in names]


def rename_all(names: list[str], renamings: list[TableRule]) -> tuple[list[str], list[str]]:
    """Apply every renaming in turn.

    Returns:
        The new names, and a short text for each renaming that changed a name.
    """
    texts = []
    for rule in renamings:
        found = [rule.search(name) for name in names]
        if rule.kind == "group" and not any(hit and hit[2] == 0 for hit in found):
            continue  # the first of the group's patterns guards the others
        count = 0
        for place, hit in enumerate(found):
            if hit:
                prefix, match, index = hit
                target = _target(rule, match, index)
                if _has_it(match, target):
                    continue
                new = prefix + replaced(match, target)
                count += new != names[place]
                names[place] = new
        if count:
            texts.append(f"{readable(rule.patterns)} -> {readable(rule.targets)} ({count:,} names)")
    return names, texts


def _target(rule: TableRule, match: re.Match[str], index: int) -> str:
    """The text that a renaming inserts: its target with the groups of the match."""
    target = rule.targets[index if rule.kind == "group" else 0]
    if rule.kind == "offset":
        return target.replace(r"\1", str(int(match[1]) + rule.offset))
    return re.sub(r"\\(\d)", lambda hole: match[int(hole[1])], target)


def _has_it(match: re.Match[str], target: str) -> bool:
    """True if the name already has the target text where it matches: it is a Hub name already (transformers 4)."""
    begin = match.start() - target.find(match[0])
    return match[0] in target and begin >= 0 and match.string.startswith(target, begin)


def replaced(match: re.Match[str], target: str) -> str:
    """The name with the first occurrence of the matched text replaced."""
    if "\\1" in target and match.re.groups:
        target = target.replace(r"\1", match[1])
    return match.string.replace(match[0], target, 1)


def plain(value: T, name: str) -> Named[T]:
    """The record for a tensor that keeps its name and layout."""
    array: Any = value
    return Named(value, tuple(array.shape), (name,))


def unique(names: list[str], tensors: list[Named[T]]) -> dict[str, Named[T]]:
    """Name -> tensor.

    Raises:
        CkptconvError: two tensors have the same name.
    """
    found: dict[str, Named[T]] = {}
    for name, named in zip(names, tensors, strict=True):
        if name in found:
            raise CkptconvError(
                "two tensors get the same name on the Hub",
                where=name,
                found=" and ".join((*found[name].sources, *named.sources)),
            )
        found[name] = named
    return found
