"""The building blocks of a family: rules with a name pattern on each side, named after the layout change between them.

`{layer}` and `{expert}` are numbers, `{what}` is weight or bias, and `{a,b}` stands for several tensors of one rule. A
number that the Hub's pattern lacks is gathered: the tensors with all its values, in order, become one. `{mtp}` counts from
0 in training, and continues after the last layer on the Hub. A rule works in both directions.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator, Mapping
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any

from ckptconv.errors import CkptconvError, brief
from ckptconv.models.nested import text_of
from ckptconv.models.pattern import Pattern
from ckptconv.models.rules import Cut, Grouped, Layout, Ungrouped

Config = Mapping[str, Any]
_MOST_EXPERTS = 1 << 16
Layouts = Callable[[Config], tuple[Layout, ...]]


@dataclass(frozen=True)
class Rule:
    """A pair of name patterns and the layout changes between them.

    trained: the trainer's pattern.
    hub: the Hub's pattern.
    layouts: returns the layout changes for a config.
    rows: how many rows the Hub keeps of a padded vocabulary.
    instead: the Hub name to use when the tensor has fewer than `rows` rows, i.e. output_layer is a critic's value head.
    added: a number added to each stored value (Gemma-style norms are stored as a difference to one).
    factor: returns the number by which each stored value is multiplied, for a config; None for none.
    reason: why a tensor has no counterpart on the Hub (hub is empty).
    if_cut: a note for the user if several ranks hold parts of the tensor.
    note: a note for the user if the tensor is stored.
    ungated: True for the first projection of an MLP without a gate; rank files do not show whether it has one.
    of_layer: returns the config of one layer, for models whose layers have different sizes.
    rest: why the Hub has no names for the further tensors that the layout changes yield.
    """

    trained: Pattern
    hub: Pattern
    layouts: Layouts = lambda config: ()
    rows: Callable[[Config], int] | None = None
    instead: str | None = None
    added: float = 0.0
    factor: Callable[[Config], float] | None = None
    reason: str = ""
    if_cut: str = ""
    note: str = ""
    ungated: bool = False
    of_layer: Callable[[Config, int], Config] | None = None
    rest: str = ""

    def layouts_for(self, config: Config, holes: Mapping[str, str]) -> tuple[Layout, ...]:
        """Return the layout changes.

        Args:
            config: the model's config.json.
            holes: the text of each hole in the trainer's name; a rule with `of_layer` uses the layer's number. That of
                an MTP layer continues after the last layer's.
        """
        if self.of_layer is not None and ("layer" in holes or "mtp" in holes):
            text = text_of(config)
            after = 0 if "layer" in holes else int(text["num_hidden_layers"])
            config = self.of_layer(text, after + int(holes["layer" if "layer" in holes else "mtp"]))
        return self.layouts(config)

    @cached_property
    def gathered(self) -> tuple[str, ...]:
        """Return the holes that the Hub's name lacks, in the order of the trainer's name."""
        return (
            tuple(hole for hole in self.trained.holes if hole not in self.hub.holes) if self.hub.text else ()
        )

    @property
    def text(self) -> str:
        return f"{self.trained.text} -> {self.hub.text or self.reason}"


@dataclass(frozen=True)
class Family:
    """The rules of one kind of model; the first rule that matches a name counts.

    variants: other tables for the same kind of model, each with a pattern of the stored names by which it is recognised;
        a variant may have variants of its own.
    copies: (Hub tensor, the tensor that it repeats): the embedding and the head of every stored MTP layer.
    """

    name: str
    rules: tuple[Rule, ...]
    variants: tuple[tuple[Pattern, Family], ...] = ()
    copies: tuple[tuple[Pattern, str], ...] = ()

    def variant_for(self, names: Collection[str]) -> Family:
        """Return the variant whose pattern matches a stored name, or this table if none does."""
        for mark, family in self.variants:
            if any(mark.match(name) is not None for name in names):
                return family.variant_for(names)
        return self

    def every_rule(self) -> Iterator[Rule]:
        """Yield the rules of this table and of all its variants."""
        yield from self.rules
        for _, family in self.variants:
            yield from family.every_rule()


def Same(trained: str, hub: str) -> Rule:
    """A tensor whose elements keep their order."""
    return Rule(Pattern(trained), Pattern(hub))


def Changed(trained: str, hub: str, *layouts: Layout) -> Rule:
    """A tensor with layout changes that do not depend on the config."""
    return Rule(Pattern(trained), Pattern(hub), lambda config: layouts)


def Vocab(trained: str, hub: str, instead: str | None = None) -> Rule:
    """A tensor whose rows are padded beyond the vocabulary; the Hub does not store the padding."""
    return Rule(
        Pattern(trained),
        Pattern(hub),
        rows=vocabulary,
        instead=instead,
    )


def QKV(trained: str, hub: str) -> Rule:
    """A tensor that fuses queries, keys and values, grouped by KV head."""
    return Rule(Pattern(trained), Pattern(hub), lambda config: (qkv_layout(text_of(config)),))


def JoinedQKV(trained: str, hub: str) -> Rule:
    """Fused queries, keys and values: grouped by KV head in training, all queries, all keys, all values on the Hub."""

    def layouts(config: Config) -> tuple[Layout, ...]:
        grouped = qkv_layout(text_of(config))
        return (Ungrouped(grouped.groups, grouped.parts),)

    return Rule(Pattern(trained), Pattern(hub), layouts)


def GateUp(trained: str, hub: str) -> Rule:
    """A tensor that concatenates the gate and up projections."""
    return Changed(trained, hub, Cut(0, 2))


def Up(trained: str, hub: str) -> Rule:
    """The first projection of an MLP without a gate."""
    return replace(Same(trained, hub), ungated=True)


def ZeroCentered(trained: str, hub: str) -> Rule:
    """A norm weight that the trainer stores as its difference from 1, and the Hub as it is."""
    return Rule(Pattern(trained), Pattern(hub), added=1.0)


def LeftOut(trained: str, reason: str) -> Rule:
    """A tensor that the Hub does not store."""
    return Rule(Pattern(trained), Pattern(""), reason=reason)


def within(rules: Collection[Rule], trained: str, hub: Callable[[str], str]) -> tuple[Rule, ...]:
    """Return the rules for the same model inside another.

    Args:
        rules: the rules of the inner model.
        trained: a prefix for the trainer's patterns.
        hub: returns the outer model's Hub pattern for an inner one.
    """
    return tuple(
        replace(
            rule,
            trained=Pattern(trained + rule.trained.text),
            hub=Pattern(hub(rule.hub.text)) if rule.hub.text else rule.hub,
            instead=rule.instead and hub(rule.instead),
            layouts=_of_text(rule.layouts),
        )
        for rule in rules
    )


def replace_of_layer(rules: Collection[Rule], of_layer: Callable[[Config, int], Config]) -> tuple[Rule, ...]:
    """Return rules whose sizes depend on the layer. of_layer: returns the config of one layer."""
    return tuple(replace(rule, of_layer=of_layer) for rule in rules)


def _of_text(layouts: Layouts) -> Layouts:
    """Return the layout changes with the sizes of the language model inside a config."""
    return lambda config: layouts(text_of(config))


def vocabulary(config: Config) -> int:
    """Return the number of rows of the vocabulary that the Hub stores; ChatGLM's config calls it padded_vocab_size."""
    text = text_of(config)
    return int(text["vocab_size"] if "vocab_size" in text else text["padded_vocab_size"])


def number_of_experts(config: Config, key: str) -> int:
    """Return the number of experts per layer, of which the names of tensors are made.

    Raises:
        CkptconvError: the value is not a number of experts.
    """
    value = text_of(config)[key]
    if type(value) is not int or not 0 < value <= _MOST_EXPERTS:
        raise CkptconvError(f"{key} in config.json is not a number of experts", found=brief(value))
    return value


def qkv_layout(config: Config) -> Grouped:
    """Return the layout [its queries, key, value] for every KV head, with sizes from the config."""
    heads = int(config["num_attention_heads"])
    groups = int(config.get("num_key_value_heads") or config.get("multi_query_group_num") or heads)
    head_dim = int(config.get("head_dim") or config.get("kv_channels") or config["hidden_size"] // heads)
    return Grouped(groups, (heads // groups * head_dim, head_dim, head_dim))


# The tensors of the model that the Hub's MTP layers repeat: (the copy's name, the name of the original).
MTP_COPIES = (
    (Pattern("model.layers.{mtp}.embed_tokens.weight"), "model.embed_tokens.weight"),
    (Pattern("model.layers.{mtp}.shared_head.head.weight"), "lm_head.weight"),
)
