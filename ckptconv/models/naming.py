"""Trained names and layouts -> the Hub's, or a module's, by whose names they are."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from ckptconv.errors import CkptconvError, Kind
from ckptconv.models import hub_names, megatron, module_names, torchtitan
from ckptconv.models.hub_names import Named, Renamed
from ckptconv.tensors.view import View


def to_hub(naming: str, tensors: Mapping[str, View], config: dict[str, Any]) -> Renamed[View]:
    """naming: "transformers" for a trainer's names, "megatron", or "hub" for a model folder's.

    Whether these are a module's or the Hub's is told by the names themselves: transformers 4 trains under the Hub's, and
    folders are written under a module's. torchtitan's own classes are told so too. What is quantized stays as it is.
    """
    if naming == "megatron":
        return megatron.to_hub(tensors, config)
    if naming != "hub" and torchtitan.has_torchtitan_names(tensors):
        return torchtitan.to_hub(tensors, config)
    if naming == "hub" and _is_quantized(config):
        return _as_they_are(tensors)
    form = module_names.form(tensors, config)
    if form == "hub" or (form == "" and naming == "hub"):
        return _as_they_are(tensors)
    renamed = hub_names.to_hub(tensors, config)
    if naming == "hub":
        renamed.notes.append(
            "the folder has a module's names: written under the Hub's (--layout module keeps them)"
        )
    return renamed


def to_module(naming: str, tensors: Mapping[str, View], config: dict[str, Any]) -> Renamed[View]:
    """A model folder under the names of transformers' module: experts fused. A trainer's names stay as trained."""
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
