"""OLMo-core's names and layouts -> the Hub's, and an experiment's config.json -> Hugging Face's."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TypeVar

from ckptconv.models import translate
from ckptconv.models.family import Config, Family
from ckptconv.models.hub_names import Renamed
from ckptconv.models.olmo_core.config import hub_config
from ckptconv.models.olmo_core.tables import FAMILIES

T = TypeVar("T")


def to_hub(tensors: Mapping[str, T], config: Config) -> Renamed[T]:
    """OLMo-core's tensors as the Hub names and lays them out; see `translate.to_hub`."""
    return translate.to_hub(_family(config), tensors, config, "OLMo-core")


def to_trained(tensors: Mapping[str, T], config: Config) -> dict[str, T]:
    """The Hub's tensors under OLMo-core's names; see `translate.to_trained`."""
    return translate.to_trained(_family(config), tensors, config)


def _family(config: Config) -> Family:
    return translate.made(FAMILIES, config, "OLMo-core")


__all__ = ["hub_config", "to_hub", "to_trained"]
