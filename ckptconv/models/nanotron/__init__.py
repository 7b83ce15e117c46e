"""nanotron's names and layouts -> the Hub's, and its model_config.json -> config.json."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TypeVar

from ckptconv.models import translate
from ckptconv.models.family import Config
from ckptconv.models.hub_names import Renamed
from ckptconv.models.naming import NANOTRON
from ckptconv.models.nanotron.config import hub_config
from ckptconv.models.nanotron.tables import FAMILIES, INTERLEAVED

T = TypeVar("T")


def to_hub(naming: str, tensors: Mapping[str, T], config: Config) -> Renamed[T]:
    """nanotron's tensors as the Hub names and lays them out; see `translate.to_hub`."""
    families = INTERLEAVED if naming == NANOTRON[1] else FAMILIES
    return translate.to_hub(translate.chosen(families, config, "nanotron"), tensors, config, "nanotron")


def to_trained(naming: str, tensors: Mapping[str, T], config: Config) -> dict[str, T]:
    """The Hub's tensors under nanotron's names; see `translate.to_trained`."""
    families = INTERLEAVED if naming == NANOTRON[1] else FAMILIES
    return translate.to_trained(translate.chosen(families, config, "nanotron"), tensors, config)


__all__ = ["hub_config", "to_hub", "to_trained"]
