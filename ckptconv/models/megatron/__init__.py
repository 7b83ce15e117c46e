"""Convert Megatron's names and layouts to the Hub's: one table per kind of model; each line names both sides."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import TypeVar

from ckptconv.models import mtp, translate
from ckptconv.models.family import Config, Family
from ckptconv.models.hub_names import Renamed
from ckptconv.models.lora.names import is_of_an_adapter
from ckptconv.models.megatron import trainer
from ckptconv.models.megatron.computation import check_computation
from ckptconv.models.megatron.gates import check_gates
from ckptconv.models.megatron.own_settings import check_stored
from ckptconv.models.megatron.pairs import check_pairs
from ckptconv.models.megatron.tables import FAMILIES
from ckptconv.tensors.checkpoint import Checkpoint

__all__ = ["FAMILIES", "agree", "caution", "family_of", "to_hub", "to_trained"]

T = TypeVar("T")


def family_of(config: Config) -> Family:
    """Return the table for a config.

    Raises:
        CkptconvError: there is none for its model type or for the language model inside it; the error lists the known ones.
    """
    return translate.chosen(FAMILIES, config, "Megatron").family(config)


def caution(config: Config) -> str:
    """Return what the user should know about the table for a config: no real checkpoint has confirmed it. Else ""."""
    listed = FAMILIES.get(str(config.get("model_type")))
    return listed.caution if listed else ""


def agree(checkpoint: Checkpoint, config: Config) -> list[str]:
    """Compare the checkpoint with config.json, with the table, and its tensors with what the trainer stated.

    See `trainer.agree`, `computation.check_computation`, `own_settings.check_stored` and `gates.check_gates`.
    """
    if str(config.get("model_type")) in FAMILIES:
        check_gates(checkpoint.tensors, family_of(config))
    if not any(map(is_of_an_adapter, checkpoint.tensors)):
        check_pairs(checkpoint.tensors)
    notes = trainer.agree(checkpoint, config)
    check_stored(checkpoint)
    check_computation(checkpoint.trainer, config)
    return notes


def to_hub(tensors: Mapping[str, T], config: Config) -> Renamed[T]:
    """Convert Megatron's tensors, by canonical name, to the Hub's names and layouts; see `translate.to_hub`."""
    renamed = translate.to_hub(family_of(config), tensors, config, "Megatron")
    if by_source := caution(config):
        renamed.notes.append(by_source)
    if (count := mtp.stated(config)) and not any(re.search(r"(^|\.)mtp\.", name) for name in tensors):
        renamed.notes.append(
            f"the config counts {count} MTP layer{'s' if count > 1 else ''}, and none is stored: the model works without, "
            "but nothing can draft with it (--mtp drop sets the count to 0)"
        )
    return renamed


def to_trained(tensors: Mapping[str, T], config: Config) -> dict[str, T]:
    """Convert the Hub's tensors to Megatron's canonical names and layouts; see `translate.to_trained`."""
    return translate.to_trained(family_of(config), tensors, config)
