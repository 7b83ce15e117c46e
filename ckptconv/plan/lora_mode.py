"""Decides whether LoRA factors are merged into the weights, written as an adapter, or both."""

from __future__ import annotations

from ckptconv.errors import CkptconvError, Kind
from ckptconv.models import lora
from ckptconv.plan.options import Options
from ckptconv.plan.stored import Stored
from ckptconv.tensors.checkpoint import Checkpoint


def mode_of(stored: Stored, options: Options, base: Checkpoint | None) -> tuple[str, tuple[str, ...]]:
    """Decide what is written.

    Args:
        stored: the checkpoint's tensors.
        options: the user's choices.
        base: the base model; None if none is given.

    Returns:
        "merge", "adapter", "both", or "none" if no LoRA is stored; and the notes for the user.

    Raises:
        CkptconvError: the user's choice contradicts the stored tensors.
    """
    parts = stored.parts
    lora.check_config(stored.lora, onto_base=base is not None)
    if not parts.factors and not parts.tokens:
        given = "--lora" if options.lora is not None else "--lora-alpha"
        if options.lora is not None or options.lora_alpha is not None:
            raise CkptconvError(
                "this checkpoint has no LoRA weights", hint=f"omit {given}", kind=Kind.DOES_NOT_FIT
            )
        return "none", ()
    if not parts.holds_base and base is None:
        if options.lora in ("merge", "both"):
            raise CkptconvError(
                "the checkpoint holds only LoRA weights",
                hint="pass the base model: --base DIR or org/name",
                kind=Kind.USAGE,
            )
        note = "only LoRA weights are stored, so a PEFT adapter is written; pass --base BASE_MODEL to get a merged model"
        return "adapter", (note,) if options.lora is None else ()
    if parts.holds_base and base is not None:
        raise CkptconvError(
            "the checkpoint already contains the base weights", hint="omit --base", kind=Kind.DOES_NOT_FIT
        )
    if options.lora is not None:
        return options.lora, ()
    weights = f"the weights of the base model in {base.root.name}" if base is not None else "the weights"
    modules = len({each.module for each in parts.factors} | {each.module for each in parts.tokens})
    note = f"LoRA weights of {modules} modules are merged into {weights}; use --lora adapter to export them instead"
    return "merge", (note,)
