"""Suggests the next command, with a summary of what it would write if the plan can be made quickly."""

from __future__ import annotations

import shlex
from pathlib import Path
from typing import Any

from ckptconv.commands.inspect.records import Next
from ckptconv.commands.planning import NO_CONFIG, plan_for, require_base
from ckptconv.errors import CkptconvError
from ckptconv.plan import NeedsReading, Options, Plan, unread
from ckptconv.tensors.checkpoint import Checkpoint
from ckptconv.tensors.source_spec import Step

_MANY = 20_000  # slices; a plan with more of them takes longer than a second


def next_of(checkpoint: Checkpoint, path: Path, config: dict[str, Any], step: Step | None = None) -> Next:
    """Suggest the next command, and plan it.

    Args:
        checkpoint: the checkpoint.
        path: where it is, as the user named it.
        config: the model's config.json.
        step: the step that the user asked for; None if the command needs no --step.
    """
    here = shlex.quote(str(path)) + (f" --step {step}" if step is not None else "")
    if not checkpoint.is_sharded and config and not checkpoint.lora.is_folder:
        return Next(f"ckptconv verify {here}")
    command = f"ckptconv merge {here} MODEL"
    options = Options()
    try:
        require_base(checkpoint, options)
        count = sum(len(tensor.view.chunks) for tensor in checkpoint.tensors.values())
        if count > _MANY:
            return Next(
                command, why_not=f"{count:,} slices take a while to plan", hint=f"{command} --dry-run"
            )
        plan = plan_for(checkpoint, options, equal=unread)
    except NeedsReading as error:
        return Next(command, why_not=error.what, hint=f"{command} --dry-run")
    except CkptconvError as error:
        if error.what == NO_CONFIG:
            hint = "no config.json here; BASE_MODEL is a folder or Hub repo"
            return Next(f"{command} --config BASE_MODEL", hint=hint)
        return Next(command, why_not=error.what, hint=error.hint or "")
    return Next(command, _writes(plan), len(plan.outputs), len(plan.files), plan.nbytes)


def _writes(plan: Plan) -> str:
    """The kind of model that a plan writes: "a PEFT adapter", "bfloat16 (from float32)"."""
    if plan.is_adapter:
        return "a PEFT adapter"
    said = {f"{after} (from {before})" if before != after else after for before, after, _, _ in plan.casts}
    return ", ".join(sorted(said))
