"""From builds of a class to its skeleton: patterns of names, what they depend on, and dims as sums of products of keys."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from itertools import combinations, combinations_with_replacement
from typing import Any

from skeletons.builds import Build

Key = tuple[int, tuple[int, ...]]  # a build, and the numbers of a name in it
Feature = tuple[str, tuple[str, ...]]  # ("v", path) a number, ("len", path), ("sum", path), ("last", path)
_FACTORS = (1, 2, 3, 4)
_LAYERS = (("layers",), ("layer",), ("h",), ("blocks",))
_LITERAL = 5  # more modules than this that differ are layers, even where no key was found that counts them
_MISSING = object()


@dataclass
class Tables:
    """What the classes of one package share. Each is a list without repeats."""

    features: dict[str, int] = field(default_factory=dict)
    exprs: dict[str, int] = field(default_factory=dict)


def at(config: Any, path: Iterable[str]) -> Any:
    """The value under a path, _MISSING where there is none."""
    for key in path:
        if not isinstance(config, dict) or key not in config:
            return _MISSING
        config = config[key]
    return config


def leaves(config: dict[str, Any], prefix: tuple[str, ...] = ()) -> Iterator[tuple[tuple[str, ...], Any]]:
    """Every key with its value, parts opened; labels stay as they are."""
    for key, value in config.items():
        if isinstance(value, dict) and key not in ("id2label", "label2id"):
            yield from leaves(value, (*prefix, key))
        else:
            yield (*prefix, key), value


def _imply(config: dict[str, Any]) -> None:
    """State head_dim where a config leaves it to the class: hidden_size // num_attention_heads, the custom of all."""
    hidden, heads = config.get("hidden_size"), config.get("num_attention_heads")
    if config.get("head_dim") is None and type(hidden) is int and type(heads) is int and heads:
        config["head_dim"] = hidden // heads
    for part in config.values():
        if isinstance(part, dict):
            _imply(part)


def numbers(config: dict[str, Any]) -> dict[Feature, int | float]:
    """Every number that a config states, and the lengths, sums and last elements of its lists."""
    found: dict[Feature, int | float] = {}
    for path, value in leaves(config):
        if type(value) in (int, float):
            found["v", path] = value
        elif isinstance(value, list | dict) and path[-1] != "label2id":
            found["len", path] = len(value)
            if isinstance(value, list) and value and all(type(v) is int for v in value):
                found["sum", path] = sum(value)
                found["last", path] = value[-1]
    return found


