"""LoRA in a plan: whether it is merged or exported, the weights that updates are merged into, and an adapter's tensors."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from ckptconv.compute import Added, Decomposed, Fuse
from ckptconv.errors import CkptconvError
from ckptconv.models import lora
from ckptconv.plan.records import Filled, Options, Output
from ckptconv.tensors.checkpoint import Checkpoint
from ckptconv.tensors.dtypes import FLOATS, is_float
from ckptconv.tensors.view import View

Config = Mapping[str, Any]


def mode_of(
    parts: lora.Separated,
    meta: Mapping[str, Any],
    options: Options,
    base: Checkpoint | None,
    notes: list[str],
) -> str:
    """ "merge", "adapter", "both", or "none" where no LoRA is stored."""
    lora.check_config(meta, onto_base=base is not None)
    if not parts.factors:
        if options.lora in ("adapter", "both"):
            raise CkptconvError("no LoRA tensors are in this checkpoint", hint="leave --lora away")
        if base is not None:
            raise CkptconvError(
                "--base is for checkpoints that hold LoRA tensors alone", hint="leave --base away"
            )
        return "none"
    if not parts.holds_base and base is None:
        if options.lora in ("merge", "both"):
            raise CkptconvError(
                "the checkpoint holds LoRA tensors alone", hint="name the base model's folder: --base DIR"
            )
        if options.lora is None:
            notes.append(
                "LoRA tensors alone are stored: writing a PEFT adapter (with --base DIR: the merged model)"
            )
        return "adapter"
    if parts.holds_base and base is not None:
        raise CkptconvError("the checkpoint holds its base weights itself", hint="leave --base away")
    if options.lora is None:
        weights = f"the weights of the base model in {base.root.name}" if base is not None else "the weights"
        notes.append(
            f"LoRA on {len(parts.factors)} modules is merged into {weights} (--lora adapter exports it instead)"
        )
    return options.lora or "merge"


def fuse(named: Filled, placed: tuple[lora.Placed, ...], meta: Config, alpha: float | None) -> Filled:
    """Updates merged into the weights. Raises CkptconvError where one does not fit."""
    fused = dict(named)
    for each in placed:
        factors = each.factors
        if each.weight not in named:
            raise CkptconvError(f"LoRA on {factors.module}, but the model has no weight of that name")
        source, shape, origins = named[each.weight]
        if each.shape != shape or not isinstance(source, View):
            raise CkptconvError(
                f"LoRA on {factors.module} does not fit its weight",
                found=" × ".join(map(str, each.shape)),
                wanted=" × ".join(map(str, shape)),
            )
        if each.weight in fused and fused[each.weight] is not named[each.weight]:
            raise CkptconvError(f"two LoRA pairs update {each.weight}")
        scale = lora.scale(factors, meta, alpha, each.parameter)
        names = tuple(name for name, _ in factors.stored if factors.bias is None or name != factors.bias[0])
        sides = (source, each.left, each.right, scale)
        if each.magnitude is None:
            fused[each.weight] = (Fuse(*sides), shape, (*origins, *names))
        else:
            _check_lengths(each)
            update = Decomposed(*sides, each.magnitude, each.by_column)
            fused[each.weight] = (update, shape, (*origins, *names))
        if each.bias is not None:
            _add_bias(fused, each, scale)
    return fused


def _check_lengths(each: lora.Placed) -> None:
    wanted = each.shape[1 if each.by_column else 0]
    if each.magnitude is not None and each.magnitude.numel != wanted:
        raise CkptconvError(
            f"the magnitudes of {each.factors.module} do not fit its weight",
            found=f"{each.magnitude.numel:,}",
            wanted=f"{wanted:,}",
        )


def _add_bias(fused: Filled, each: lora.Placed, scale: float) -> None:
    assert each.bias is not None
    name, view = each.bias
    source, shape, origins = fused.get(name, (None, (), ()))
    if not isinstance(source, View) or source.numel != view.numel:
        raise CkptconvError(
            f"LoRA on {each.factors.module} has a bias (lora_bias), and the model has none to add it to",
            wanted=name,
            hint="export it as it is: --lora adapter",
        )
    stored = each.factors.bias[0] if each.factors.bias else ""
    fused[name] = (Added(source, view, scale), shape, (*origins, stored))


def adapter_outputs(
    placed: tuple[lora.Placed, ...], parts: lora.Separated, options: Options
) -> Iterator[Output]:
    """What PEFT saves: the factors, and the weights that were trained whole."""
    forced = options.dtype if options.dtype in FLOATS else None
    tensors = lora.trained_tensors(parts)
    tensors += [tensor for each in placed for tensor in lora.adapter_tensors(each)]
    tensors += [tensor for each in parts.stacks for tensor in lora.stack_tensors(each)]
    for name, view, shape, origin in tensors:
        dtype = forced if forced and is_float(view.dtype) else view.dtype
        yield Output(name, shape, dtype, view, (origin,))
