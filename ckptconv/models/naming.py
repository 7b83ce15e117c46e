"""Convert tensors from the names and layouts in which they are stored to those of the Hub, or of transformers' module."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import replace
from typing import Any

from ckptconv.errors import CkptconvError, Kind
from ckptconv.models import deepspeed_moe, hub_names, layered, module_names
from ckptconv.models.hub_names import Named, Renamed
from ckptconv.models.pattern import Pattern
from ckptconv.models.published import as_published
from ckptconv.tensors.view import View

# Every decoder of torchtitan has it, in all releases; no module of transformers is named so.
_TORCHTITAN = Pattern("layers.{layer}.attention_norm.weight")

# Every transformer of OLMo-core has it; no module of transformers is named so.
_OLMO_CORE = Pattern("blocks.{layer}.attention.w_out.weight")
# Values of `Checkpoint.naming` for nanotron's names; in the second, neighbouring rows of a head rotate together.
NANOTRON = ("nanotron", "nanotron_interleaved")


def has_torchtitan_names(names: Iterable[str]) -> bool:
    """True where the tensors' names are those of torchtitan's own model classes."""
    return any(_TORCHTITAN.match(name) for name in names)


def has_olmo_core_names(names: Iterable[str]) -> bool:
    """True where the tensors' names are those of OLMo-core's own model classes."""
    return any(_OLMO_CORE.match(name) for name in names)


def to_hub(naming: str, tensors: Mapping[str, View], config: dict[str, Any]) -> Renamed[View]:
    """Rename tensors to the Hub's names, and change their layouts to the Hub's.

    The names show whether they are the module's or the Hub's: transformers 4 trains under the Hub's names, and a model
    folder may have the module's. The names also show the own classes of torchtitan and of OLMo-core. A quantized model
    folder is not changed.

    Args:
        naming: "transformers" for the names in a trainer's checkpoint, "megatron", "nanotron" and "nanotron_interleaved",
            "pipeline" for numbered layers, or "hub" for those in a model folder.
        tensors: stored name -> view.
        config: the model's config.json.

    Raises:
        CkptconvError: a rule does not fit the tensors, or no table covers the model.
    """
    if naming == "megatron":
        from ckptconv.models import (
            megatron,  # families are tables of many records: imported for those who need them
        )

        return megatron.to_hub(tensors, config)
    if naming == layered.NAMING:
        names = layered.names_of_class({name: view.shape for name, view in tensors.items()}, config)
        return _through_class(names, tensors, config, "LAYER.name -> the class's names")
    if naming == "transformers" and deepspeed_moe.are_here(tensors):
        names = deepspeed_moe.names_of_class(tensors, config)
        if not deepspeed_moe.are_here(names.values()):
            return _through_class(names, tensors, config, "deepspeed_moe -> the class's experts")
    if naming in NANOTRON:
        from ckptconv.models import nanotron

        return nanotron.to_hub(naming, tensors, config)
    if naming != "hub" and has_olmo_core_names(tensors):
        from ckptconv.models import olmo_core

        return olmo_core.to_hub(tensors, config)
    if naming != "hub" and has_torchtitan_names(tensors):
        from ckptconv.models import torchtitan

        return torchtitan.to_hub(tensors, config)
    if naming == "hub" and _is_quantized(config):
        return _as_they_are(tensors)
    form = module_names.form(tensors, config)
    if form == "hub" or (form == "" and naming == "hub"):
        return as_published(_as_they_are(tensors), config)
    renamed = as_published(hub_names.to_hub(tensors, config), config)
    if naming == "hub":
        renamed.notes.append(
            "the folder has a module's names: written under the Hub's (--layout module keeps them)"
        )
    return renamed


def _through_class(
    names: Mapping[str, str], tensors: Mapping[str, View], config: dict[str, Any], rule: str
) -> Renamed[View]:
    """Rename tensors to the names of a class of transformers, and those to the Hub's.

    Args:
        names: stored name -> the class's name.
        tensors: stored name -> view.
        config: the model's config.json.
        rule: what the first step does, for the report.
    """
    stored = {names[name]: name for name in tensors}
    made = to_hub("transformers", {names[name]: view for name, view in tensors.items()}, config)
    under_stored = {
        name: replace(named, sources=tuple(stored[source] for source in named.sources))
        for name, named in made.tensors.items()
    }
    left = [(stored[name], value, why) for name, value, why in made.left_out]
    return Renamed(under_stored, [f"{rule} ({len(tensors):,})", *made.rules], left, made.copies, made.notes)


def to_module(naming: str, tensors: Mapping[str, View], config: dict[str, Any]) -> Renamed[View]:
    """Rename the tensors of a model folder to the names of transformers' module, in which experts are fused.

    The names in a trainer's checkpoint are not changed.

    Args:
        naming: as for `to_hub`.
        tensors: stored name -> view.
        config: the model's config.json.

    Raises:
        CkptconvError: the model is quantized, a part of a fused tensor is missing, or the module's names are unknown.
    """
    if naming != "hub" or module_names.form(tensors, config) != "hub":
        return _as_they_are(tensors)
    if _is_quantized(config):
        raise CkptconvError(
            "the tensors of a quantized model cannot be fused, since their scales would no longer fit",
            wanted="a model without quantization_config",
            hint="remove --layout module",
            kind=Kind.UNSUPPORTED,
        )
    return module_names.to_module(tensors, config)


def _as_they_are(tensors: Mapping[str, View]) -> Renamed[View]:
    return Renamed({name: Named(view, view.shape, (name,)) for name, view in tensors.items()}, [])


def _is_quantized(config: dict[str, Any]) -> bool:
    return bool(config.get("quantization_config"))
