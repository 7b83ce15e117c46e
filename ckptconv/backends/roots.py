"""Finds the model in a flat state dict, whose names begin at the module that the trainer wrapped.

FSDP rank files and DeepSpeed save that module. It may hold the model as an attribute (`model.model.layers...`, an engine's
`module.`), or several models (student and teacher, model and EMA). The rules are those of backends/dcp/names.py.
"""

from __future__ import annotations

from dataclasses import replace

from ckptconv.backends.dcp.names import choose_root
from ckptconv.tensors.checkpoint import Checkpoint, Skipped
from ckptconv.tensors.names import without_wrappers

_READ_ALREADY = ("dcp",)


def one_model(checkpoint: Checkpoint) -> Checkpoint:
    """Keep one model's tensors, under that model's own names.

    Args:
        checkpoint: what a backend read.

    Returns:
        The checkpoint with the tensors of one model; the others are in `skipped`, and a prefix that was removed is noted.

    Raises:
        CkptconvError: several models are stored, and their names do not tell which one was trained.
    """
    if checkpoint.naming != "transformers" or checkpoint.backend in _READ_ALREADY:
        return checkpoint
    bare = {without_wrappers(name): name for name in checkpoint.tensors}
    if len(bare) != len(checkpoint.tensors) or any(name.startswith("base_model.") for name in bare):
        return (
            checkpoint  # models/hub_names reports two tensors of one name; the LoRA rules read PEFT's names
        )
    shapes: dict[str, tuple[int, ...] | None] = {
        short: checkpoint.tensors[name].view.shape for short, name in bare.items()
    }
    chosen = choose_root({name: (name,) for name in bare}, shapes, checkpoint.root, {})
    if all(short == own for short, own in chosen.names.items()) and not chosen.why_not:
        return checkpoint
    left: dict[str, int] = {}
    for short, why in chosen.why_not.items():
        left[why] = left.get(why, 0) + checkpoint.tensors[bare[short]].view.nbytes
    prefix = next((short[: -len(own)] for short, own in chosen.names.items() if short != own), "")
    notes = (*chosen.notes, f"the prefix {prefix!r} is removed from every name") if prefix else chosen.notes
    return replace(
        checkpoint,
        tensors={own: checkpoint.tensors[bare[short]] for short, own in chosen.names.items()},
        skipped=(*checkpoint.skipped, *(Skipped("tensors", size, why) for why, size in left.items())),
        notes=(*checkpoint.notes, *notes),
    )
