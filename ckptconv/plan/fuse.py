"""Step 4: merges LoRA updates into the weights that they belong to."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from ckptconv.compute.sources import Added, Decomposed, Dequantised, Fuse, Rewritten
from ckptconv.errors import CkptconvError, Kind
from ckptconv.models import lora
from ckptconv.models.lora.place import Placed
from ckptconv.models.lora.scaling import scale as scale_of
from ckptconv.plan.records import Fill, Filled
from ckptconv.tensors.view import View

Config = Mapping[str, Any]


def fuse(named: Filled, placed: tuple[Placed, ...], meta: Config, alpha: float | None) -> Filled:
    """Merge updates into the weights.

    Args:
        named: the model's tensors by final name.
        placed: the updates, each with the final name of its weight.
        meta: the LoRA settings of the checkpoint.
        alpha: LoRA's alpha if the user gives it, else None.

    Raises:
        CkptconvError: an update does not fit its weight.
    """
    fused = dict(named)
    for each in placed:
        factors = each.factors
        if each.weight not in named:
            raise CkptconvError(f"LoRA on {factors.module}, but the model has no weight of that name")
        source, shape, origins = named[each.weight]
        if each.shape != shape or not isinstance(source, View | Dequantised):
            raise CkptconvError(
                f"LoRA on {factors.module} does not fit its weight",
                found=" × ".join(map(str, each.shape)),
                wanted=" × ".join(map(str, shape)),
            )
        if each.weight in fused and fused[each.weight] is not named[each.weight]:
            raise CkptconvError(f"two LoRA pairs update {each.weight}")
        scale = scale_of(factors, meta, alpha, each.parameter)
        names = tuple(name for name, _ in factors.stored if factors.bias is None or name != factors.bias[0])
        codes = source if isinstance(source, View) else source.base
        scales = None if isinstance(source, View) else source.scales
        sides = (codes, each.left, each.right, scale)
        if each.magnitude is None:
            fused[each.weight] = Fill(Fuse(*sides, scales=scales), shape, (*origins, *names))
        else:
            _check_lengths(each)
            update = Decomposed(*sides, each.magnitude, each.by_column, scales=scales)
            fused[each.weight] = Fill(update, shape, (*origins, *names))
        if each.bias is not None:
            _add_bias(fused, each, scale)
    return fused


def rewrite(named: Filled, tokens: Sequence[lora.Tokens]) -> Filled:
    """Replace single rows of embeddings and heads by trained ones.

    Args:
        named: the model's tensors by final name.
        tokens: the rows, each with the trained name of its weight.

    Raises:
        CkptconvError: the weight is not in the model, has another width or too few rows, or has LoRA too.
    """
    made = dict(named)
    for each in tokens:
        name = _weight_of(each, named)
        if name is None:
            raise CkptconvError(f"trained tokens of {each.module}, but the model has no weight of that name")
        source, shape, origins = made[name]
        rows = each.rows[1]
        if not isinstance(source, View) or len(shape) != 2 or rows.shape[1] != shape[1]:
            raise CkptconvError(
                f"the trained tokens of {each.module} do not fit its weight",
                found=f"{list(rows.shape)} for {list(shape)}",
                wanted="rows of the weight's width, and no LoRA on the same module",
            )
        lora.check_bounds(name, each.indices, shape[0])
        made[name] = Fill(Rewritten(source, rows, each.indices), shape, (*origins, each.rows[0]))
    return made


def _weight_of(tokens: lora.Tokens, named: Filled) -> str | None:
    for name, fill in named.items():
        if fill.trained[:1] == (tokens.weight,):
            return name
    return tokens.weight if tokens.weight in named else None


def _check_lengths(each: Placed) -> None:
    wanted = each.shape[1 if each.by_column else 0]
    if each.magnitude is not None and each.magnitude.numel != wanted:
        raise CkptconvError(
            f"the magnitudes of {each.factors.module} do not fit its weight",
            found=f"{each.magnitude.numel:,}",
            wanted=f"{wanted:,}",
        )


def _add_bias(fused: dict[str, Fill], each: Placed, scale: float) -> None:
    assert each.bias is not None
    name, view = each.bias
    source, shape, origins = fused.get(name, (None, (), ()))
    if not isinstance(source, View) or source.numel != view.numel:
        raise CkptconvError(
            f"LoRA on {each.factors.module} has a bias (lora_bias), and the model has none to add it to",
            wanted=name,
            hint="export it as it is: --lora adapter",
            kind=Kind.UNSUPPORTED,
        )
    stored = each.factors.bias[0] if each.factors.bias else ""
    fused[name] = Fill(Added(source, view, scale), shape, (*origins, stored))
