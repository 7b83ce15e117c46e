"""How a family is written: rules with a name pattern on each side and a verb for the layout change between them.

`{layer}`, `{expert}` are numbers, `{what}` is weight or bias, `{a,b}` several tensors of one rule. A rule works both ways.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from ckptconv.models.rules import QKV as QkvLayout
from ckptconv.models.rules import Cut, Layout, Pattern

Config = Mapping[str, Any]


@dataclass(frozen=True)
class Rule:
    """trained: Megatron's pattern. hub: the Hub's. layouts: the changes between them, for a config."""

    trained: Pattern
    hub: Pattern
    layouts: Callable[[Config], tuple[Layout, ...]]
    vocab: bool = False


@dataclass(frozen=True)
class Family:
    """The rules of one kind of model; the first that matches a name counts."""

    name: str
    rules: tuple[Rule, ...]


def Same(trained: str, hub: str) -> Rule:
    """The same elements in the same order."""
    return Rule(Pattern(trained), Pattern(hub), lambda config: ())


def Vocab(trained: str, hub: str) -> Rule:
    """Rows padded beyond the vocabulary, which the Hub does not have."""
    return Rule(Pattern(trained), Pattern(hub), lambda config: (), vocab=True)


def QKV(trained: str, hub: str) -> Rule:
    """Queries, keys and values in one tensor, grouped by KV head."""
    return Rule(Pattern(trained), Pattern(hub), lambda config: (qkv_layout(config),))


def GateUp(trained: str, hub: str) -> Rule:
    """Gate and up projection in one tensor, one after the other."""
    return Rule(Pattern(trained), Pattern(hub), lambda config: (Cut(0, 2),))


def qkv_layout(config: Config) -> QkvLayout:
    """Groups, queries a group and head size, from the config."""
    heads = int(config["num_attention_heads"])
    groups = int(config.get("num_key_value_heads") or heads)
    head_dim = int(config.get("head_dim") or config["hidden_size"] // heads)
    return QkvLayout(groups, heads // groups, head_dim)
