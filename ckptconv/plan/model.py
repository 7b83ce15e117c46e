"""The model's part of a plan, step by step: weights -> rename -> tie -> place LoRA -> dtypes -> lay out.

Each step takes what the one before it returned and returns a small record; nothing is changed in place. Every record
says what its step left out (`left`) and what the user must know (`notes`); `plan_model` adds these up.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from ckptconv.models import lora
from ckptconv.models.config import check_fit, corrected
from ckptconv.plan import dtype_policy, placing, shards
from ckptconv.plan.fuse import fuse
from ckptconv.plan.ledger import used_by
from ckptconv.plan.options import Options
from ckptconv.plan.records import Output, Part
from ckptconv.plan.rename import rename
from ckptconv.plan.stored import Stored
from ckptconv.plan.tied import Equal, Tied, tie
from ckptconv.plan.weights import Weights, choose_weights
from ckptconv.tensors.checkpoint import Checkpoint


def plan_model(
    stored: Stored, config: dict[str, Any] | None, options: Options, base: Checkpoint | None, equal: Equal
) -> tuple[Part, Weights]:
    """Plan the model's safetensors files and its config.json.

    Args:
        stored: the checkpoint's tensors.
        config: the model's config.json; None where it is not known.
        options: the user's choices.
        base: the model that LoRA stored alone is merged into.
        equal: compares two stored tensors; see `tied.tie`.

    Returns:
        The part of the plan, and the weights it began with.

    Raises:
        CkptconvError: where the tensors do not become the model that the config describes.
    """
    weights = choose_weights(stored, config, base)
    renamed = rename(weights, options)
    tied = (
        tie(renamed.tensors, renamed.config, equal) if base is None else Tied(renamed.tensors, renamed.config)
    )
    placement = _place(stored, weights, tied, base is not None)
    filled = fuse(tied.tensors, placement.placed, stored.lora, options.lora_alpha)
    typed = dtype_policy.typed(filled, tied.config, options.dtype, stored.checkpoint.naming)
    outputs = {
        name: Output(name, fill.shape, typed.dtypes[name], fill.source, tuple(map(stored.name, fill.trained)))
        for name, fill in filled.items()
    }
    outputs, repeated = _repeat(outputs, renamed.copies)
    config, corrections = _checked(tied.config, outputs, stored.checkpoint)
    part = Part(
        outputs=outputs,
        files=shards.shards(outputs, options.max_shard_size) if outputs else (),
        used=used_by([fill.source for fill in filled.values()], weights.shared),
        left=(*weights.left, *renamed.left, *tied.left, *placement.left_out),
        config=config,
        notes=(*weights.notes, *renamed.notes, *tied.notes, *repeated, *corrections),
        dtype_said=typed.sentence,
        rules=renamed.rules,
    )
    return part, weights


def _place(stored: Stored, weights: Weights, tied: Tied, on_base: bool) -> lora.Placement:
    """Every LoRA update at the final name of the weight that it belongs to."""
    parts, naming, config = stored.parts, stored.checkpoint.naming, tied.config or {}
    if not parts.factors:
        return lora.Placement(())
    if on_base:
        return placing.placed_on(tied.tensors, parts, naming, stored.lora, config)
    return placing.placed_in(tied.tensors, weights.tensors, parts, weights.naming, stored.lora, config)


def _repeat(
    outputs: dict[str, Output], copies: Mapping[str, str]
) -> tuple[dict[str, Output], tuple[str, ...]]:
    """What the Hub's model has twice: the same source once more, whatever became of it on the way."""
    written = {name: of for name, of in copies.items() if of in outputs}
    twice = {name: replace(outputs[of], name=name, repeats=of) for name, of in written.items()}
    note = f"written twice, as the Hub's model has them: {', '.join(written)}"
    return {**outputs, **twice}, (note,) if written else ()


def _checked(
    config: dict[str, Any] | None, outputs: Mapping[str, Output], checkpoint: Checkpoint
) -> tuple[dict[str, Any] | None, tuple[str, ...]]:
    """The config as it will be written, once it is sure that it describes these outputs."""
    if config is None:
        return None, ()
    shapes = {name: output.shape for name, output in outputs.items()}
    check_fit(config, shapes, checkpoint.root)
    most = dtype_policy.most((output.dtype, output.nbytes) for output in outputs.values())
    notes: list[str] = []
    return corrected(config, shapes, most, notes), tuple(notes)
