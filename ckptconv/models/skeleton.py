"""Which tensors a class of transformers has: name patterns, what their presence and their numbers depend on, and dims.

Read from skeletons.zip, which tools/make_skeletons.py writes from the transformers version named in it: it builds every
class on the meta device again and again, each time with one key of its config changed, and notes what follows which key.
One member per model package, so that one class is read without the others.
"""

from __future__ import annotations

import json
import zipfile
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from functools import cached_property, lru_cache
from pathlib import Path
from typing import Any

from ckptconv.models import facts

_DATA = Path(__file__).with_name("skeletons.zip")
_LISTED = "classes.json"
Numbers = tuple[int, ...]  # the numbers in a name, in order


@dataclass(frozen=True)
class Member:
    """A name pattern with `*` for each number.

    Args:
        pattern: Ends in `.**` where it stands for a whole stack.
        kind: "tied" where a tied model omits it, "optional" where transformers does not mind its absence, else "".
        dims: For each dim an expression over the config, or None where none is certain.
    """

    pattern: str
    kind: str
    dims: tuple[Any, ...]


@dataclass(frozen=True)
class Group:
    """Members that are always together.

    Args:
        stack: Index of the stack they are in.
        when: "always", "sometimes", ["if", key] or ["list", key, {value: present}] (a list with a value per layer) or
            ["in", key, present] (a list of layers).
    """

    stack: int
    when: Any
    members: tuple[Member, ...]


@dataclass(frozen=True)
class Stack:
    """Modules that are numbered from 0: layers, experts.

    Args:
        context: What is before the number; "" for the model itself.
        count: Expression for how many there are, None where it is not known.
        form: "gaps" where the numbers need not be consecutive, "ragged" where stacks of one model differ in length, else "".
    """

    context: str
    count: Any
    form: str


@dataclass(frozen=True)
class Skeleton:
    """One class.

    Args:
        architecture: Its name.
        prefix: transformers' base_model_prefix.
        ignored: Regular expressions of names that transformers ignores when it loads a folder.
        slots: Lists of groups of which each instance has one at least.
        keys: Path of each key in use -> (default, derived expression, whether it follows other keys).
        aliases: Other names of keys, by path.
    """

    architecture: str
    prefix: str
    ignored: tuple[str, ...]
    stacks: tuple[Stack, ...]
    groups: tuple[Group, ...]
    slots: tuple[tuple[int, ...], ...]
    keys: Mapping[tuple[str, ...], tuple[Any, Any, bool]]
    aliases: Mapping[tuple[str, ...], tuple[str, ...]]

    @cached_property
    def by_star(self) -> dict[str, list[tuple[Member, tuple[int | None, ...]]]]:
        """Every pattern with all its numbers as `*` -> (member, the numbers that are fixed; None where any may be)."""
        found: dict[str, list[tuple[Member, tuple[int | None, ...]]]] = {}
        for group in self.groups:
            for member in group.members:
                if member.pattern.endswith(".**"):
                    continue
                parts = member.pattern.split(".")
                fixed = tuple(None if p == "*" else int(p) for p in parts if p == "*" or p.isdigit())
                star = ".".join("*" if p.isdigit() else p for p in parts)
                found.setdefault(star, []).append((member, fixed))
        return found


def skeleton_of(config: Mapping[str, Any]) -> Skeleton | None:
    """The skeleton of the class that a config names, None where transformers' own classes do not include it."""
    named = facts.named_architectures(config)
    name = named[0] if named else facts.default_architecture(dict(config))
    return load(name) if name else None


@lru_cache(maxsize=4)
def load(architecture: str) -> Skeleton | None:
    """The skeleton of a class by its name."""
    try:
        with zipfile.ZipFile(_DATA) as archive:
            package = json.loads(archive.read(_LISTED))["classes"].get(architecture)
            if package is None:
                return None
            data = json.loads(archive.read(f"{package}.json"))
    except FileNotFoundError:
        return None
    return parse(architecture, data)


def known() -> list[str]:
    """Every class there is a skeleton of."""
    with zipfile.ZipFile(_DATA) as archive:
        return sorted(json.loads(archive.read(_LISTED))["classes"])


