"""The way back: from the Hub's names and layouts to those of transformers' module, and which of the two a model has.

`to_module` does what `from_pretrained` does, from the same table as `to_hub`, with transformers' own patterns for that
direction, and is believed only where `to_hub` leads from its result back to what it was given.
Source of the order of things: transformers, core_model_loading.rename_source_key.
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
_Group = dict[int, list[str]]  # the Hub names of one application of a rule, by the pattern they match


# Model types with a class whose names transformers' patterns do not lead back to: found by the slow test of every class.
_ONE_WAY = (
    "deepseek_v4", "dinov3_convnext", "dinov3_vit", "minimax_m3_vl", "molmo2", "molmo2_text", "paddleocr_vl", "rf_detr",
)  # fmt: skip


def form(tensors: Mapping[str, T], config: Config) -> str:
    """Whose names these are: "hub", "module", or "" where the two are the same.

    Names that `to_hub` would change are the module's, unless the way back changes them too and `to_hub` then leads to
    what they were.
    """
    try:
        unchanged = hub_names.to_hub(tensors, config).tensors.keys() == tensors.keys()
    except CkptconvError:  # rules that do not fit: told by the other direction
        unchanged = False
    try:
        same = _back(tensors, config).tensors.keys() == tensors.keys()
    except CkptconvError:  # names that the Hub's rules know, in a form of which they cannot make a module
        same = not unchanged
    if same:
        return "" if unchanged else "module"
    return "hub"


def to_module(tensors: Mapping[str, T], config: Config) -> Renamed[T]:
    """Tensors by Hub name -> by module name, as `from_pretrained` of this config's class holds them.

    Raises CkptconvError where a part of what is fused is not there, and where the way back is not known.
    """
    if config.get("model_type") in _ONE_WAY:
        raise CkptconvError(
            f"the module's names of {config['model_type']} cannot be derived from its Hub names",
            hint=_HINT,
            kind=Kind.UNSUPPORTED,
        )
    return _back(tensors, config)


def _back(tensors: Mapping[str, T], config: Config) -> Renamed[T]:
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
    """One application of a rule, backwards: its Hub tensors, expert by expert, become the module's."""
    names = [name for index in range(len(rule.targets)) for name in sorted(group.get(index, ()), key=natural)]
    counts = [len(group.get(index, ())) for index in range(len(rule.targets))]
    if 0 in counts or ("*" in rule.targets[0] and len(set(counts)) > 1):
        raise CkptconvError(
            f"some pieces needed for {key} are missing",
            where=f"{names[0]} and its like",
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
    from ckptconv.models.rules import Piece, to_trained_layout

    layouts = layouts_of(rule, len(targets_of(rule, config)), config)
    try:
        pieces = to_trained_layout(layouts, [Piece.of(tensors[name]) for name in names])
    except CkptconvError as error:
        raise error.within(where=f"{names[0]} and its like") from error
    assert rule.load is not None
    targets = hub_names.expanded(key, rule.load.targets, len(pieces))
    each = len(names) == len(pieces)
    return [
        (target, Named(piece.value, piece.shape, (names[i],) if each else tuple(names)))
        for i, (target, piece) in enumerate(zip(targets, pieces, strict=True))
    ]


def _check_way_back(tensors: Mapping[str, T], found: Mapping[str, Named[T]], config: Config) -> None:
    """Names and shapes that `to_hub` makes of the result must be those that came."""
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
