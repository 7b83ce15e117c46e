"""Trained names and layouts -> the Hub's, by whose names they are."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from ckptconv.models import hub_names, megatron
from ckptconv.models.hub_names import Named, Renamed
from ckptconv.view import View


def to_hub(naming: str, tensors: Mapping[str, View], config: dict[str, Any]) -> Renamed[View]:
    """naming: "transformers" for a module's names, "megatron", or "hub" for names that stay."""
    if naming == "hub":
        return Renamed({name: Named(view, view.shape, (name,)) for name, view in tensors.items()}, [])
    if naming == "megatron":
        return megatron.to_hub(tensors, config)
    return hub_names.to_hub(tensors, config)
