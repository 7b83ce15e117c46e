"""Whether LoRA factors are merged into the weights, written as an adapter, or both."""

from __future__ import annotations

from ckptconv.errors import CkptconvError
from ckptconv.models import lora
from ckptconv.plan.records import Options
from ckptconv.plan.stored import Stored
from ckptconv.tensors.checkpoint import Checkpoint


def mode_of(stored: Stored, options: Options, base: Checkpoint | None) -> tuple[str, tuple[str, ...]]:
    """What is written, and what the user must know of that choice.

    Returns:
        "merge", "adapter", "both", or "none" where no LoRA is stored; and the notes.

    Raises:
        CkptconvError: where what is asked for does not go with what is stored.
    """
    parts = stored.parts
    lora.check_config(stored.lora, onto_base=base is not None)
    if not parts.factors:
        if options.lora in ("adapter", "both"):
            raise CkptconvError("no LoRA tensors are in this checkpoint", hint="omit --lora")
        if base is not None:
            raise CkptconvError("--base is for checkpoints that hold LoRA tensors alone", hint="omit --base")
        return "none", ()
    if not parts.holds_base and base is None:
        if options.lora in ("merge", "both"):
            raise CkptconvError(
                "the checkpoint holds LoRA tensors alone", hint="name the base model's folder: --base DIR"
            )
        note = "LoRA tensors alone are stored: writing a PEFT adapter (with --base DIR: the merged model)"
        return "adapter", (note,) if options.lora is None else ()
    if parts.holds_base and base is not None:
        raise CkptconvError("the checkpoint holds its base weights itself", hint="omit --base")
    if options.lora is not None:
        return options.lora, ()
    weights = f"the weights of the base model in {base.root.name}" if base is not None else "the weights"
    modules = len(parts.factors)
    note = f"LoRA on {modules} modules is merged into {weights} (--lora adapter exports it instead)"
    return "merge", (note,)
