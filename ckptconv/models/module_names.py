"""The reverse of `hub_names`: from the Hub's names and layouts to those of transformers' module.

`to_module` does what `from_pretrained` does, by the same table as `to_hub`, with transformers' patterns for that
direction. Its result is accepted only if `to_hub` turns it back into the input. Source for the order of the steps:
transformers/core_model_loading.py, rename_source_key.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TypeVar

from ckptconv.errors import CkptconvError, Kind
from ckptconv.models import hub_names
from ckptconv.models.hub_names import Named, Renamed
from ckptconv.models.table import Config, TableRule, readable, rules_of, targets_of
from ckptconv.tensors.names import natural
from ckptconv.tensors.view import stored

T = TypeVar("T")  # a View, a numpy array or a torch tensor
_HINT = "remove --layout module, and let transformers load the folder"
_Group = dict[int, list[str]]  # the index of a rule's pattern -> the Hub names that match it

# Model types with a class whose module names transformers' patterns cannot restore; the slow test of every class finds them.
_ONE_WAY = (
    "deepseek_v4", "dinov3_convnext", "dinov3_vit", "minimax_m3_vl", "molmo2", "molmo2_text", "paddleocr_vl", "rf_detr",
)  # fmt: skip


def form(tensors: Mapping[str, T], config: Config) -> str:
    """Whose names these are: "hub", "module", or "" if the two are the same.

    They are the module's if `to_hub` changes them, unless the reverse changes them too and `to_hub` then restores them.

    Args:
        tensors: the tensors by name.
        config: the parsed config.json.
    """
    try:
        unchanged = hub_names.to_hub(tensors, config).tensors.keys() == tensors.keys()
    except CkptconvError:  # the rules do not fit: the other direction decides
        unchanged = False
    try:
        same = _back(tensors, config).tensors.keys() == tensors.keys()
    except CkptconvError:  # the Hub's rules know the names, and cannot make the module's of them
        same = not unchanged
    if same:
        return "" if unchanged else "module"
    return "hub"


def is_one_way(config: Config) -> bool:
    """Return True for a model type whose module names cannot be derived from its Hub names."""
    return config.get("model_type") in _ONE_WAY


def to_module(tensors: Mapping[str, T], config: Config) -> Renamed[T]:
    """The tensors as the module of the config's class holds them.

    Args:
        tensors: Hub name -> tensor.
        config: the parsed config.json.

    Raises:
        CkptconvError: a part of a fused tensor is missing, or the module's names cannot be derived.
    """
    if is_one_way(config):
        raise CkptconvError(
            f"the module's names of {config['model_type']} cannot be derived from its Hub names",
            hint=_HINT,
            kind=Kind.UNSUPPORTED,
        )
    return _back(tensors, config)


def _back(tensors: Mapping[str, T], config: Config) -> Renamed[T]:
    """`to_module` without its list of exceptions."""
    rules = rules_of(config, None, prefix_changes=True)[::-1]
    renamings = [rule.load for rule in rules if rule.ops is None and rule.load]
    converters = [rule for rule in rules if rule.ops is not None and rule.load]
    old = list(tensors)
    new, texts = hub_names.rename_all(list(old), renamings)
    groups: dict[str, tuple[TableRule, _Group]] = {}
    made: list[tuple[str, Named[T]]] = []
    for was, name in zip(old, new, strict=True):
        for rule in converters:
            hit = rule.load.search(name) if rule.load else None
            if hit and rule.load:
                prefix, match, index = hit
                key = prefix + hub_names.replaced(match, rule.load.targets[0])
                groups.setdefault(key, (rule, {}))[1].setdefault(index, []).append(was)
                break
        else:
            made.append((name, hub_names.plain(tensors[was], was)))
    counts: dict[str, int] = {}
    for key, (rule, group) in groups.items():
        made += _joined(key, rule, group, tensors, config)
        text = f"{{}} x {readable(rule.targets)} -> {readable(rule.patterns)}"
        counts[text] = counts.get(text, 0) + 1
    found = hub_names.unique([name for name, _ in made], [named for _, named in made])
    _check_way_back(tensors, found, config)
    return Renamed(found, [text.replace("{}", f"{n:,}", 1) for text, n in counts.items()] + texts)


def _joined(
    key: str, rule: TableRule, group: _Group, tensors: Mapping[str, T], config: Config
) -> list[tuple[str, Named[T]]]:
    """Apply a converter in reverse to one group of Hub tensors."""
    names = [name for index in range(len(rule.targets)) for name in sorted(group.get(index, ()), key=natural)]
    counts = [len(group.get(index, ())) for index in range(len(rule.targets))]
    if 0 in counts or ("*" in rule.targets[0] and len(set(counts)) > 1):
        raise CkptconvError(
            f"some pieces needed for {key} are missing",
            where=f"{names[0]} and similar tensors",
            found=", ".join(f"{n} × {readable((t,))}" for n, t in zip(counts, rule.targets, strict=True)),
            kind=Kind.INCOMPLETE,
        )
    if any(arguments.get("check_dims") for _, arguments in rule.ops or ()):
        raise CkptconvError(
            f"{key} may be transposed, and only the model's own code can tell",
            where=names[0],
            kind=Kind.UNSUPPORTED,
        )
    from ckptconv.models.operations import layouts_of
    from ckptconv.models.pieces import Piece
    from ckptconv.models.rules import to_trained_layout

    layouts = layouts_of(rule, len(targets_of(rule, config)), config)
    try:
        pieces = to_trained_layout(layouts, [Piece.of(tensors[name]) for name in names])
    except CkptconvError as error:
        raise error.within(where=f"{names[0]} and similar tensors") from error
    assert rule.load is not None
    targets = hub_names.expanded(key, rule.load.targets, len(pieces))
    each = len(names) == len(pieces)
    return [
        (target, Named(piece.value, piece.shape, (names[i],) if each else tuple(names)))
        for i, (target, piece) in enumerate(zip(targets, pieces, strict=True))
    ]


def _check_way_back(tensors: Mapping[str, T], found: Mapping[str, Named[T]], config: Config) -> None:
    """Require that `to_hub` restores the names and shapes of the input.

    Args:
        tensors: the input.
        found: the result of the reverse.
        config: the parsed config.json.
    """
    wanted = {name: tuple(hub_names.plain(tensor, name).shape) for name, tensor in tensors.items()}
    shapes = {name: stored("", 0, named.shape, "uint8") for name, named in found.items()}
    for prefix_changes in (False, True):
        back = hub_names.to_hub(shapes, config, prefix_changes=prefix_changes).tensors
        if {name: named.shape for name, named in back.items()} == wanted:
            return
    odd = sorted(back.keys() ^ wanted.keys()) or ["a shape"]
    raise CkptconvError(
        "the module's names and layouts cannot be derived from these tensors: converting back gives other names",
        found=odd[0],
        hint=_HINT,
        kind=Kind.UNSUPPORTED,
    )
