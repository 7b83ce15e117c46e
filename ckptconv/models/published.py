"""Names and layouts as published: what the Hub's files have and a module of transformers 5 made from its config lacks.

transformers puts them back only for a model that it loaded from such files, and a checkpoint does not say how its model
began.
transformers 4 and vLLM want them: without its prefix they start a vision tower from random numbers.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import replace
from functools import cache
from pathlib import Path
from typing import Any

from ckptconv.models.facts import default_architecture, named_architectures
from ckptconv.models.hub_names import Named, Renamed, rename_all, taken_either_way
from ckptconv.models.table import Config, rules_of
from ckptconv.tensors.view import View

# Of an ESM that was made from its config, transformers 5 writes the norms under the names that TensorFlow had
# (conversion_mapping.py, "esm"); the published files, and those of transformers 4, have the module's.
_OLD_NORMS = {"LayerNorm.gamma": "LayerNorm.weight", "LayerNorm.beta": "LayerNorm.bias"}
_WITH_OLD_NORMS = "esm"
# A class whose published prefix transformers 5 removes as that of a base model, without a rule (modeling_mlcd.py).
_PREFIXES = {"MLCDVisionModel": "vision_model."}


@cache
def classes() -> frozenset[str]:
    """The classes whose published names have a prefix that the module lacks; made by tools/published_names.py."""
    data = Path(__file__).with_name("published_names.json").read_text("utf-8")
    return frozenset(json.loads(data))


def as_published(renamed: Renamed[View], config: Config) -> Renamed[View]:
    """Give tensors under Hub names the prefixes and layouts of the published files; those that have them stay."""
    return _with_prefixes(_turned(_without_old_norms(renamed, config), config), config)


def lacks_prefix(names: Mapping[str, Any], config: Config) -> list[str]:
    """The names that the published files have with a prefix."""
    new = _prefixed(list(names), config)[0]
    return [name for name, other in zip(names, new, strict=True) if name != other]


def _without_old_norms(renamed: Renamed[View], config: Config) -> Renamed[View]:
    if config.get("model_type") != _WITH_OLD_NORMS:
        return renamed
    names = {
        name: next(
            (name.removesuffix(old) + new for old, new in _OLD_NORMS.items() if name.endswith(old)), name
        )
        for name in renamed.tensors
    }
    rules = [text for text in renamed.rules if not any(old in text for old in _OLD_NORMS)]
    return replace(
        renamed, tensors={names[name]: named for name, named in renamed.tensors.items()}, rules=rules
    )


def _with_prefixes(renamed: Renamed[View], config: Config) -> Renamed[View]:
    names, texts = _prefixed(list(renamed.tensors), config)
    if not texts:
        return renamed
    tensors = dict(zip(names, renamed.tensors.values(), strict=True))
    return replace(renamed, tensors=tensors, rules=[*renamed.rules, *texts])


def _prefixed(names: list[str], config: Config) -> tuple[list[str], list[str]]:
    named = named_architectures(config)
    cls = named[0] if named else default_architecture(config)
    own = _PREFIXES.get(str(cls))
    if own is not None:
        lacking = [name for name in names if not name.startswith(own)]
        text = [f"{own}* as published ({len(lacking):,} names)"] if lacking else []
        return [name if name.startswith(own) else own + name for name in names], text
    if cls not in classes():
        return names, []
    rules = [rule for rule in rules_of(config, None, prefix_changes=True) if rule.kind == "prefix"]
    return rename_all(list(names), rules)


def _turned(renamed: Renamed[View], config: Config) -> Renamed[View]:
    """Experts that the Hub has turned (Qwen3-VL-MoE): (E, H, 2I) and (E, I, H), in the module (E, 2I, H) and (E, H, I)."""
    places = taken_either_way(renamed.tensors, config)
    text = config.get("text_config")
    width = text.get("hidden_size") if isinstance(text, dict) else None
    if not places or not isinstance(width, int):
        return renamed
    if any(_is_cut_by_expert_parallelism(renamed.tensors[name].value) for name in places):
        note = (
            "the experts stay as VeOmni trains and exports them, (experts, out, in), which transformers 5 reads; "
            "transformers 4 and vLLM want them turned"
        )
        return replace(renamed, notes=[*renamed.notes, note])
    from ckptconv.models.pieces import Piece
    from ckptconv.models.rules import Swap  # many records: imported for those who need them

    tensors, count, notes = dict(renamed.tensors), 0, list(renamed.notes)
    for name, dims in places.items():
        found = tensors[name]
        # The module's first of the two dims is the output: 2I of gate_up_proj, H of down_proj.
        into_width = name.endswith("down_proj")
        first, second = (found.shape[dim] for dim in sorted(dims))
        if first == second and len(notes) == len(renamed.notes):
            notes.append(
                f"{name} is square: transformers 5 reads it as stored and transformers 4 turned, and no shape tells which"
            )
        if (first if into_width else second) == width and first != second:
            (piece,) = Swap(*sorted(dims)).split([Piece(found.value, found.shape)])
            tensors[name] = Named(piece.value, piece.shape, found.sources, found.added)
            count += 1
    rules = [f"{count:,} x experts turned, as published: (experts, in, out)"] if count else []
    return replace(renamed, tensors=tensors, rules=[*renamed.rules, *rules], notes=notes)


def _is_cut_by_expert_parallelism(value: View) -> bool:
    """True if the ranks hold parts of dim 1, which only VeOmni cuts (distributed/parallel_plan.py): FSDP cuts dim 0."""
    return any(chunk.offsets[1] for chunk in getattr(value, "chunks", ()))
