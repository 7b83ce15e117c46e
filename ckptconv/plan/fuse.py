"""Step 4: LoRA updates are merged into the weights that they belong to."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from ckptconv.compute import Added, Decomposed, Fuse
from ckptconv.errors import CkptconvError
from ckptconv.models import lora
from ckptconv.plan.records import Fill, Filled
from ckptconv.tensors.view import View

Config = Mapping[str, Any]


def fuse(named: Filled, placed: tuple[lora.Placed, ...], meta: Config, alpha: float | None) -> Filled:
    """Merge updates into the weights.

    Args:
        named: the model's tensors by final name.
        placed: the updates, each with the final name of its weight.
        meta: the LoRA settings of the checkpoint.
        alpha: LoRA's alpha where the user gives it.

    Raises:
        CkptconvError: where an update does not fit its weight.
    """
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
            fused[each.weight] = Fill(Fuse(*sides), shape, (*origins, *names))
        else:
            _check_lengths(each)
            update = Decomposed(*sides, each.magnitude, each.by_column)
            fused[each.weight] = Fill(update, shape, (*origins, *names))
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


def _add_bias(fused: dict[str, Fill], each: lora.Placed, scale: float) -> None:
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
    fused[name] = Fill(Added(source, view, scale), shape, (*origins, stored))
