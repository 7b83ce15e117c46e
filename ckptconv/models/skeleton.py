"""Which tensors a class of transformers has: name patterns, the config keys that decide which exist, and their dims.

The data is in skeletons.zip, which tools/make_skeletons.py writes from the transformers version that it names. The tool
builds every class on the meta device many times, each time with one key of its config changed, and records what depends
on which key. The archive has one file per model package, so that a class is read without the others.
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
from ckptconv.models.nested import text_of

_DATA = Path(__file__).with_name("skeletons.zip")
_LISTED = "classes.json"
Numbers = tuple[int, ...]  # the numbers in a name, in order

# Model types whose tensors the skeleton of their class does not describe: two use another type's class under Hub names of
# their own, and MiniMax-M3's was built without dense layers. Of the others the sparse layers, the layers of a decoder of
# another depth, or a size that a list of the config states do not follow the rule that their small builds showed.
_OTHER_FORMS = (
    "exaone", "longt5", "minimax_m3_vl", "nllb-moe", "rf_detr", "sapiens2", "sarvam_moe", "switch_transformers", "umt5",
)  # fmt: skip


@dataclass(frozen=True)
class Member:
    """A name pattern with `*` for each number.

    Args:
        pattern: the pattern; one that ends in `.**` stands for a whole stack.
        kind: "tied" if a tied model omits it, "optional" if transformers does not need it, else "".
        dims: an expression over the config for each dim; None for a dim that is not certain.
    """

    pattern: str
    kind: str
    dims: tuple[Any, ...]


@dataclass(frozen=True)
class Group:
    """Members that exist together.

    Args:
        stack: the index of their stack.
        when: "always", "sometimes", ["if", key], ["list", key, {value: present}] for a list with a value per layer,
            ["in", key, present] for a list of layers, or ["from", key, present] for the layers from a number on.
        members: the members.
    """

    stack: int
    when: Any
    members: tuple[Member, ...]


@dataclass(frozen=True)
class Stack:
    """Modules that are numbered from 0: layers, experts.

    Args:
        context: the name before the number; "" for the model itself.
        count: an expression for the number of modules; None if it is not known.
        form: "gaps" if the numbers need not be consecutive, "ragged" if the stacks of one model differ in length, else "".
    """

    context: str
    count: Any
    form: str


@dataclass(frozen=True)
class Skeleton:
    """The tensors of one class.

    Args:
        architecture: the name of the class.
        prefix: its base_model_prefix in transformers.
        ignored: regular expressions of names that transformers ignores when it loads a folder.
        stacks: its stacks.
        groups: its groups of tensors.
        slots: lists of groups; each instance has at least one group of each list.
        keys: the path of each key that matters -> (default, derived expression, whether it follows other keys).
        aliases: the path of a key -> its other names.
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
        """Each pattern with `*` for all numbers -> (member, its fixed numbers; None for a number that may be any)."""
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


def _is_another_gemma4(config: Mapping[str, Any]) -> bool:
    """Return whether a Gemma 4 shares keys between layers, has experts, or lacks per-layer embeddings."""
    if not str(config.get("model_type")).startswith("gemma4"):
        return False
    text = text_of(config)
    plain = text.get("hidden_size_per_layer_input", True) and not text.get("num_kv_shared_layers")
    return bool(not plain or text.get("enable_moe_block"))


def skeleton_of(config: Mapping[str, Any]) -> Skeleton | None:
    """The skeleton of the class that a config names; None if it is not a class of transformers."""
    if config.get("model_type") in _OTHER_FORMS or _is_another_gemma4(config):
        return None
    named = facts.named_architectures(config)
    name = named[0] if named else facts.default_architecture(dict(config))
    return load(name) if name else None


@lru_cache(maxsize=4)
def load(architecture: str) -> Skeleton | None:
    """The skeleton of the class of this name; None if there is none."""
    package = package_of(architecture)
    if package is None or not _DATA.is_file():
        return None
    with zipfile.ZipFile(_DATA) as archive:
        return parse(architecture, json.loads(archive.read(f"{package}.json")))


def known() -> list[str]:
    """The names of all classes that have a skeleton."""
    return sorted(_packages())


def package_of(architecture: str | None) -> str | None:
    """The package of transformers that has a class, such as "qwen3_moe"; None if the class has no skeleton."""
    return _packages().get(architecture or "")


@lru_cache(maxsize=1)
def _packages() -> dict[str, str]:
    try:
        with zipfile.ZipFile(_DATA) as archive:
            found: dict[str, str] = json.loads(archive.read(_LISTED))["classes"]
    except FileNotFoundError:
        return {}
    return found


def parse(architecture: str, data: dict[str, Any]) -> Skeleton:
    """The skeleton of one class, from the data of its package."""
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
    """The values of a skeleton's keys in a config.json, including defaults and derived values.

    Args:
        skeleton: the class.
        config: the parsed config.json.
    """

    def __init__(self, skeleton: Skeleton, config: Mapping[str, Any]) -> None:
        self._skeleton, self._config = skeleton, config

    def of(self, path: tuple[str, ...], depth: int = 0, *, stated: bool = False) -> Any:
        """The value of a key; None if it is not certain.

        Args:
            path: the key, with the parts of the config that lead to it.
            depth: the number of derived values that were computed to get here, which is bounded.
            stated: ignore the class's default.
        """
        default, derived, follows = self._skeleton.keys.get(path, (None, None, True))
        names = (path[-1], *self._skeleton.aliases.get(path, ()))
        for part in self._parts(path[:-1]):
            for name in names:
                if part.get(name) is not None:
                    return part[name]
        if follows:
            return self.number(derived, depth + 1) if derived and depth < 3 else None
        return None if stated else default

    def stated(self, path: tuple[str, ...]) -> dict[str, Any]:
        """Each name under which the config states a key -> its value there, without null."""
        names = (path[-1], *self._skeleton.aliases.get(path, ()))
        return {
            name: part[name]
            for part in self._parts(path[:-1])
            for name in names
            if part.get(name) is not None
        }

    def switched(self, path: tuple[str, ...]) -> bool | None:
        """Whether a key is on: true, or a number other than 0. null is off. None if it is not certain."""
        names = (path[-1], *self._skeleton.aliases.get(path, ()))
        held = [part[name] for part in self._parts(path[:-1]) for name in names if name in part]
        value = held[0] if held else self.of(path)
        if held and value is None:
            return False
        return bool(value) if isinstance(value, bool | int) else None

    def _parts(self, path: Iterable[str]) -> list[Mapping[str, Any]]:
        """The part of the config that a path leads to, or []. Older configs have the text model's keys at the top level."""
        part: Any = self._config
        for key in path:
            inner = part.get(key)
            if isinstance(inner, dict):
                part = inner
            elif key != "text_config":
                return []
        return [part]

    def number(self, expression: Any, depth: int = 0) -> int | None:
        """The value of an expression, which is a sum of products of keys; None if a key is not a number."""
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
        """An expression as text for the user, in the config's names."""
        parts = []
        for factor, tops, bottoms in expression:
            names = [path[-1] if kind == "v" else f"{kind} of {path[-1]}" for kind, path in tops]
            product = " × ".join(([str(factor)] if factor != 1 or not names else []) + names)
            parts.append(product + "".join(f" / {path[-1]}" for _, path in bottoms))
        return " + ".join(parts)
