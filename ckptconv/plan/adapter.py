"""Plans the adapter: the LoRA factors under PEFT's names."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

from ckptconv.models.lora.adapter import (
    adapter_config,
    adapter_tensors,
    stack_tensors,
    token_tensors,
    trained_tensors,
)
from ckptconv.models.lora.place import Placed
from ckptconv.plan import placing, shards
from ckptconv.plan.ledger import used_by
from ckptconv.plan.options import Options
from ckptconv.plan.records import Left, Output, Part
from ckptconv.plan.stored import Stored
from ckptconv.tensors.dtypes import FLOATS, is_float


def plan_adapter(stored: Stored, config: dict[str, Any], options: Options, folder: str = "") -> Part:
    """Plan adapter_model.safetensors and adapter_config.json.

    Args:
        stored: the checkpoint's tensors.
        config: the model's config.json; {} if it is not known.
        options: the user's choices.
        folder: the subfolder of the output to write to, with a "/" at its end; "" for the output itself.

    Raises:
        CkptconvError: PEFT has no name for an update, or LoRA's alpha is not known.
    """
    parts = stored.parts
    placement = placing.placed_alone(parts, stored.checkpoint.naming, stored.lora, config)
    outputs = {f"{folder}{output.name}": output for output in _outputs(stored, placement.placed, options)}
    settings = adapter_config(placement.placed, parts, stored.lora, options.lora_alpha, config)
    reason = "base weight, not part of an adapter"
    base = [(name, view, reason) for name, view in parts.weights.items() if name not in parts.trained]
    left: list[Left] = [*base, *placement.left_out]
    sources = [output.source for output in outputs.values()]
    return Part(
        outputs=outputs,
        files=(shards.out_file(f"{folder}adapter_model.safetensors", outputs),),
        used=used_by(sources, shared=sources),
        left=tuple(left),
        texts={f"{folder}adapter_config.json": settings},
    )


def _outputs(stored: Stored, placed: Sequence[Placed], options: Options) -> Iterator[Output]:
    """The tensors that PEFT saves: the factors, and the weights that were trained as a whole."""
    parts = stored.parts
    forced = options.dtype if options.dtype in FLOATS else None
    tensors = trained_tensors(parts)
    tensors += [tensor for each in placed for tensor in adapter_tensors(each)]
    tensors += [tensor for each in parts.stacks for tensor in stack_tensors(each)]
    tensors += token_tensors(parts)
    for name, view, shape, origin in tensors:
        dtype = forced if forced and is_float(view.dtype) else view.dtype
        yield Output(name, shape, dtype, view, (stored.name(origin),))
