"""Replaces float8 codes by the weights that they stand for; see `quantised`, which decides whether it is necessary."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from ckptconv.compute.sources import Dequantised, Scales
from ckptconv.errors import CkptconvError
from ckptconv.models import quantised
from ckptconv.plan.quantised import ACTIVATIONS, SCALES, Plain
from ckptconv.plan.records import Fill, Filled, Left
from ckptconv.tensors.dtypes import FLOATS, from_text
from ckptconv.tensors.view import View


def dequantised(named: Filled, config: Mapping[str, Any]) -> Plain:
    """Replace all float8 weights by their values.

    Args:
        named: the model's tensors by final name.
        config: the model's config.json.

    Raises:
        CkptconvError: scales are missing, or do not fit their codes.
    """
    made: dict[str, Fill] = {}
    gone: set[str] = set()
    left: list[Left] = []
    for name, fill in named.items():
        if not fill.source.dtype.startswith("float8"):
            made[name] = fill
            continue
        scale_name = next((name + tail for tail in SCALES if name + tail in named), None)
        if scale_name is None or not isinstance(fill.source, View):
            raise CkptconvError(
                f"{name} is stored in {fill.source.dtype}, and its scales are not found",
                wanted=f"{name}{SCALES[0]}",
            )
        scales = _scales(name, fill, named[scale_name], config)
        gone.add(scale_name)
        made[name] = Fill(
            Dequantised(fill.source, scales=scales), fill.shape, (*fill.trained, *named[scale_name].trained)
        )
    count = sum(isinstance(fill.source, Dequantised) for fill in made.values())
    for name in list(made):
        lonely = name.endswith(SCALES) and name not in gone
        if name in gone or lonely or name.rpartition(".")[2] in ACTIVATIONS:
            source = made.pop(name).source
            if name not in gone and isinstance(source, View):
                left.append(
                    (named[name].trained[0], source, "a scale of a weight that is not quantised any more")
                )
    note = f"{count} float8 weights are dequantised, since LoRA is not added to codes: written without their scales"
    return Plain(made, tuple(left), (note,))


def _scales(name: str, fill: Fill, scale: Fill, config: Mapping[str, Any]) -> Scales:
    stated = config.get("dtype") or config.get("torch_dtype")
    dtype = from_text(stated) if stated else None
    dtype = dtype if dtype in FLOATS else "bfloat16"
    view, shape = scale.source, fill.source.shape
    if not isinstance(view, View) or shape != fill.shape:
        raise CkptconvError(f"{name} is stored in another layout than its scales")
    if view.numel == 1:
        return Scales(view, (0, 0), dtype)
    block = (quantised.stated_in(config) or {}).get("weight_block_size")
    fits = (
        isinstance(block, list)
        and len(block) == 2
        and all(isinstance(n, int) and n > 0 for n in block)
        and len(shape) >= 2
        and view.shape == (*shape[:-2], -(-shape[-2] // block[0]), -(-shape[-1] // block[1]))
    )
    if not fits or not isinstance(block, list):
        raise CkptconvError(
            f"the scales of {name} do not fit it",
            found=f"{' × '.join(map(str, view.shape))} scales for {' × '.join(map(str, shape))}",
            wanted=f"one, or one per block of weight_block_size {block}",
        )
    return Scales(view, (block[0], block[1]), dtype)
