"""Which tensors a class of transformers has: name patterns, the config keys that decide which exist, and their dims.

The data is in skeletons.zip, which tools/make_skeletons.py writes from the transformers version that it names. The tool
builds every class on the meta device many times, each time with one key of its config changed, and records what depends
on which key. The archive has one file per model package, so that a class is read without the others.
"""

from __future__ import annotations

import io
import json
import re
import zipfile
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from functools import cached_property, lru_cache
from pathlib import Path
from typing import Any, NamedTuple

from ckptconv.models import facts

_DATA = Path(__file__).with_name("skeletons.zip")
_LISTED = "classes.json"
_RANK_AT = {
    ".q_a_proj.weight": 0,
    ".q_a_layernorm.weight": 0,
    ".q_b_proj.weight": 1,
}  # the dim of q_lora_rank
_LOW_RANK, _WHOLE = ".q_a_proj.weight", ".q_proj.weight"
_EXPERT = re.compile(r"(?<=\.)expert_(?=\d+\.)")
Numbers = tuple[int, ...]  # the numbers in a name, in order
KeyPath = tuple[str, ...]  # a key of config.json, with the parts that lead to it


class Member(NamedTuple):
    """A name pattern with `*` for each number.

    Args:
        pattern: the pattern; one that ends in `.**` stands for a whole stack.
        kind: "tied" if a tied model omits it, "optional" if transformers does not need it, else "".
        dims: an expression over the config for each dim; None for a dim that is not certain. An expression is a list of
            [factor, features, divisors], whose products are added; a feature is ["v", path] for a number, "len", "sum"
            or "last" of a list, "item" for the element of a list at the layer's number, and "layer" for a number that
            the layer's own per_layer_config may replace. {"cases": [[condition, expression], ...]} is the first that holds.
    """

    pattern: str
    kind: str
    dims: tuple[Any, ...]


class Group(NamedTuple):
    """Members that exist together.

    Args:
        stack: the index of their stack.
        when: "always", "sometimes", ["may", condition, condition] for where they must be and where they may be, or a
            condition: ["if", key], ["stated", key], ["text", key, start of its value], ["list", key, {value: present}]
            for a list with a value per layer, ["in", key, present] for a list of layers, ["from", key, present] for the
            layers from a number on, ["before", expression], ["step", key, rest] for each layer that leaves this rest
            when it is divided by the key, ["at", place, number] for one number of the name, ["outer", condition] for the
            module around it, and "not", "all" and "any".
        members: the members.
    """

    stack: int
    when: Any
    members: tuple[Member, ...]


class Stack(NamedTuple):
    """Modules that are numbered from 0: layers, experts.

    Args:
        context: the name before the number; "" for the model itself.
        number: an expression for the number of modules; None if it is not known.
        form: "gaps" if the numbers need not be consecutive, "ragged" if the stacks of one model differ in length, else "".
    """

    context: str
    number: Any
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
    keys: Mapping[KeyPath, tuple[Any, Any, bool]]
    aliases: Mapping[KeyPath, tuple[str, ...]]

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


def numbers_apart(name: str) -> str:
    """The name with the numbers of `experts.expert_3` between dots, as skeletons have them: `experts.expert_.3`."""
    return _EXPERT.sub("expert_.", name) if "expert_" in name else name


def numbers_joined(name: str) -> str:
    """The reverse of `numbers_apart`."""
    return name.replace(".expert_.", ".expert_")


def skeleton_of(config: Mapping[str, Any]) -> Skeleton | None:
    """The skeleton of the class that a config names; None if it is not a class of transformers."""
    named = facts.named_architectures(config)
    name = named[0] if named else facts.default_architecture(dict(config))
    borrowed = f"{config.get('model_type')}:{name}"  # another type's class under this type's config and names
    return load(borrowed if package_of(borrowed) else name) if name else None


@lru_cache(maxsize=4)
def load(architecture: str) -> Skeleton | None:
    """The skeleton of the class of this name, or of "type:Class" for a class that another type borrows; None."""
    package = package_of(architecture)
    return None if package is None else parse(architecture, json.loads(_archive().read(f"{package}.json")))


def known() -> list[str]:
    """The names of all classes that have a skeleton."""
    return sorted(_packages())


def package_of(architecture: str | None) -> str | None:
    """The package of transformers that has a class, such as "qwen3_moe"; None if the class has no skeleton."""
    return _packages().get(architecture or "")


@lru_cache(maxsize=1)
def _packages() -> dict[str, str]:
    if not _DATA.is_file():
        return {}
    found: dict[str, str] = json.loads(_archive().read(_LISTED))["classes"]
    return found


@lru_cache(maxsize=1)
def _archive() -> zipfile.ZipFile:
    """The archive, in memory: to read its directory takes longer than to read a class."""
    return zipfile.ZipFile(io.BytesIO(_DATA.read_bytes()))


def parse(architecture: str, data: dict[str, Any]) -> Skeleton:
    """The skeleton of one class, from the data of its package."""
    record = data["classes"][architecture]
    exprs = data["exprs"]
    aliases: dict[KeyPath, tuple[str, ...]] = {}
    for path, other in record["aliases"]:
        aliases[tuple(path)] = (*aliases.get(tuple(path), ()), other)

    def expression(index: int) -> Any:
        return exprs[index] if index >= 0 else None

    return Skeleton(
        architecture.rpartition(":")[2],
        record["prefix"],
        tuple(record["ignored"]),
        tuple(Stack(context, expression(count), form) for context, count, form in record["stacks"]),
        _either_query(
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


def _either_query(groups: Iterable[Group]) -> tuple[Group, ...]:
    """The groups; latent attention has one query projection exactly where it has not the two of low rank.

    The tool changes one key at a time to another value, and null, which switches q_lora_rank off, is none of these: it
    knows neither this condition nor the rank's dims (transformers/models/deepseek_v3/modeling_deepseek_v3.py).
    """
    groups = tuple(groups)
    low = {
        member.pattern.replace(_LOW_RANK, _WHOLE): group.when
        for group in groups
        if group.when[0] == "if"
        for member in group.members
        if member.pattern.endswith(_LOW_RANK)
    }

    def completed(group: Group) -> Group:
        if group.when == "sometimes" and len(group.members) == 1 and group.members[0].pattern in low:
            return group._replace(when=["not", low[group.members[0].pattern]])
        if not any(member.pattern.endswith(_LOW_RANK) for member in group.members) or group.when[0] != "if":
            return group
        rank = [[1, [["v", group.when[1]]], []]]
        return group._replace(members=tuple(_with_rank(member, rank) for member in group.members))

    return tuple(map(completed, groups))


def _with_rank(member: Member, rank: Any) -> Member:
    """A member of the low-rank query projection, whose dim of the rank was not certain."""
    at = next((dim for end, dim in _RANK_AT.items() if member.pattern.endswith(end)), None)
    if at is None or member.dims[at] is not None:
        return member
    return member._replace(dims=(*member.dims[:at], rank, *member.dims[at + 1 :]))
