"""Finds what a value that differs between the builds of a class is, in terms of their configs."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Iterator
from itertools import combinations, combinations_with_replacement
from typing import Any

from skeletons.builds import Build

Key = tuple[int, tuple[int, ...]]  # a build, and the numbers of a name in it
Feature = tuple[str, tuple[str, ...]]  # ("v", path) a number, ("len", path), ("sum", path), ("last", path)
MISSING = object()
_FACTORS = (1, 2, 3, 4)


def at(config: Any, path: Iterable[str]) -> Any:
    """The value under a path, MISSING where there is none."""
    for key in path:
        if not isinstance(config, dict) or key not in config:
            return MISSING
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
        varied = self.varied if 0 in values else self._varied_among(values)
        moved = [b for b, value in values.items() if value != values.get(self._first(b, values))]
        relevant = [f for f in varied if any(self._turns(b, f, values) for b in moved)]
        turned = [b for b in values if any(self._turns(b, f, values) for f in relevant)]
        relevant = [  # what makes up for another's change as well: heads, where head_dim is hidden_size // heads
            f for f in varied if any(self._turns(b, f, values) for b in turned)
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

    def _first(self, build: int, values: dict[int, int]) -> int:
        """The build of the config in which a build changes one key; the first of all where that has no such value."""
        stated = self.builds[build].stated
        first = next(b for b, other in enumerate(self.builds) if other.stated == stated)
        return first if first in values else 0

    def _turns(self, build: int, feature: Feature, values: dict[int, int]) -> bool:
        return self.numbers[build][feature] != self.numbers[self._first(build, values)].get(feature)

    def _varied_among(self, values: dict[int, int]) -> set[Feature]:
        """The features that differ between some builds, which may belong to a part that the first build has not."""
        there = set.intersection(*(set(self.numbers[build]) for build in values))
        return {f for f in there if len({self.numbers[build][f] for build in values}) > 1}

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
            if all(bool(v) is present[b] for b, v in values.items() if v is not MISSING) and (
                MISSING not in values.values()
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
