"""Read the table of transformers' own conversions, and select the entries that apply to a config.

make_table writes transformers_table.json; this module does not import transformers. The table has four sections: `rules`
(entry -> its rules, from the module to the Hub), `classes` (model class -> its sub-models), `auto` (the class that an
AutoModel chooses), and `heads` (model type -> its key for num_attention_heads).
"""

from __future__ import annotations

import json
import re
from collections import defaultdict
from collections.abc import Collection, Iterator
from functools import cache
from pathlib import Path
from typing import Any, NamedTuple

from ckptconv.errors import CkptconvError, Kind
from ckptconv.models import facts

Config = dict[str, Any]


class TableRule(NamedTuple):
    """One rule of the table, under the prefix of its sub-model.

    Attributes:
        entry: the model type or class that has the rule.
        regexes: searched in a name; the leftmost match counts.
        patterns: the texts by which `ops` refers to the regexes.
        targets: the Hub patterns.
        ops: the layout changes as (name, arguments); None for a rule that only renames.
        scopes: the prefixes that the sub-model's names may have: its path, with and without the base model's prefix.
        order: the indices of the regexes, longest pattern first.
        kind: "prefix", "group", "offset" or "".
        offset: the value that an "offset" rule has in the table; else 0.
        load: the same rule from the Hub's names to the module's, as a renaming; None if there is none.
    """

    entry: str
    regexes: tuple[re.Pattern[str], ...]
    patterns: tuple[str, ...]
    targets: tuple[str, ...]
    ops: tuple[tuple[str, dict[str, Any]], ...] | None
    scopes: tuple[str, ...]
    order: tuple[int, ...]
    kind: str
    offset: int = 0
    load: TableRule | None = None

    def search(self, name: str) -> tuple[str, re.Match[str], int] | None:
        """Return (prefix, match in the rest of the name, index of the pattern), or None if the rule does not match."""
        for scope in self.scopes:
            if name.startswith(scope):
                break
        else:
            return None
        rest = name[len(scope) :]
        found: tuple[re.Match[str], int] | None = None
        for index in self.order:
            match = self.regexes[index].search(rest)
            if match and (found is None or match.start() < found[0].start()):
                found = match, index
        return (scope, *found) if found else None


class Node(NamedTuple):
    """A model or sub-model.

    Attributes:
        path: its path in the module tree.
        cls: its class.
        kind: its model type.
        config: its config.
        keys: the keys that lead to its config in config.json.
    """

    path: str
    cls: str
    kind: str
    config: Config
    keys: tuple[str, ...] = ()


@cache
def load() -> dict[str, Any]:
    """Return the table, which is read once."""
    return json.loads(Path(__file__).with_name("transformers_table.json").read_text("utf-8"))


def _table_for(config: Config) -> dict[str, Any]:
    """Return the table, with the installed transformers' own mapping for a model type that it lacks."""
    table = load()
    if facts.knows(config):
        return table
    from ckptconv.models import installed  # imports transformers

    found = installed.mapping_of(config)
    if found is None:
        return table
    return table | {"rules": table["rules"] | found.rules, "classes": table["classes"] | found.classes}


def rules_of(
    config: Config, names: Collection[str] | None, *, prefix_changes: bool = False
) -> list[TableRule]:
    """Return the rules for a model, in the order in which saving tries them (sub-models first).

    Args:
        config: the model's config.json.
        names: the trained names; a sub-model without any matching name is skipped. None includes every sub-model.
        prefix_changes: also include the rules that restore a prefix which the Hub repository has and the module lacks.

    Raises:
        CkptconvError: a rule is of an unknown kind, or the table does not know the sub-models of the model's class.
    """
    table = _table_for(config)
    nodes = list(_nodes(config, table))
    base = (table["classes"].get(nodes[0].cls) or {}).get("prefix", "") if nodes else ""
    rules: list[TableRule] = []
    for entry, path in reversed(_claimed(nodes, table["rules"])):
        if path and names is not None and not any(name.startswith(path + ".") for name in names):
            continue
        for rule in _entry(table, entry):
            if prefix_changes or not rule.get("prefix"):
                rules.append(_rule(entry, rule, path, base))
    return rules


def heads_key(model_type: str) -> str:
    """Return the key that a config of this model type uses for num_attention_heads."""
    return load()["heads"].get(model_type, "num_attention_heads")


def _nodes(config: Config, table: dict[str, Any]) -> Iterator[Node]:
    """Yield the model and its sub-models, in the order of the module tree."""
    kind = str(config.get("model_type", ""))
    known = table["classes"]
    stated, code = config.get("architectures"), config.get("auto_map")
    cls = str(stated[0] if isinstance(stated, list) and stated else facts.default_architecture(config) or "")
    own_code = [str(path).rpartition(".")[2] for path in code.values()] if isinstance(code, dict) else []
    if (
        cls in known or cls not in own_code
    ):  # a repository's own code may share a model type but not its names
        yield from _walk(Node("", cls, kind, config), known, table)


def nodes_of(config: Config) -> list[Node]:
    """Return the model and its sub-models; none where the table does not know the sub-models of the model's class."""
    try:
        return list(_nodes(config, _table_for(config)))
    except CkptconvError:
        return []


