"""Turn the operations of transformers' table into ckptconv's layout changes.

The table names an operation and its arguments. Sizes come from the tensors, and the number of heads from the config.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, TypeVar

from ckptconv.errors import CkptconvError, Kind
from ckptconv.models.pieces import Piece
from ckptconv.models.rules import Cut, Layout, Modalities, Pairs, Rope, Swap, Turned, Unstack
from ckptconv.models.table import Config, TableRule, heads_key, readable

T = TypeVar("T")


def layouts_of(rule: TableRule, targets: int, config: Config) -> list[Layout]:
    """Return the layout changes of a rule, in the order in which they apply.

    Args:
        rule: the rule of the table.
        targets: the number of Hub patterns that the rule produces.
        config: the model's config.json.

    Raises:
        CkptconvError: an operation is unknown, or the config does not give the number of heads.
    """
    return [_layout(name, arguments, rule, targets, config) for name, arguments in rule.ops or ()]


def _layout(name: str, arguments: dict[str, Any], rule: TableRule, targets: int, config: Config) -> Layout:
    """Return the layout change for one operation of transformers; the table has it in the direction towards the Hub."""
    dim = arguments.get("dim", 0)
    make: dict[str, Callable[[], Layout]] = {
        "Chunk": lambda: Cut(dim, targets),
        "Concatenate": lambda: Turned(Cut(dim, len(rule.patterns))),
        "SplitModulelist": lambda: Unstack(dim, targets),
        "Transpose": lambda: _transpose(arguments, rule),
        "Interleave": lambda: Pairs(dim) if arguments["inverse"] else Turned(Pairs(dim)),
        "PermuteForRope": lambda: _rope(arguments, rule, config),
        "ErnieSplitAndDecoupleTextVisionExperts": lambda: Modalities(
            len(rule.patterns), targets, arguments["stack_dim"], arguments["concat_dim"]
        ),
    }
    if name not in make:
        raise CkptconvError(
            f"the conversion of {rule.entry} has an unknown operation: {name}",
            where=readable(rule.patterns),
            kind=Kind.UNSUPPORTED,
        )
    return make[name]()


def _transpose(arguments: dict[str, Any], rule: TableRule) -> Layout:
    """Return the change for a Transpose.

    With `check_dims`, transformers transposes only a tensor whose shape is not the module's. A trained tensor always has
    the module's shape, so it is not changed.
    """
    if not arguments.get("check_dims"):
        return Swap(arguments["dim0"], arguments["dim1"])
    if rule.patterns != rule.targets:
        raise CkptconvError(
            f"the conversion of {rule.entry} transposes by shape and renames at once", kind=Kind.UNSUPPORTED
        )
    return _Same()


@dataclass(frozen=True)
class _Same:
    """The identity."""

    def split(self, pieces: list[Piece[T]]) -> list[Piece[T]]:
        return pieces

    join = split


def _rope(arguments: dict[str, Any], rule: TableRule, config: Config) -> Layout:
    inner = config.get(arguments.get("subconfig_key") or "")
    chosen = inner if isinstance(inner, dict) else config
    heads = chosen.get("num_attention_heads", chosen.get(heads_key(str(chosen.get("model_type")))))
    if not isinstance(heads, int):
        raise CkptconvError(
            "config.json does not give the number of heads", where=f"{rule.entry}: {rule.targets[0]}"
        )
    only = arguments.get("permute_layer_names")
    places = (
        None if only is None else tuple(i for i, p in enumerate(rule.patterns) if any(n in p for n in only))
    )
    layout = Rope(heads, places)
    return layout if arguments["inverse"] else Turned(layout)
