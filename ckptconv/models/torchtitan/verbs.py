"""The kinds of rules that only torchtitan needs, and the names of earlier releases.

Source: torchtitan 0.1.0, 0.2.2 and 0.3.0, and the commits between them, models/*/state_dict_adapter.py.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

from ckptconv.models.family import Config, Rule
from ckptconv.models.nested import text_of
from ckptconv.models.pattern import Pattern
from ckptconv.models.rules import Rope, Turned, Unstack

EXPERTS = "moe.routed_experts.inner_experts."

# (text in a name of 0.3.0, the earlier text). Each changed in a commit of its own, so all combinations exist.
EARLIER = (
    ("attention.qkv_linear.", "attention."),
    (EXPERTS, "moe.experts."),
    ("_EFD", ""),
    ("_EDF", ""),
    ("weight_EGD", "weight"),
    ("bias_EG", "bias"),
    ("bias_ED", "bias"),
    ("expert_bias_E", "expert_bias"),
    ("lm_head.", "output."),
)


def spelled(rules: tuple[Rule, ...]) -> tuple[Rule, ...]:
    """The rules, and a copy of each for every earlier form of its trained names."""
    found = []
    for rule in rules:
        texts = [rule.trained.text]
        for new, old in EARLIER:
            texts += [earlier for text in texts if (earlier := text.replace(new, old)) not in texts]
        found += [replace(rule, trained=Pattern(text)) for text in texts]
    return tuple(found)


def Heads(trained: str, hub: str, heads: str) -> Rule:
    """The rule of a projection for rotary embeddings: adjacent rows rotate together in torchtitan, the halves on the Hub.

    Source: torchtitan/models/llama3/state_dict_adapter.py, _permute.

    Args:
        trained: the pattern of torchtitan's name.
        hub: the pattern of the Hub's name.
        heads: the config's key for the number of heads.
    """
    return Rule(Pattern(trained), Pattern(hub), lambda config: (Turned(Rope(_heads(config, heads))),))


@dataclass(frozen=True)
class PerExpert(Rule):
    """The rule of a stack of experts that becomes one tensor per expert on the Hub.

    Args:
        shown: the Hub's name as the user sees it, with `{expert}`.
    """

    shown: str = ""

    @property
    def text(self) -> str:
        return f"{self.trained.text} -> {self.shown}"


def Experts(trained: str, hub: str, count: int) -> Rule:
    """The rule of a stack of `count` experts; `{expert}` in the Hub's name stands for the number of an expert."""
    numbers = ",".join(map(str, range(count)))
    listed = hub.replace("{expert}", f"{{{numbers}}}" if count > 1 else numbers)
    return PerExpert(Pattern(trained), Pattern(listed), lambda config: (Unstack(),), shown=hub)


def _heads(config: Config, key: str) -> int:
    text = text_of(config)
    return int(text.get(key) or text["num_attention_heads"])
