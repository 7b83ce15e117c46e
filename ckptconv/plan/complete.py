"""What a checkpoint does not hold because it was frozen, taken from the base model.

DeepSpeed's `exclude_frozen_parameters` and torch's `ignore_frozen_params` omit frozen parameters from a save.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

from ckptconv.errors import CkptconvError, Kind
from ckptconv.models import mtp, ties
from ckptconv.plan.records import Fill, Filled
from ckptconv.tensors.checkpoint import Checkpoint
from ckptconv.tensors.view import View


def completed(
    tensors: Filled, config: Mapping[str, Any] | None, base: Checkpoint
) -> tuple[Filled, tuple[View, ...], str]:
    """The tensors with those of the base model that the checkpoint lacks.

    Args:
        tensors: By final name.
        config: The model's config.json.
        base: A model folder under the Hub's names.

    Returns:
        The tensors, the base model's that were added, and a note on them.

    Raises:
        CkptconvError: where nothing is missing, so that the base model has no use.
    """
    known = dict(config or {})
    layers = re.compile("|".join(mtp.patterns(known)))
    tied = {tie.name for tie in ties.ties(known, base.tensors)}
    added = {
        name: Fill(tensor.view, tensor.view.shape, (f"base: {name}",))
        for name, tensor in base.tensors.items()
        if name not in tensors and name not in tied and not layers.search(name)
    }
    if not added:
        raise CkptconvError(
            "the checkpoint lacks nothing that the base model has",
            where=base.root,
            wanted="--base for LoRA tensors alone, or for a checkpoint without its frozen parameters",
            hint="omit --base",
            kind=Kind.DOES_NOT_FIT,
        )
    listed = ", ".join(list(added)[:3]) + (f" and {len(added) - 3:,} more" if len(added) > 3 else "")
    note = (
        f"{len(added):,} tensors that the checkpoint does not hold are taken from {base.root.name}: {listed}"
    )
    return (
        {**tensors, **added},
        tuple(fill.source for fill in added.values() if isinstance(fill.source, View)),
        note,
    )
