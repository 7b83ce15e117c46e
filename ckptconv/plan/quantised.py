"""Step 4 for quantised weights: float8 weights that LoRA updates are dequantised; other quantised weights are refused.

LoRA is never added to codes. If no update touches a quantised weight, codes and scales are copied as they are.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from typing import Any, NamedTuple

from ckptconv.errors import CkptconvError, Kind
from ckptconv.models import quantised
from ckptconv.plan.records import Filled, Left
from ckptconv.tensors.dtypes import is_float

SCALES = (
    "_scale_inv",
    "_scale",
)  # of X.weight: X.weight_scale_inv (transformers, DeepSeek), X.weight_scale (vLLM)
ACTIVATIONS = ("input_scale", "activation_scale")


class Plain(NamedTuple):
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
    from ckptconv.plan.dequantised import (
        dequantised,  # with compute's records: imported for those who need them
    )

    return dequantised(named, config)


def _only_scales(name: str, parts: Collection[str]) -> bool:
    module = name.removesuffix(".weight")
    known = {name + tail for tail in SCALES} | {f"{module}.{part}" for part in ACTIVATIONS}
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
