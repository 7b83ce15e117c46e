"""MaxText's names and layouts -> the Hub's."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TypeVar

from ckptconv.models import translate
from ckptconv.models.family import Config
from ckptconv.models.hub_names import Renamed
from ckptconv.models.maxtext.tables import FAMILIES

T = TypeVar("T")


def to_hub(tensors: Mapping[str, T], config: Config) -> Renamed[T]:
    """MaxText's tensors, one per layer, as the Hub names and lays them out; see `translate.to_hub`."""
    return translate.to_hub(translate.made(FAMILIES, config, "MaxText"), tensors, config, "MaxText")


def to_trained(tensors: Mapping[str, T], config: Config) -> dict[str, T]:
    """The Hub's tensors under MaxText's names; see `translate.to_trained`."""
    return translate.to_trained(translate.made(FAMILIES, config, "MaxText"), tensors, config)


__all__ = ["to_hub", "to_trained"]
