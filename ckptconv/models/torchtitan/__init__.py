"""torchtitan's names and layouts -> the Hub's: one table per kind of model, with both names on each line."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TypeVar

from ckptconv.models import translate
from ckptconv.models.family import Config, Family
from ckptconv.models.hub_names import Renamed
from ckptconv.models.torchtitan.tables import FAMILIES

T = TypeVar("T")


def family_of(config: Config) -> Family:
    """The table for a config's model type.

    Raises:
        CkptconvError: ckptconv has no table for it, or the config does not state the number of experts.
    """
    return translate.made(FAMILIES, config, "torchtitan")


def to_hub(tensors: Mapping[str, T], config: Config) -> Renamed[T]:
    """torchtitan's tensors in the Hub's names and layouts; see `translate.to_hub`."""
    return translate.to_hub(family_of(config), tensors, config, "torchtitan")


def to_trained(tensors: Mapping[str, T], config: Config) -> dict[str, T]:
    """The Hub's tensors under the names of torchtitan 0.3.0; see `translate.to_trained`."""
    return translate.to_trained(family_of(config), tensors, config)
