"""From builds of a class to its skeleton: patterns of names, what they depend on, and dims as sums of products of keys."""

from __future__ import annotations

from collections import defaultdict
from dataclasses import dataclass, field
from itertools import combinations
from typing import Any

from ckptconv.models.values import paths_in
from skeletons.builds import Build
from skeletons.declared import Declared
from skeletons.fit import MISSING, Fit, Key, at

_LAYERS = (("layers",), ("layer",), ("h",), ("blocks",))
_LITERAL = 5  # more modules than this that differ are layers, even where no key was found that counts them


@dataclass
class Tree:
    """The patterns of one class, the stacks they are in, and where each is present."""

    patterns: dict[str, set[Key]] = field(default_factory=lambda: defaultdict(set))
    stacks: dict[str, dict[Key, set[int]]] = field(default_factory=dict)


def tree_of(names: list[list[str]]) -> Tree:
    """names: of each build."""
    found = Tree()
    items = [(b, (), name.split(".")) for b, each in enumerate(names) for name in each]
    _explore((), items, found)
    return found


def _explore(
    prefix: tuple[str, ...], items: list[tuple[int, tuple[int, ...], list[str]]], found: Tree
) -> None:
    groups: dict[str, list[tuple[int, tuple[int, ...], list[str]]]] = defaultdict(list)
    for build, index, rest in items:
        if rest:
            groups[rest[0]].append((build, index, rest))
        else:
            found.patterns[".".join(prefix)].add((build, index))
    digits = sorted(
        (segment for segment in groups if segment.isdigit()), key=int
    )  # a set has another order in each run
    if digits:
        sets: dict[Key, set[int]] = defaultdict(set)
        kinds: dict[tuple[Key, int], set[str]] = defaultdict(set)
        for segment in digits:
            for build, index, rest in groups[segment]:
                sets[build, index].add(int(segment))
                kinds[(build, index), int(segment)].add(".".join(rest[1:]))
        runs = all(s == set(range(len(s))) for s in sets.values())
        varies = len({frozenset(s) for s in sets.values()}) > 1
        alike = len({frozenset(k) for k in kinds.values()}) == 1 and len(digits) > 1
        if runs and (
            varies or alike or len(digits) > _LITERAL or (len(digits) > 1 and prefix[-1:] in _LAYERS)
        ):
            found.stacks[".".join(prefix)] = dict(sets)
            inner = [
                (build, (*index, int(rest[0])), rest[1:])
                for segment in digits
                for build, index, rest in groups[segment]
            ]
            _explore((*prefix, "*"), inner, found)
        elif varies:  # numbers with gaps that follow the config: any number
            found.stacks[".".join(prefix)] = {}
            inner = [
                (build, (*index, int(rest[0])), rest[1:])
                for segment in digits
                for build, index, rest in groups[segment]
            ]
            _explore((*prefix, "*"), inner, found)
        else:
            digits = []
    for segment in groups:
        if segment not in digits:
            _explore((*prefix, segment), [(b, i, rest[1:]) for b, i, rest in groups[segment]], found)


def skeleton(
    builds: list[Build],
    optional: set[str],
    ignored: list[str],
    prefix: str,
    defaults: dict[str, Any],
    package: str,
) -> dict[str, Any]:
    """One class as plain data, with its keys' defaults: see ckptconv/models/skeleton.py for the fields."""
    fit = Fit(builds)
    rules = Declared(builds, package)
    tree = tree_of([list(build.shapes) for build in builds])
    tied = set().union(*(build.tied for build in builds))
    optional |= {n for n in tied if all(n in build.tied for build in builds if n in build.shapes)}
    shapes = [build.shapes for build in builds]
    stacks, groups, slots = [], [], []
    contexts = ["", *tree.stacks]
    for number, context in enumerate(contexts):
        owner = f"{context}.*" if context else ""
        sets = tree.stacks.get(context, {})
        count, form = None, "gaps" if context and not sets else ""
        if sets:
            sizes: dict[int, set[int]] = defaultdict(set)
            for (build, _), found in sets.items():
                sizes[build].add(len(found))
            if all(len(s) == 1 for s in sizes.values()):
                count = fit.number({b: next(iter(s)) for b, s in sizes.items()}) or fit.length(sizes)
            else:
                form = "ragged"
        stacks.append([context, count, form])
        members = {p: keys for p, keys in tree.patterns.items() if _owner(f"{p}.") == owner}
        for inner, found in tree.stacks.items():
            if inner and _owner(inner) == owner:
                depth = inner.split(".").count("*")
                keys = set(found) or {
                    (b, i[:depth])
                    for p, ks in tree.patterns.items()
                    if p.startswith(f"{inner}.*")
                    for b, i in ks
                }
                members[f"{inner}.**"] = keys
        everywhere = set().union(*members.values()) if members else set()
        if not context:
            everywhere = {(b, ()) for b in range(len(builds))}
        atoms: dict[tuple[frozenset[Key], str], list[str]] = defaultdict(list)
        for pattern, keys in members.items():
            atoms[frozenset(keys), rules.rule_of(pattern)].append(pattern)
        free: list[tuple[int, frozenset[Key]]] = []
        for (keys, rule), patterns in atoms.items():
            when = rules.when(rule, keys, everywhere) if rule else _when(fit, keys, everywhere)
            if when == "sometimes" or (isinstance(when, list) and when[0] != "if" and not rule):
                free.append((len(groups), keys))
            listed = [[p, _kind(p, optional, tied), _dims(p, tree, shapes, fit, rules)] for p in patterns]
            groups.append([number, when, listed])
        slots += _slots(free, everywhere)
    record = {"prefix": prefix, "ignored": ignored, "stacks": stacks, "groups": groups, "slots": slots}
    record["keys"] = _keys(record, fit, defaults)
    return record


