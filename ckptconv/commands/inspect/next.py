"""Suggests the next command, and plans it where that is quick: what it would write, and whether that is a whole model."""

from __future__ import annotations

import shlex
from pathlib import Path
from typing import Any, NamedTuple

from ckptconv.commands.inspect.records import Next
from ckptconv.commands.planning import NO_CONFIG, plan_for, require_base
from ckptconv.errors import CkptconvError, Kind
from ckptconv.plan import NeedsReading, NotTheModel, Options, Plan, require_fit, unread, why_unchecked
from ckptconv.tensors.checkpoint import Checkpoint
from ckptconv.tensors.source_spec import Step
from ckptconv.tensors.view import View

_MANY = 20_000  # slices; a plan with more of them takes longer than a second


class Fit(NamedTuple):
    """Whether the planned folder is a whole model; see `Inspection.complete`."""

    complete: bool | None
    why_not: str = ""


def next_and_fit(
    checkpoint: Checkpoint, path: Path, config: dict[str, Any], step: Step | None = None
) -> tuple[Next, Fit]:
    """Suggest the next command, plan it, and compare what it would write with the class that the config names.

    Args:
        checkpoint: the checkpoint.
        path: where it is, as the user named it.
        config: the model's config.json.
        step: the step that the user asked for; None if the command needs no --step.
    """
    here = shlex.quote(str(path)) + (f" --step {step}" if step is not None else "")
    if checkpoint.naming == "hub" and config and not checkpoint.lora.is_folder:
        return Next(f"ckptconv verify {here}"), _fit_of_folder(checkpoint, config)
    command = f"ckptconv merge {here} MODEL"
    options = Options()
    try:
        require_base(checkpoint, options)
        count = sum(len(tensor.view.chunks) for tensor in checkpoint.tensors.values())
        if count > _MANY:
            why_not = f"{count:,} slices take a while to plan"
            return Next(command, why_not=why_not, hint=f"{command} --dry-run"), Fit(None, why_not)
        plan = plan_for(checkpoint, options, equal=unread)
    except NeedsReading as error:
        return Next(command, why_not=error.what, hint=f"{command} --dry-run"), _fit_if_tied(
            checkpoint, options
        )
    except CkptconvError as error:
        if error.what == NO_CONFIG:
            hint = "no config.json here; BASE_MODEL is a folder or Hub repo"
            return Next(f"{command} --config BASE_MODEL", hint=hint), Fit(None, "no config.json")
        return Next(command, why_not=error.what, hint=error.hint or ""), _fit_of_refusal(error)
    return Next(command, _writes(plan), len(plan.outputs), len(plan.files), plan.nbytes), _fit_of_plan(plan)


def _fit_of_folder(checkpoint: Checkpoint, config: dict[str, Any]) -> Fit:
    """The fit of a Hugging Face folder, whose tensors have their final names."""
    shapes = {name: tensor.view.shape for name, tensor in checkpoint.tensors.items()}
    dtypes = {name: tensor.view.dtype for name, tensor in checkpoint.tensors.items()}
    try:
        require_fit(config, shapes, checkpoint.root, [], dtypes)
    except CkptconvError as error:
        return _fit_of_refusal(error)
    return _checked(config)


def _fit_if_tied(checkpoint: Checkpoint, options: Options) -> Fit:
    """The fit where stored values decide whether the head is written: a model whose config ties it is whole either way."""

    def assumed(one: View, two: View) -> bool:
        return True

    try:
        return _fit_of_plan(plan_for(checkpoint, options, equal=assumed))
    except CkptconvError as error:
        return _fit_of_refusal(error)


def _fit_of_plan(plan: Plan) -> Fit:
    if plan.is_adapter:
        return Fit(None, "merge writes an adapter")
    return _checked(plan.config) if plan.config is not None else Fit(None, "no config.json")


def _checked(config: dict[str, Any]) -> Fit:
    """The fit of tensors that `require_fit` did not refuse."""
    why_not = why_unchecked(config)
    return Fit(None if why_not else True, why_not)


def _fit_of_refusal(error: CkptconvError) -> Fit:
    """A refusal by the model check says what is missing; after any other one the tensors were not compared."""
    if isinstance(error, NotTheModel):
        wanted = "" if error.kind is Kind.INCOMPLETE else f" (expected {error.wanted})"
        return Fit(False, f"{error.what}: {error.found}{wanted}")
    return Fit(None, error.what)


def _writes(plan: Plan) -> str:
    """The kind of model that a plan writes: "a PEFT adapter", "bfloat16 (from float32)"."""
    if plan.is_adapter:
        return "a PEFT adapter"
    dtypes = {f"{after} (from {before})" if before != after else after for before, after, _, _ in plan.casts}
    return ", ".join(sorted(dtypes))