class Fit:
    """Finds what a value that differs between builds is, in terms of their configs."""

    def __init__(self, builds: list[Build]) -> None:
        self.builds = builds
        for build in builds:
            _imply(build.config)
        self.numbers = [numbers(build.config) for build in builds]
        everywhere = set.intersection(*(set(n) for n in self.numbers))
        self.varied = {f for f in everywhere if len({n[f] for n in self.numbers}) > 1}
        self.constants = {
            n for f in everywhere - self.varied if f[0] == "v" for n in [self.numbers[0][f]] if type(n) is int
        }
        self._cache: dict[tuple[tuple[int, int], ...], Any] = {}

    def number(self, values: dict[int, int]) -> list[Any] | None:
        """[[factor, features, divisors], ...] whose sum the value is in each build; None where none is certain."""
        key = tuple(sorted(values.items()))
        if key not in self._cache:
            self._cache[key] = self._number(values)
        return self._cache[key]

    def _number(self, values: dict[int, int]) -> list[Any] | None:
        if len(set(values.values())) < 2:
            return None
        base = values.get(0)
        moved = [b for b, value in values.items() if value != base]
        relevant = [f for f in self.varied if any(self.numbers[b][f] != self.numbers[0][f] for b in moved)]
        turned = [b for b in values if any(self.numbers[b][f] != self.numbers[0][f] for f in relevant)]
        relevant = [  # what makes up for another's change as well: heads, where head_dim is hidden_size // heads
            f for f in self.varied if any(self.numbers[b][f] != self.numbers[0][f] for b in turned)
        ]
        relevant.sort(key=lambda f: (f[0] != "v", len(f[1]), f))
        relevant = relevant[:14]
        rows = {f: [self.numbers[b][f] for b in values] for f in relevant}
        wanted = list(values.values())

        def fits(terms: list[tuple[int, tuple[Feature, ...], tuple[Feature, ...]]], offset: int = 0) -> bool:
            for i, value in enumerate(wanted):
                total: float = offset
                for factor, tops, bottoms in terms:
                    part: float = factor
                    for f in tops:
                        part *= rows[f][i]
                    for f in bottoms:
                        part = part // rows[f][i] if rows[f][i] else -1
                    total += part
                if int(total) != value:
                    return False
            return True

        def done(terms: Any, offset: int = 0) -> list[Any]:
            found = [[a, [list(f) for f in tops], [list(f) for f in bottoms]] for a, tops, bottoms in terms]
            return found + ([[offset, [], []]] if offset else [])

        good = [a for a in _FACTORS if a == 1 or a not in self.constants]
        for f in relevant:
            for a in good:
                offset = int(wanted[0] - a * rows[f][0])
                certain = offset == 0 or (abs(offset) <= 16 and abs(offset) not in self.constants)
                if certain and fits([(a, (f,), ())], offset):
                    return done([(a, (f,), ())], offset)
        for f, g in combinations_with_replacement(relevant, 2):
            for a in good:
                if fits([(a, (f, g), ())]):
                    return done([(a, (f, g), ())])
                for top, bottom in ((f, g), (g, f)):
                    if f != g and fits([(a, (top,), (bottom,))]):
                        return done([(a, (top,), (bottom,))])
                for b in good:
                    if f != g and fits([(a, (f,), ()), (b, (g,), ())]):
                        return done([(a, (f,), ()), (b, (g,), ())])
        few = relevant[:9]
        for f, g, h in combinations(few, 3):
            for x, y, z in ((f, g, h), (g, f, h), (h, f, g)):
                tries = [
                    [(1, (x, y), ()), (1, (x, z), ())],
                    [(1, (x, y), ()), (2, (x, z), ())],
                    [(2, (x, y), ()), (1, (x, z), ())],
                    [(1, (x,), ()), (1, (y, z), ())],
                    [(1, (x,), ()), (2, (y, z), ())],
                    [(2, (x,), ()), (1, (y, z), ())],
                    [(1, (y, z), (x,))],
                    [(2, (y, z), (x,))],
                    [(1, (x, y, z), ())],
                ]
                for terms in tries:
                    if fits(terms):  # type: ignore[arg-type]
                        return done(terms)
        return None

    def length(self, sizes: dict[int, set[int]]) -> list[Any] | None:
        """The one list that has as many elements as there are layers, where their number never differed."""
        lists = [
            p for p, v in leaves(self.builds[0].config) if isinstance(v, list) and v and isinstance(v[0], str)
        ]
        found = [
            path
            for path in lists
            if all({len(at(self.builds[b].config, path) or ())} == size for b, size in sizes.items())
        ]
        return [[1, [["len", list(found[0])]], []]] if len(found) == 1 else None

    def switch(self, present: dict[int, bool]) -> list[Any] | None:
        """["if", path, values...]: present just where the key has one of the values ("" for true ones); None."""
        paths = [p for p, _ in leaves(self.builds[0].config)]
        for path in sorted(paths, key=lambda p: (len(p), p)):
            values = {b: at(self.builds[b].config, path) for b in present}
            if all(bool(v) is present[b] for b, v in values.items() if v is not _MISSING) and (
                _MISSING not in values.values()
            ):
                kinds = {type(v) for v in values.values()}
                if kinds <= {bool, int, type(None)} and len({bool(v) for v in values.values()}) > 1:
                    return ["if", list(path)]
        return None

    def by_bound(self, present: dict[Key, bool]) -> list[Any] | None:
        """["from", path, present] where the layers from a number of the config on decide, such as first_k_dense_replace."""
        if not all(index for _, index in present):
            return None
        last = {build for build, _ in present}
        found = []
        for feature in self.varied:
            bounds = {build: self.numbers[build][feature] for build in last}
            if feature[0] != "v" or any(type(bound) is not int for bound in bounds.values()):
                continue
            answers = {(index[-1] >= bounds[build]) is there for (build, index), there in present.items()}
            if len(answers) == 1 and len(set(bounds.values())) > 1:
                found.append(["from", list(feature[1]), answers.pop()])
        return found[0] if len(found) == 1 else None

    def by_list(self, present: dict[Key, bool]) -> list[Any] | None:
        """["list", path, {value: present}] where a list with an element per layer decides, ["in", path, present] where a
        list of layers does; None."""
        last: dict[int, int] = defaultdict(int)
        for build, index in present:
            last[build] = max(last[build], index[-1] + 1 if index else 0)
        for path in [p for p, v in leaves(self.builds[0].config) if isinstance(v, list) and v]:
            stated = {build: at(self.builds[build].config, path) for build in last}
            if not all(isinstance(v, list) for v in stated.values()) or not all(i for _, i in present):
                continue
            told: dict[str, bool] = {}
            if (
                all(len(stated[build]) == count for build, count in last.items())
                and all(
                    told.setdefault(str(stated[build][index[-1]]), there) is there
                    for (build, index), there in present.items()
                )
                and len(set(told.values())) > 1
            ):
                return ["list", list(path), told]
            inside = {(index[-1] in stated[build]) is there for (build, index), there in present.items()}
            if len(inside) == 1:
                return ["in", list(path), inside.pop()]
        return None


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
    digits = {segment for segment in groups if segment.isdigit()}
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
            digits = set()
    for segment in groups:
        if segment not in digits:
            _explore((*prefix, segment), [(b, i, rest[1:]) for b, i, rest in groups[segment]], found)