def _owner(pattern: str) -> str:
    head, star, _ = pattern.rpartition(".*.")
    return f"{head}.*" if star else ""


def _when(fit: Fit, keys: frozenset[Key], everywhere: set[Key]) -> Any:
    """ "always", ["if", path], ["list", path, values], ["in", path, present], ["from", path, present] or "sometimes"."""
    if keys == everywhere:
        return "always"
    by_build: dict[int, set[bool]] = defaultdict(set)
    for key in everywhere:
        by_build[key[0]].add(key in keys)
    if all(len(found) == 1 for found in by_build.values()):
        switch = fit.switch({b: next(iter(found)) for b, found in by_build.items()})
        if switch:
            return switch
    present = {key: key in keys for key in everywhere}
    return fit.by_list(present) or fit.by_bound(present) or "sometimes"


def _slots(free: list[tuple[int, frozenset[Key]]], everywhere: set[Key]) -> list[list[int]]:
    """Groups of which each instance has exactly one, in every build."""
    found: list[list[int]] = []
    for size in (2, 3, 4):
        for chosen in combinations(free[:12], size):
            if any(set(ids) <= {n for n, _ in chosen} for ids in found):
                continue
            if sum(len(keys) for _, keys in chosen) == len(everywhere) and (
                set().union(*(keys for _, keys in chosen)) == everywhere
            ):
                found.append([n for n, _ in chosen])
    return found


def _kind(pattern: str, optional: set[str], tied: set[str]) -> str:
    def covers(names: set[str]) -> bool:
        parts = pattern.split(".")
        if parts[-1] == "**":
            parts[-1] = "*"
            names = {".".join(name.split(".")[: len(parts)]) for name in names}
        for name in names:
            segments = name.split(".")
            if len(segments) == len(parts) and all(
                p == s or (p == "*" and s.isdigit()) for p, s in zip(parts, segments, strict=True)
            ):
                return True
        return False

    if covers(optional) or (pattern.endswith(".**") and covers(tied)):
        return "optional"
    return "tied" if covers(tied) else ""


def _dims(
    pattern: str, tree: Tree, shapes: list[dict[str, tuple[int, ...]]], fit: Fit, rules: Declared
) -> list[Any] | None:
    """An expression or None for each dim; None where nothing is known."""
    keys = tree.patterns.get(pattern)
    if not keys:
        return None
    by_build: dict[int, set[tuple[int, ...]]] = defaultdict(set)
    each: dict[Key, tuple[int, ...]] = {}
    for build, index in keys:
        numbers_left = iter(index)
        name = ".".join(str(next(numbers_left)) if s == "*" else s for s in pattern.split("."))
        each[build, index] = shapes[build][name]
        by_build[build].add(shapes[build][name])
    ranks = {len(shape) for found in by_build.values() for shape in found}
    if len(ranks) != 1:
        return None
    dims = []
    declared = rules.dims(pattern)
    for dim in range(ranks.pop()):
        if dim in declared:
            dims.append(
                rules.checked(pattern, declared[dim], {key: shape[dim] for key, shape in each.items()})
            )
            continue
        values = {b: {shape[dim] for shape in found} for b, found in by_build.items()}
        uniform = all(len(v) == 1 for v in values.values())
        dims.append(fit.number({b: next(iter(v)) for b, v in values.items()}) if uniform else None)
    return dims


def _keys(record: dict[str, Any], fit: Fit, defaults: dict[str, Any]) -> list[Any]:
    """[path, default, derived] of each key that the record uses. derived: an expression, or null.

    A key whose value follows other keys has no default: [path, null, expression], and the expression may be null.
    """
    used: dict[tuple[str, ...], None] = {}

    def collect(expression: Any) -> None:
        for _, tops, bottoms in expression or ():
            for _, path in (*tops, *bottoms):
                used.setdefault(tuple(path))

    for _, count, _ in record["stacks"]:
        collect(count)
    for _, when, members in record["groups"]:
        used |= dict.fromkeys(paths_in(when))
        for _, _, dims in members:
            for each in dims or ():
                used |= dict.fromkeys(paths_in(each))
    found = []
    queue = list(used)
    while queue:
        path = queue.pop(0)
        values = [at(build.config, path) for build in fit.builds]
        follows = any(
            repr(v) != repr(values[0]) and build.changed not in (path, ("*",)) and path not in build.stated
            for v, build in zip(values, fit.builds, strict=True)
        )
        derived = None
        if follows and all(type(v) is int for v in values):
            mine = {
                b: v
                for b, v in enumerate(values)
                if fit.builds[b].changed != path and path not in fit.builds[b].stated
            }
            before = fit.varied
            fit.varied = {f for f in before if f[1] != path}
            derived = fit._number(mine)
            fit.varied = before
            for _, tops, bottoms in derived or ():
                for _, other in (*tops, *bottoms):
                    if tuple(other) not in used:
                        used.setdefault(tuple(other))
                        queue.append(tuple(other))
        default = at(defaults, path)
        found.append([list(path), None if follows or default is MISSING else default, derived, int(follows)])
    return found
