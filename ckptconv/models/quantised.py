"""Which tensors are quantised codes or belong to such codes, told from names and dtypes, and what config.json says of them.

Names: transformers/quantizers/ and transformers/integrations/ (finegrained_fp8, mxfp4, bitsandbytes, hqq), and the
loaders of GPTQ, AWQ, compressed-tensors and ModelOpt checkpoints in vllm/model_executor/layers/quantization/.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from typing import Any

from ckptconv.models import nested

KEY = "quantization_config"
# Integers and 8-bit floats in which codes are stored. int64 and bool are those of buffers.
_CODES = re.compile(r"^(?:float[48]_|u?int(?:8|16|32)$)")
# What stands next to the codes of one weight: scales, zero points, code books, packing records.
_PARTS = re.compile(
    r"(?:^|[._])(?:SCB|CB|weight_format|qweight|qzeros|g_idx|weight_scale(?:_inv|_2)?|weight_packed|weight_shape|"
    r"weight_zero_point|weight_g_idx|weight_global_scale|input_scale|activation_scale|absmax|nested_absmax|quant_map|"
    r"nested_quant_map|quant_state\.[\w-]+|codebooks|W_q|_data|(?:gate_up_proj|down_proj)_(?:blocks|scales|scale_inv))$"
)


def is_quantised(name: str, dtype: str) -> bool:
    """True for a tensor of codes and for one that belongs to codes, such as their scales."""
    return _CODES.match(dtype) is not None or _PARTS.search(name) is not None


def any_quantised(dtypes: Iterable[tuple[str, str]]) -> bool:
    """True where one of the (name, dtype) pairs is a quantised tensor or belongs to one."""
    return any(is_quantised(name, dtype) for name, dtype in dtypes)


def parts_of(module: str, names: Iterable[str]) -> list[str]:
    """The names that make a module's weight a quantised one: `MODULE.SCB`, `MODULE.weight.absmax`, `MODULE_blocks`."""
    return [name for name in names if name.startswith((f"{module}.", f"{module}_")) and _PARTS.search(name)]


def method_of(config: Mapping[str, Any]) -> str:
    """The name of the method that config.json states, "" where it states none."""
    stated = stated_in(config)
    method = stated.get("quant_method") or stated.get("quant_algo") if stated else None
    return str(method or ("unnamed" if stated else ""))


def stated_in(config: Mapping[str, Any]) -> dict[str, Any] | None:
    """Return the quantization_config of a model, which some multimodal models keep in their language model's config."""
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
