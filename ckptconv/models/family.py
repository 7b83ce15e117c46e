"""How a family is written: rules with a name pattern on each side and a verb for the layout change between them.

`{layer}`, `{expert}` are numbers, `{what}` is weight or bias, `{a,b}` several tensors of one rule. A number that the
Hub's side lacks is gathered: all of its tensors, in order, make one. `{mtp}` counts from 0 in training and goes on after
the last layer on the Hub. A rule works both ways.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any

from ckptconv.models.pattern import Pattern
from ckptconv.models.rules import Cut, Grouped, Layout

Config = Mapping[str, Any]
Layouts = Callable[[Config], tuple[Layout, ...]]


@dataclass(frozen=True)
class Rule:
    """trained: the trainer's pattern. hub: the Hub's. layouts: the changes between them, for a config.

    rows: how many rows the Hub keeps of a padded vocabulary.
    instead: the Hub name to use when the tensor has fewer than `rows` rows, i.e. output_layer is a critic's value head.
    added: a number added to each stored value (Gemma-style norms are stored as a difference to one).
    reason: why a tensor has no counterpart on the Hub (hub is empty).
    if_cut: the error to raise if several ranks hold parts of the tensor.
    """

    trained: Pattern
    hub: Pattern
    layouts: Layouts = lambda config: ()
    rows: Callable[[Config], int] | None = None
    instead: str | None = None
    added: float = 0.0
    reason: str = ""
    if_cut: str = ""

    @cached_property
    def gathered(self) -> tuple[str, ...]:
        """The numbers that the Hub's name does not have, in the order in which the trainer's has them."""
        return (
            tuple(hole for hole in self.trained.holes if hole not in self.hub.holes) if self.hub.text else ()
        )

    @property
    def text(self) -> str:
        return f"{self.trained.text} -> {self.hub.text or self.reason}"


@dataclass(frozen=True)
class Family:
    """The rules of one kind of model; the first that matches a name counts.

    variants: other tables for the same kind of model, each with a pattern of a stored name that tells it.
    copies: Hub tensors that repeat another, one for each MTP layer that is stored (its embedding and head).
    """

    name: str
    rules: tuple[Rule, ...]
    variants: tuple[tuple[Pattern, Family], ...] = ()
    copies: tuple[tuple[Pattern, str], ...] = ()

    def variant_for(self, names: Collection[str]) -> Family:
        """This table, or the variant whose mark is among the stored names."""
        for mark, family in self.variants:
            if any(mark.match(name) is not None for name in names):
                return family
        return self


def Same(trained: str, hub: str) -> Rule:
    """The same elements in the same order."""
    return Rule(Pattern(trained), Pattern(hub))


def Changed(trained: str, hub: str, *layouts: Layout) -> Rule:
    """Layout changes that need nothing of the config."""
    return Rule(Pattern(trained), Pattern(hub), lambda config: layouts)


def Vocab(trained: str, hub: str, instead: str | None = None) -> Rule:
    """Rows padded beyond the vocabulary, which the Hub does not have."""
    return Rule(
        Pattern(trained),
        Pattern(hub),
        rows=lambda config: int(text_of(config)["vocab_size"]),
        instead=instead,
    )


def QKV(trained: str, hub: str) -> Rule:
    """Queries, keys and values in one tensor, grouped by KV head."""
    return Rule(Pattern(trained), Pattern(hub), lambda config: (qkv_layout(text_of(config)),))


def GateUp(trained: str, hub: str) -> Rule:
    """Gate and up projection in one tensor, one after the other."""
    return Changed(trained, hub, Cut(0, 2))


def ZeroCentered(trained: str, hub: str) -> Rule:
    """A norm that is stored as its difference to one, and on the Hub is not."""
    return Rule(Pattern(trained), Pattern(hub), added=1.0)


def LeftOut(trained: str, reason: str) -> Rule:
    """A tensor that the Hub does not have."""
    return Rule(Pattern(trained), Pattern(""), reason=reason)


def within(rules: Collection[Rule], trained: str, hub: Callable[[str], str]) -> tuple[Rule, ...]:
    """The same rules for a model inside another: trained is put before the trainer's names, hub changes the Hub's."""
    return tuple(
        replace(
            rule,
            trained=Pattern(trained + rule.trained.text),
            hub=Pattern(hub(rule.hub.text)) if rule.hub.text else rule.hub,
            instead=rule.instead and hub(rule.instead),
        )
        for rule in rules
    )


def text_of(config: Config) -> Config:
    """The config of the language model: `text_config` over the rest, where there is one."""
    text = config.get("text_config")
    return {**config, **text} if isinstance(text, dict) else config


def qkv_layout(config: Config) -> Grouped:
    """[Its queries, k, v] for every KV head, with sizes from the config."""
    heads = int(config["num_attention_heads"])
    groups = int(config.get("num_key_value_heads") or heads)
    head_dim = int(config.get("head_dim") or config["hidden_size"] // heads)
    return Grouped(groups, (heads // groups * head_dim, head_dim, head_dim))


# What the Hub's MTP layers repeat of the model: (the copy's name, what it is a copy of).
MTP_COPIES = (
    (Pattern("model.layers.{mtp}.embed_tokens.weight"), "model.embed_tokens.weight"),
    (Pattern("model.layers.{mtp}.shared_head.head.weight"), "lm_head.weight"),
)
