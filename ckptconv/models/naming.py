"""Convert tensors from the names and layouts in which they are stored to those of the Hub, or of transformers' module."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from ckptconv.errors import CkptconvError, Kind
from ckptconv.models import autoep, deepspeed_moe, facts, hub_names, layered, module_names, xtuner
from ckptconv.models.hub_names import Named, Renamed
from ckptconv.models.published import as_published
from ckptconv.models.signs import Sign, signs_of
from ckptconv.tensors.view import View

# Values of `Checkpoint.naming` for nanotron's names; in the second, neighbouring rows of a head rotate together.
NANOTRON = ("nanotron", "nanotron_interleaved")

_Made = dict[str, tuple[View, tuple[str, ...]]]


def to_hub(naming: str, tensors: Mapping[str, View], config: dict[str, Any]) -> Renamed[View]:
    """Rename tensors to the Hub's names, and change their layouts to the Hub's.

    The names show whether they are the module's or the Hub's: transformers 4 trains under the Hub's names, and a model
    folder may have the module's. The names also show the own classes of torchtitan and of OLMo-core. A quantized model
    folder is not changed.

    Args:
        naming: "transformers" for the names in a trainer's checkpoint, "megatron", "maxtext", "nanotron" and
            "nanotron_interleaved", "pipeline" for numbered layers, or "hub" for those in a model folder.
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
    signs = signs_of(tensors) if naming != "hub" else frozenset[Sign]()
    if naming in ("transformers", layered.NAMING) and Sign.NUMBERED in signs:
        from ckptconv.models import neox

        if neox.are_here(tensors, config):
            return neox.to_hub(tensors, config)
    if naming == layered.NAMING:
        names = layered.names_of_class({name: view.shape for name, view in tensors.items()}, config)
        return _through_class(_renamed(names, tensors), config, "LAYER.name -> the class's names")
    if naming == "transformers" and Sign.DEEPSPEED_MOE in signs:
        names = deepspeed_moe.names_of_class(tensors, config)
        if not deepspeed_moe.are_here(names.values()):
            return _through_class(_renamed(names, tensors), config, "deepspeed_moe -> the class's experts")
    if naming in NANOTRON:
        from ckptconv.models import nanotron

        return nanotron.to_hub(naming, tensors, config)
    if naming == "maxtext":
        from ckptconv.models import maxtext

        return maxtext.to_hub(tensors, config)
    if Sign.TORCHTUNE in signs:
        from ckptconv.models import torchtune

        return torchtune.to_hub(tensors, config)
    if Sign.OLMO_CORE in signs:
        from ckptconv.models import olmo_core

        return olmo_core.to_hub(tensors, config)
    if Sign.TORCHTITAN in signs:
        from ckptconv.models import torchtitan

        return torchtitan.to_hub(tensors, config)
    if naming == "transformers" and Sign.AUTOEP in signs and autoep.layers(tensors):
        return _through_class(
            autoep.as_modules(tensors), config, "AutoEP's layers -> the modules they replaced"
        )
    if naming == "transformers" and Sign.XTUNER in signs and xtuner.are_here(config):
        return _through_class(xtuner.as_modules(tensors, config), config, "XTuner's names -> the class's")
    if naming == "hub" and _is_quantized(config):
        return _as_they_are(tensors)
    unknown = facts.unknown_note(config)
    if unknown is not None:
        found = _by_names(naming, tensors, config)
        return replace(found, notes=[*found.notes, unknown])
    return _by_names(naming, tensors, config)


def _by_names(naming: str, tensors: Mapping[str, View], config: dict[str, Any]) -> Renamed[View]:
    """Rename tensors whose names are a module's; those that have the Hub's names stay."""
    form = module_names.form(tensors, config)
    if form == "hub" or (form == "" and naming == "hub"):
        return as_published(_as_they_are(tensors), config)
    renamed = as_published(hub_names.to_hub(tensors, config), config)
    if naming == "hub":
        renamed.notes.append(
            "the folder has a module's names: written under the Hub's (--layout module keeps them)"
        )
    return renamed


def _renamed(names: Mapping[str, str], tensors: Mapping[str, View]) -> _Made:
    """Return the class's name -> (view, the stored name), for stored name -> the class's name."""
    return {names[name]: (view, (name,)) for name, view in tensors.items()}


def _through_class(made: _Made, config: dict[str, Any], rule: str) -> Renamed[View]:
    """Rename tensors of a class of transformers to the Hub's names.

    Args:
        made: the class's name -> (view, the stored names that it is made of).
        config: the model's config.json.
        rule: how the class's tensors were made, for the report.
    """
    renamed = to_hub("transformers", {name: view for name, (view, _) in made.items()}, config)
    tensors = {
        name: replace(named, sources=tuple(stored for source in named.sources for stored in made[source][1]))
        for name, named in renamed.tensors.items()
    }
    left = [(made[name][1][0], value, why) for name, value, why in renamed.left_out]
    return Renamed(tensors, [f"{rule} ({len(made):,})", *renamed.rules], left, renamed.copies, renamed.notes)


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