def parse(architecture: str, data: dict[str, Any]) -> Skeleton:
    """One class of a package's data."""
    record = data["classes"][architecture]
    exprs = data["exprs"]
    aliases: dict[tuple[str, ...], tuple[str, ...]] = {}
    for path, other in record["aliases"]:
        aliases[tuple(path)] = (*aliases.get(tuple(path), ()), other)

    def expression(index: int) -> Any:
        return exprs[index] if index >= 0 else None

    return Skeleton(
        architecture,
        record["prefix"],
        tuple(record["ignored"]),
        tuple(Stack(context, expression(count), form) for context, count, form in record["stacks"]),
        tuple(
            Group(stack, when, tuple(Member(p, k, tuple(map(expression, dims))) for p, k, dims in members))
            for stack, when, members in record["groups"]
        ),
        tuple(map(tuple, record["slots"])),
        {
            tuple(path): (default, expression(derived), bool(follows))
            for path, default, derived, follows in record["keys"]
        },
        aliases,
    )


class Values:
    """What the keys of a skeleton are in a config.json, defaults and derived ones included."""

    def __init__(self, skeleton: Skeleton, config: Mapping[str, Any]) -> None:
        self._skeleton, self._config = skeleton, config

    def of(self, path: tuple[str, ...], depth: int = 0, *, stated: bool = False) -> Any:
        """The value of a key; None where it is not certain. stated: the class's default does not count."""
        default, derived, follows = self._skeleton.keys.get(path, (None, None, True))
        names = (path[-1], *self._skeleton.aliases.get(path, ()))
        for part in self._parts(path[:-1]):
            for name in names:
                if part.get(name) is not None:
                    return part[name]
        if follows:
            return self.number(derived, depth + 1) if derived and depth < 3 else None
        return None if stated else default

    def switched(self, path: tuple[str, ...]) -> bool | None:
        """Whether a key is on: true, or a number but 0; null is off. None where neither is certain."""
        names = (path[-1], *self._skeleton.aliases.get(path, ()))
        held = [part[name] for part in self._parts(path[:-1]) for name in names if name in part]
        value = held[0] if held else self.of(path)
        if held and value is None:
            return False
        return bool(value) if isinstance(value, bool | int) else None

    def _parts(self, path: Iterable[str]) -> list[Mapping[str, Any]]:
        """The part of the config that a path leads to. Older configs hold the text model's keys at the top."""
        part: Any = self._config
        for key in path:
            inner = part.get(key)
            if isinstance(inner, dict):
                part = inner
            elif key != "text_config":
                return []
        return [part]

    def number(self, expression: Any, depth: int = 0) -> int | None:
        """The value of an expression: a sum of products of keys; None where a key is not a number."""
        total = 0
        if expression is None:
            return None
        for factor, tops, bottoms in expression:
            part: Any = factor
            for kind, path in tops:
                value = self._feature(kind, tuple(path), depth)
                if value is None:
                    return None
                part *= value
            for kind, path in bottoms:
                value = self._feature(kind, tuple(path), depth)
                if not value:
                    return None
                part //= value
            total += part
        return int(total)

    def _feature(self, kind: str, path: tuple[str, ...], depth: int) -> int | float | None:
        value = self.of(path, depth, stated=True)
        if kind == "v":
            return value if type(value) in (int, float) and abs(value) < 1 << 63 else None  # not inf, not NaN
        if not isinstance(value, list | dict):
            return None
        if kind == "len":
            return len(value)
        if not isinstance(value, list) or not value or not all(type(v) is int for v in value):
            return None
        return sum(value) if kind == "sum" else value[-1]

    def text(self, expression: Any) -> str:
        """An expression as a reader of the config would write it."""
        parts = []
        for factor, tops, bottoms in expression:
            names = [path[-1] if kind == "v" else f"{kind} of {path[-1]}" for kind, path in tops]
            product = " × ".join(([str(factor)] if factor != 1 or not names else []) + names)
            parts.append(product + "".join(f" / {path[-1]}" for _, path in bottoms))
        return " + ".join(parts)
