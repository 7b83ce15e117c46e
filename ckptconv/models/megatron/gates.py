"""Compare rank files with the table: does the MLP have a gate?

A rank file holds its own [gate | up] of linear_fc1 if the MLP has a gate, and rows of one matrix if it has none. The shapes
are the same, so a wrong assumption would exchange rows. The trainer's settings decide how the backend joins the parts; the
model's table says what the model has.
"""

from __future__ import annotations

from collections.abc import Mapping

from ckptconv.errors import CkptconvError, Kind
from ckptconv.models.family import Family
from ckptconv.tensors.checkpoint import StoredTensor

_GATED, _UNGATED = "gated Shard(0)", "ungated Shard(0)"


def check_gates(tensors: Mapping[str, StoredTensor], family: Family) -> None:
    """Raise CkptconvError if rank files were joined as if the MLP had a gate and the table has none, or vice versa.

    Args:
        tensors: the checkpoint's, by canonical name; only placements of rank files are looked at.
        family: the table of the model.
    """
    joined = {name: one.placement for name, one in tensors.items() if one.placement in (_GATED, _UNGATED)}
    if not joined:
        return
    rules = [*family.variant_for(tensors).rules]
    for name, placement in joined.items():
        rule = next(
            (rule for rule in rules if any(pattern.match(name) for pattern in rule.trained.names)), None
        )
        if rule is not None and rule.ungated != (placement == _UNGATED):
            raise CkptconvError(
                "the rank files do not show whether the MLP has a gate, and the trainer's settings do not fit the model",
                where=name,
                found="no gate by the settings"
                if placement == _UNGATED
                else "a gate, or no settings next to the files",
                wanted=f"{'no gate' if rule.ungated else 'a gate'}, as {family.name} has",
                hint="save the checkpoint as torch_dist, or pass the trained model: --config DIR",
                kind=Kind.UNSUPPORTED,
            )