def _walk(node: Node, known: dict[str, Any], table: dict[str, Any]) -> Iterator[Node]:
    yield node
    config = node.config
    found = known.get(node.cls)
    if found is None:
        if node.cls in known:
            _refuse_unknown_parts(node, config, table)
        return
    for path, cls, key, kind, auto in found["parts"]:
        inner = config
        if key:
            stated = config.get(key)
            inner = stated if isinstance(stated, dict) else {}
            actual = str(inner.get("model_type", kind))
            if auto and actual != kind:
                kind, cls = actual, table["auto"][auto].get(actual, "")
        path, keys = f"{node.path}.{path}" if node.path else path, (*node.keys, key) if key else node.keys
        yield from _walk(Node(path, cls, kind, inner, keys), known, table)


def _refuse_unknown_parts(node: Node, config: Config, table: dict[str, Any]) -> None:
    """Refuse a class that make_table could not build: its sub-models are unknown, and one of them may have rules."""
    for key, inner in config.items():
        kind = str(inner.get("model_type")) if isinstance(inner, dict) else ""
        if any(not rule.get("prefix") for rule in _entry(table, kind)):
            raise CkptconvError(
                f"the table of Hub names has no entry for {node.cls}",
                where=f"config.json, {key}: {kind}",
                hint="save this model with its own save_pretrained",
                kind=Kind.UNSUPPORTED,
            )


def _entry(table: dict[str, Any], name: str) -> list[dict[str, Any]]:
    found = table["rules"].get(name, [])
    return table["rules"][found] if isinstance(found, str) else found


def _claimed(nodes: list[Node], entries: dict[str, Any]) -> list[tuple[str, str]]:
    """Return (entry, path) for each node that has rules; an equal node above it covers a node.

    A class is looked up before a model type, and also where the model type is covered already. This order is that of
    transformers, conversion_mapping.get_model_conversion_mapping.
    """
    seen: defaultdict[str, list[str]] = defaultdict(list)
    found: list[tuple[str, str]] = []
    for path, cls, kind, *_ in nodes:
        if _inside(path, seen[cls]):
            continue
        by_class = cls in entries
        if not by_class and (_inside(path, seen[kind]) or kind not in entries):
            continue
        found.append((cls if by_class else kind, path))
        seen[cls].append(path)
        if not by_class:
            seen[kind].append(path)
    return found


def _inside(path: str, claimed: list[str]) -> bool:
    return any(other == "" or path.startswith(other + ".") for other in claimed)


def _scopes(path: str, base: str) -> tuple[str, ...]:
    if not path:
        return ("",)
    inner = path.removeprefix(base).removeprefix(".")
    inner = f"{inner}." if inner else ""
    return (f"{base}.{inner}" if base else inner, inner)


@cache
def _compiled(regex: str) -> re.Pattern[str]:
    return re.compile(regex)


def _rule(entry: str, rule: dict[str, Any], path: str, base: str) -> TableRule:
    if "unknown" in rule:
        raise CkptconvError(
            f"the conversion of {entry} is of an unknown kind: {rule['unknown']}", kind=Kind.UNSUPPORTED
        )
    kinds = [kind for kind in ("prefix", "group", "offset") if kind in rule]
    patterns = tuple(rule.get("patterns", rule["from"]))
    ops = tuple((name, arguments) for name, arguments in rule["ops"]) if "ops" in rule else None
    load = rule.get("load")
    return TableRule(
        entry,
        tuple(_compiled(regex) for regex in rule["from"]),
        patterns,
        tuple(rule["to"]),
        ops,
        _scopes(path, base),
        tuple(sorted(range(len(patterns)), key=lambda i: -len(patterns[i]))),
        kinds[0] if kinds else "",
        rule.get("offset", 0),
        load and _rule(entry, load | {kind: rule[kind] for kind in kinds if kind not in load}, path, base),
    )


def targets_of(rule: TableRule, config: Config) -> tuple[str, ...]:
    """Return the Hub patterns of a rule. A pattern with `*` whose count is in the config is repeated that many times.

    Raises:
        CkptconvError: the config does not give the count.
    """
    for _, arguments in rule.ops or ():
        count = arguments.get("num_shards_attribute")
        if count:
            text = config.get("text_config") or config
            if not isinstance(text.get(count), int):
                raise CkptconvError(
                    "config.json does not give the number of parts of a tensor",
                    where=rule.entry,
                    wanted=count,
                )
            return tuple(rule.targets[0].replace("*", str(i)) for i in range(text[count]))
    return rule.targets


def readable(patterns: tuple[str, ...]) -> str:
    """Return patterns as one name with holes: common segments appear once, and differing segments are in braces."""
    plain = [
        re.sub(r"\(\?[!=<][^()]*\)|^\^", "", text).replace("\\.", ".").replace("*", "{expert}")
        for text in patterns
    ]
    first, others = plain[0].split("."), [text.split(".") for text in plain[1:]]
    if not others or any(len(other) != len(first) for other in others):
        return plain[0] if not others else ", ".join(plain)
    columns = [list(dict.fromkeys(column)) for column in zip(first, *others, strict=True)]
    return ".".join(column[0] if len(column) == 1 else _braced(column) for column in columns)


def _braced(words: list[str]) -> str:
    """Return differing segments in braces: gate_proj and up_proj become {gate,up}_proj."""
    ends = [word.split("_") for word in words]
    shared = 0
    while all(len(end) > shared + 1 and end[-1 - shared] == ends[0][-1 - shared] for end in ends):
        shared += 1
    heads = ["_".join(end[: len(end) - shared]) for end in ends]
    return "_".join(["{" + ",".join(heads) + "}", *(ends[0][-shared:] if shared else [])])
