"""Step 4 for quantised weights: float8 weights that LoRA updates are dequantised; other quantised weights are refused.

LoRA is never added to codes. If no update touches a quantised weight, codes and scales are copied as they are.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass
from typing import Any

from ckptconv.compute import Dequantised, Scales
from ckptconv.errors import CkptconvError, Kind
from ckptconv.models import quantised
from ckptconv.plan.records import Fill, Filled, Left
from ckptconv.tensors.dtypes import FLOATS, from_text, is_float
from ckptconv.tensors.view import View

_SCALES = (
    "_scale_inv",
    "_scale",
)  # of X.weight: X.weight_scale_inv (transformers, DeepSeek), X.weight_scale (vLLM)
_ACTIVATIONS = ("input_scale", "activation_scale")


@dataclass(frozen=True, slots=True)
class Plain:
    """The tensors, with float8 codes dequantised if that was necessary.

    Args:
        tensors: by final name.
        left: the scales of activations, and the scales of weights that the adapter replaced.
        notes: what the user must know.
    """

    tensors: Filled
    left: tuple[Left, ...] = ()
    notes: tuple[str, ...] = ()


def refuse(module: str, named: Collection[str], config: Mapping[str, Any], dtype: str = "") -> None:
    """Raise CkptconvError if a module's weight is quantised, so that an update cannot be placed on it or added.

    Args:
        module: the module that the update belongs to.
        named: the names of the model's tensors.
        config: the model's config.json.
        dtype: the dtype of the weight, for the error; "" if it is not known.
    """
    parts = quantised.parts_of(module, named)
    if not parts and not quantised.is_quantised("", dtype):
        return
    method = quantised.method_of(config)
    raise CkptconvError(
        f"LoRA on {module}, whose weight is quantised ({method or dtype or 'unknown method'}): codes cannot take an update",
        found=", ".join([*([f"weight in {dtype}"] if dtype else []), *parts][:3]),
        wanted="float weights, or float8 with a scale per block or tensor, which is dequantised",
        hint="merge into the unquantised model: --base DIR, or --lora adapter to keep the adapter apart",
        kind=Kind.UNSUPPORTED,
    )


def dequantise(
    named: Filled, updated: Collection[str], replaced: Collection[str], config: Mapping[str, Any]
) -> Plain:
    """Dequantise all float8 weights if an update touches one of them.

    Args:
        named: the model's tensors by final name.
        updated: names of the weights that LoRA updates.
        replaced: names of weights that the adapter holds whole.
        config: the model's config.json.

    Raises:
        CkptconvError: an updated weight is quantised in another way, or scales do not fit their codes.
    """
    names = named.keys()
    touched = False
    for name in dict.fromkeys((*updated, *replaced)):
        if name not in named:
            continue
        module, dtype = name.removesuffix(".weight"), named[name].source.dtype
        parts = quantised.parts_of(module, names)
        if dtype.startswith("float8") or (is_float(dtype) and parts and _only_scales(name, parts)):
            touched = True
        elif parts or not is_float(dtype):
            refuse(module, names, config, dtype)
    if not touched:
        return Plain(named)
    _check_method(config)
    return _dequantised(named, config)


def _only_scales(name: str, parts: Collection[str]) -> bool:
    module = name.removesuffix(".weight")
    known = {name + tail for tail in _SCALES} | {f"{module}.{part}" for part in _ACTIVATIONS}
    return set(parts) <= known


def _check_method(config: Mapping[str, Any]) -> None:
    method = quantised.method_of(config)
    if method not in ("", "fp8"):
        raise CkptconvError(
            f"LoRA on a model quantised by {method}, which is not dequantised here",
            wanted="quant_method fp8, with a scale per block or tensor",
            hint="merge into the unquantised model: --base DIR",
            kind=Kind.UNSUPPORTED,
        )


def _dequantised(named: Filled, config: Mapping[str, Any]) -> Plain:
    made: dict[str, Fill] = {}
    gone: set[str] = set()
    left: list[Left] = []
    for name, fill in named.items():
        if not fill.source.dtype.startswith("float8"):
            made[name] = fill
            continue
        scale_name = next((name + tail for tail in _SCALES if name + tail in named), None)
        if scale_name is None or not isinstance(fill.source, View):
            raise CkptconvError(
                f"{name} is stored in {fill.source.dtype}, and its scales are not found",
                wanted=f"{name}{_SCALES[0]}",
            )
        scales = _scales(name, fill, named[scale_name], config)
        gone.add(scale_name)
        made[name] = Fill(
            Dequantised(fill.source, scales=scales), fill.shape, (*fill.trained, *named[scale_name].trained)
        )
    count = sum(isinstance(fill.source, Dequantised) for fill in made.values())
    for name in list(made):
        lonely = name.endswith(_SCALES) and name not in gone
        if name in gone or lonely or name.rpartition(".")[2] in _ACTIVATIONS:
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
