"""Recognises quantised tensors, and what belongs to them, by name and dtype; reads config.json's quantization_config.

Sources of the names: transformers/quantizers/ and transformers/integrations/ (finegrained_fp8, mxfp4, bitsandbytes, hqq),
and the loaders of GPTQ, AWQ, compressed-tensors and ModelOpt checkpoints in vllm/model_executor/layers/quantization/.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from typing import Any

from ckptconv.models import nested

KEY = "quantization_config"
# The dtypes of codes: integers of up to 32 bits, floats of up to 8 bits. int64 and bool are dtypes of buffers.
_CODES = re.compile(r"^(?:float[48]_|u?int(?:8|16|32)$)")
# Tensors that belong to the codes of a weight: scales, zero points, code books, packing records.
_PARTS = re.compile(
    r"(?:^|[._])(?:SCB|CB|weight_format|qweight|qzeros|g_idx|weight_scale(?:_inv|_2)?|weight_packed|weight_shape|"
    r"weight_zero_point|weight_g_idx|weight_global_scale|input_scale|activation_scale|absmax|nested_absmax|quant_map|"
    r"nested_quant_map|quant_state\.[\w-]+|codebooks|W_q|_data|(?:gate_up_proj|down_proj)_(?:blocks|scales|scale_inv))$"
)


def is_quantised(name: str, dtype: str) -> bool:
    """True for a tensor of codes, and for one that belongs to codes, such as their scales."""
    return _CODES.match(dtype) is not None or _PARTS.search(name) is not None


def any_quantised(dtypes: Iterable[tuple[str, str]]) -> bool:
    """True if `is_quantised` is true for one of the (name, dtype) pairs."""
    return any(is_quantised(name, dtype) for name, dtype in dtypes)


def parts_of(module: str, names: Iterable[str]) -> list[str]:
    """The names that show that a module's weight is quantised: `MODULE.SCB`, `MODULE.weight.absmax`, `MODULE_blocks`."""
    return [name for name in names if name.startswith((f"{module}.", f"{module}_")) and _PARTS.search(name)]


def method_of(config: Mapping[str, Any]) -> str:
    """The quantisation method that config.json states; "" if it states none."""
    stated = stated_in(config)
    method = stated.get("quant_method") or stated.get("quant_algo") if stated else None
    return str(method or ("unnamed" if stated else ""))


def stated_in(config: Mapping[str, Any]) -> dict[str, Any] | None:
    """The quantization_config of a model; some multimodal models have it in their language model's config."""
    for part in nested.parts_of(dict(config)):
        stated = part.get(KEY)
        if isinstance(stated, dict) and stated:
            return stated
    return None


def without(config: Mapping[str, Any]) -> dict[str, Any]:
    """The config without any quantization_config."""
    return {
        key: without(value) if isinstance(value, dict) and key.endswith("_config") else value
        for key, value in config.items()
        if key != KEY
    }
