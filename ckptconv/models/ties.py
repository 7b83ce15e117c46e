"""Tied weights of a model and of the models inside it, as transformers states them.

Each class states its ties in `_tied_weights_keys`, under the names of its own module, and each config says for its own
class whether they hold. A model inside another keeps its own: BLIP-2's OPT ties its head, Florence-2's BART the embeddings
of encoder and decoder. Source: transformers, modeling_utils.py, get_expanded_tied_weights_keys and post_init.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Mapping
from itertools import cycle
from typing import Any, NamedTuple

from ckptconv.models import facts
from ckptconv.models.table import Node, nodes_of

_HEAD = "lm_head.weight"
# transformers 4 scales the output of a tied head of these, by tie_word_embeddings; transformers 5 ties always, and asks
# scale_decoder_outputs (configuration_t5.py) or does not scale (modeling_mt5.py).
_SCALED = ("longt5", "mt5", "pop2piano", "t5", "umt5")
_PLAIN = re.compile(r"[A-Za-z0-9_.]+(weight|bias)")


class Tie(NamedTuple):
    """Two names of one weight.

    Args:
        name: the name that save_pretrained does not write.
        repeats: the name under which it is written.
        keys: the keys that lead to the config which states the tie; () for the top of config.json.
    """

    name: str
    repeats: str
    keys: tuple[str, ...] = ()


def ties(config: dict[str, Any], names: Iterable[str]) -> list[Tie]:
    """The ties that hold among a model's tensors.

    Args:
        config: the parsed config.json.
        names: the names of the model's tensors.
    """
    present = list(dict.fromkeys(names))
    is_apart = has_head_apart(config)
    found = list(_own(config, present)) if is_apart or facts.says_tied(config) else []
    if is_apart:
        found = [tie for tie in found if tie.name != _HEAD]
    for node in nodes_of(config):
        stated = facts.tied_names(node.cls)
        if node.path and stated and _holds(node, config):
            prefix = f"{node.path}."
            inside = [name.removeprefix(prefix) for name in present if name.startswith(prefix)]
            pairs = _expanded(stated, inside)
            found += [Tie(prefix + one, prefix + two, node.keys) for one, two in pairs]
    return list({tie.name: tie for tie in reversed(found)}.values())[::-1]


def has_head_apart(config: Mapping[str, Any]) -> bool:
    """True for a model of T5's family whose head is written even if it equals the embedding: T5 1.1 and mT5.

    Encoder and decoder share one embedding all the same.
    """
    kind = str(config.get("model_type"))
    says_so = config.get("tie_word_embeddings") is False or config.get("scale_decoder_outputs") is False
    return kind == "mt5" or (kind in _SCALED and says_so)


def _holds(node: Node, config: Mapping[str, Any]) -> bool:
    """Whether the config of a model inside says that its weights are tied."""
    if not node.keys:  # it has no config of its own
        return facts.says_tied(dict(config))
    stated = node.config.get("tie_word_embeddings")
    return stated if isinstance(stated, bool) else facts.ties_by_default(node.kind)


def _own(config: dict[str, Any], present: list[str]) -> Iterator[Tie]:
    """The ties of the class that config.json names."""
    stated: dict[str, str] = {}
    for architecture in facts.architectures(config):
        stated |= facts.tied_names(architecture)
    if not stated and _HEAD in present:
        stated = {_HEAD: next((name for name in present if name.endswith("embed_tokens.weight")), "")}
    stated = {
        name: source if source in present else _namesake(source, present) for name, source in stated.items()
    }
    for name, source in _expanded(stated, present):
        yield Tie(name, source)


def _expanded(stated: Mapping[str, str], present: list[str]) -> list[tuple[str, str]]:
    """The pairs among names, for ties that are stated as names, modules or regexes, which match from the first letter."""
    if all(_PLAIN.fullmatch(text) for pair in stated.items() for text in pair):
        return [(name, source) for name, source in stated.items() if name in present and source in present]
    found: dict[str, str] = {}
    for pattern, target in stated.items():
        names = sorted(name for name in present if re.match(pattern, name))
        sources = sorted(name for name in present if re.match(target, name)) if target else []
        if sources and not len(names) % len(sources):
            found |= {
                name: found.get(source, source) for name, source in zip(names, cycle(sources), strict=False)
            }
    return [(name, source) for name, source in found.items() if name != source]


def _namesake(module_name: str, present: list[str]) -> str:
    """The only tensor whose name ends the same; else the name itself. Qwen2.5-VL's embedding has another name on the Hub."""
    end = "." + ".".join(module_name.split(".")[-2:])
    found = [name for name in present if name.endswith(end)]
    return found[0] if len(found) == 1 else module_name
