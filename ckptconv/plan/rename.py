"""Step 2: turns the trained names and layouts into the Hub's, or into a module's."""

from __future__ import annotations

import copy
import re
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, NamedTuple

from ckptconv.models import mtp
from ckptconv.models.hub_names import Named
from ckptconv.models.naming import to_hub, to_module
from ckptconv.plan.options import Options
from ckptconv.plan.records import Fill, Filled, Left
from ckptconv.plan.weights import Weights
from ckptconv.tensors.view import View

if TYPE_CHECKING:
    from ckptconv.compute.sources import Source


class Renamed(NamedTuple):
    """The model's tensors under their final names.

    Args:
        tensors: by final name.
        config: the model's, with its count of MTP layers set to 0 if they are dropped.
        rules: the layout changes that were applied, as text.
        copies: a further name in the Hub's model -> the name in `tensors` that it repeats.
        left: elements that no final tensor holds, such as the padding of a vocabulary.
        notes: what the user must know.
    """

    tensors: Filled
    config: dict[str, Any] | None
    rules: tuple[str, ...]
    copies: Mapping[str, str]
    left: tuple[Left, ...]
    notes: tuple[str, ...]


def rename(weights: Weights, options: Options) -> Renamed:
    """Give every weight its final name and layout.

    Raises:
        CkptconvError: the rules of the model's family do not fit the tensors.
    """
    config, tensors, notes = weights.config, weights.tensors, []
    left: list[Left] = []
    if options.mtp == "drop":
        tensors, left = _without_mtp(tensors, config or {})
        config = copy.deepcopy(config)
        if config is not None and (note := mtp.set_none(config)):
            notes.append(note)
    to_names = to_module if options.layout == "module" else to_hub
    renamed = to_names(weights.naming, tensors, config or {})
    filled = {
        name: Fill(_source(named), named.shape, named.sources) for name, named in renamed.tensors.items()
    }
    return Renamed(
        filled,
        config,
        tuple(renamed.rules),
        renamed.copies,
        (*left, *renamed.left_out),
        (*notes, *renamed.notes),
    )


def _source(named: Named[View]) -> Source:
    if not named.summed and not named.added and named.factor == 1.0:
        return named.value
    from ckptconv.compute.sources import (  # many records: imported for those who need them
        Scaled,
        Shift,
        Summed,
    )

    if named.factor != 1.0:
        return Scaled(named.value, named.factor)
    return Summed(named.value, named.summed) if named.summed else Shift(named.value, named.added)


def _without_mtp(
    weights: Mapping[str, View], config: Mapping[str, Any]
) -> tuple[Mapping[str, View], list[Left]]:
    pattern = re.compile("|".join(mtp.patterns(config)))
    kept = {name: view for name, view in weights.items() if not pattern.search(name)}
    reason = "an MTP layer (--mtp drop)"
    return kept, [(name, view, reason) for name, view in weights.items() if name not in kept]