def skeleton(
    builds: list[Build], optional: set[str], ignored: list[str], prefix: str, defaults: dict[str, Any]
) -> dict[str, Any]:
    """One class as plain data, with its keys' defaults: see ckptconv/models/skeleton.py for the fields."""
    fit = Fit(builds)
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
        atoms: dict[frozenset[Key], list[str]] = defaultdict(list)
        for pattern, keys in members.items():
            atoms[frozenset(keys)].append(pattern)
        free: list[tuple[int, frozenset[Key]]] = []
        for keys, patterns in atoms.items():
            when = _when(fit, keys, everywhere)
            if when == "sometimes" or (isinstance(when, list) and when[0] != "if"):
                free.append((len(groups), keys))
            listed = [[p, _kind(p, optional, tied), _dims(p, tree, shapes, fit)] for p in patterns]
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


def _dims(pattern: str, tree: Tree, shapes: list[dict[str, tuple[int, ...]]], fit: Fit) -> list[Any] | None:
    """An expression or None for each dim; None where nothing is known."""
    keys = tree.patterns.get(pattern)
    if not keys:
        return None
    by_build: dict[int, set[tuple[int, ...]]] = defaultdict(set)
    for build, index in keys:
        numbers_left = iter(index)
        name = ".".join(str(next(numbers_left)) if s == "*" else s for s in pattern.split("."))
        by_build[build].add(shapes[build][name])
    ranks = {len(shape) for found in by_build.values() for shape in found}
    if len(ranks) != 1:
        return None
    dims = []
    for dim in range(ranks.pop()):
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
        if isinstance(when, list):
            used.setdefault(tuple(when[1]))
        for _, _, dims in members:
            for each in dims or ():
                collect(each)
    found = []
    queue = list(used)
    while queue:
        path = queue.pop(0)
        values = [at(build.config, path) for build in fit.builds]
        follows = any(
            repr(v) != repr(values[0]) and build.changed not in (path, ("*",))
            for v, build in zip(values, fit.builds, strict=True)
        )
        derived = None
        if follows and all(type(v) is int for v in values):
            mine = {b: v for b, v in enumerate(values) if fit.builds[b].changed != path}
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
        found.append([list(path), None if follows or default is _MISSING else default, derived, int(follows)])
    return found
