"""Megatron's names and layouts -> the Hub's: one table a kind of model, each line naming both sides."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import TypeVar

from ckptconv.models import mtp, translate
from ckptconv.models.family import Config, Family
from ckptconv.models.hub_names import Renamed
from ckptconv.models.megatron.tables import FAMILIES
from ckptconv.models.megatron.trainer import agree

__all__ = ["FAMILIES", "agree", "family_of", "to_hub", "to_trained"]

T = TypeVar("T")


def family_of(config: Config) -> Family:
    """The table for a config's model type. Raises CkptconvError where there is none, and lists what is there."""
    return translate.chosen(FAMILIES, config, "Megatron")


def to_hub(tensors: Mapping[str, T], config: Config) -> Renamed[T]:
    """Megatron's tensors, by canonical name, as the Hub names and lays them out; see `translate.to_hub`."""
    renamed = translate.to_hub(family_of(config), tensors, config, "Megatron")
    if (count := mtp.stated(config)) and not any(re.search(r"(^|\.)mtp\.", name) for name in tensors):
        renamed.notes.append(
            f"the config counts {count} MTP layer{'s' if count > 1 else ''}, and none is stored: the model works without, "
            "but nothing can draft with it (--mtp drop sets the count to 0)"
        )
    return renamed


def to_trained(tensors: Mapping[str, T], config: Config) -> dict[str, T]:
    """The Hub's tensors under Megatron's canonical names; see `translate.to_trained`."""
    return translate.to_trained(family_of(config), tensors, config)
