"""One model among the names of a flat state dict: rank files and DeepSpeed save whatever module the trainer wrapped.

That module may hold the model as an attribute (`model.model.layers...`, an engine's `module.`), or several
models (student and teacher, model and EMA). The rules are those of distributed checkpoints: backends/dcp/names.py.
"""

from __future__ import annotations

from dataclasses import replace

from ckptconv.backends.dcp.names import choose_root
from ckptconv.tensors.checkpoint import Checkpoint, Skipped
from ckptconv.tensors.names import without_wrappers

_READ_ALREADY = ("dcp",)


def one_model(checkpoint: Checkpoint) -> Checkpoint:
    """The checkpoint with one model's tensors, under that model's own names.

    Raises:
        CkptconvError: where several models are stored and their names do not rank them.
    """
    if checkpoint.naming != "transformers" or checkpoint.backend in _READ_ALREADY:
        return checkpoint
    bare = {without_wrappers(name): name for name in checkpoint.tensors}
    if len(bare) != len(checkpoint.tensors) or any(name.startswith("base_model.") for name in bare):
        return checkpoint  # two tensors of one name are reported where names are unwrapped; PEFT's names are the LoRA rules'
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
    notes = (*chosen.notes, f"the prefix {prefix!r} is taken off every name") if prefix else chosen.notes
    return replace(
        checkpoint,
        tensors={own: checkpoint.tensors[bare[short]] for short, own in chosen.names.items()},
        skipped=(*checkpoint.skipped, *(Skipped("tensors", size, why) for why, size in left.items())),
        notes=(*checkpoint.notes, *notes),
    )
