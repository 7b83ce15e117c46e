"""Dtype names, sizes, and what the file formats call them.

A dtype is torch's name without the prefix: "float32", "bfloat16", "int64". Everything else is spelled from it.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, NamedTuple

if TYPE_CHECKING:  # a table of names needs no numpy, which takes as long to import as half of `inspect`
    import numpy as np

# name -> (bytes per element, safetensors' name). Sources: safetensors, src/tensor.rs, Dtype; torch.Storage classes.
_TABLE: dict[str, tuple[int, str]] = {
    "float64": (8, "F64"),
    "float32": (4, "F32"),
    "float16": (2, "F16"),
    "bfloat16": (2, "BF16"),
    "float8_e4m3fn": (1, "F8_E4M3"),
    "float8_e5m2": (1, "F8_E5M2"),
    "float8_e8m0fnu": (1, "F8_E8M0"),
    "float8_e4m3fnuz": (1, "F8_E4M3FNUZ"),
    "float8_e5m2fnuz": (1, "F8_E5M2FNUZ"),
    "float4_e2m1fn_x2": (1, "F4"),  # an element is one byte with two values, as in torch
    "float6_e2m3": (1, "F6_E2M3"),  # an element is one byte; four values take three bytes
    "float6_e3m2": (1, "F6_E3M2"),
    "int64": (8, "I64"),
    "int32": (4, "I32"),
    "int16": (2, "I16"),
    "int8": (1, "I8"),
    "uint64": (8, "U64"),
    "uint32": (4, "U32"),
    "uint16": (2, "U16"),
    "uint8": (1, "U8"),
    "bool": (1, "BOOL"),
    "complex64": (8, "C64"),
}
# Packed dtypes: bits per value. safetensors counts values in a shape's last dim; here, as in torch, it counts bytes.
_BITS = {"float4_e2m1fn_x2": 4, "float6_e2m3": 6, "float6_e3m2": 6}
_ML_DTYPES = (
    "bfloat16", "float8_e4m3fn", "float8_e5m2", "float8_e8m0fnu", "float8_e4m3fnuz", "float8_e5m2fnuz",
)  # fmt: skip
_BY_SAFETENSORS = {code: name for name, (_, code) in _TABLE.items()}
_STORAGES = {
    "DoubleStorage": "float64",
    "FloatStorage": "float32",
    "HalfStorage": "float16",
    "BFloat16Storage": "bfloat16",
    "LongStorage": "int64",
    "IntStorage": "int32",
    "ShortStorage": "int16",
    "CharStorage": "int8",
    "ByteStorage": "uint8",
    "BoolStorage": "bool",
    "ComplexFloatStorage": "complex64",
    "UntypedStorage": "uint8",
}
# Spellings that users and configs use -> the name in this module.
_ALIASES = {"bf16": "bfloat16", "fp16": "float16", "half": "float16", "fp32": "float32", "float": "float32"}


class FloatBits(NamedTuple):
    """The bit patterns of a float dtype, as unsigned integers.

    Args:
        mask: all bits except the sign; pattern & mask is the magnitude.
        first: the smallest magnitude that is not finite.
        infinity: the magnitude of Inf; 0 for a dtype without Inf.
    """

    mask: int
    first: int
    infinity: int


FLOAT_BITS = {
    "float16": FloatBits(0x7FFF, 0x7C00, 0x7C00),
    "bfloat16": FloatBits(0x7FFF, 0x7F80, 0x7F80),
    "float32": FloatBits(0x7FFF_FFFF, 0x7F80_0000, 0x7F80_0000),
    "float64": FloatBits(0x7FFF_FFFF_FFFF_FFFF, 0x7FF0_0000_0000_0000, 0x7FF0_0000_0000_0000),
    "float8_e5m2": FloatBits(0x7F, 0x7C, 0x7C),
    "float8_e4m3fn": FloatBits(0x7F, 0x7F, 0),
}
FLOATS = ("float64", "float32", "float16", "bfloat16")


def known(name: str) -> bool:
    """True if the table has this dtype, so that a plan can use it."""
    return name in _TABLE


def itemsize(name: str) -> int:
    """Bytes per element."""
    return _TABLE[name][0]


def to_safetensors(name: str) -> str:
    """The code of a dtype in a safetensors header, such as "BF16"."""
    return _TABLE[name][1]


def from_safetensors(code: str) -> str | None:
    """The dtype of a safetensors code, or None for an unknown code."""
    return _BY_SAFETENSORS.get(code)


def shape_in_safetensors(name: str, shape: tuple[int, ...]) -> tuple[int, ...]:
    """The shape that a safetensors header states for a tensor: packed dtypes count values, not bytes, in the last dim."""
    bits = _BITS.get(name)
    return shape if bits is None else (*shape[:-1], shape[-1] * 8 // bits)


def shape_from_safetensors(name: str, shape: tuple[int, ...]) -> tuple[int, ...] | None:
    """The shape of a tensor from that in a safetensors header; None if the last dim of packed values ends within a byte."""
    bits = _BITS.get(name)
    if bits is None:
        return shape
    nbytes, rest = divmod(shape[-1] * bits, 8) if shape else (0, 1)
    return None if rest else (*shape[:-1], nbytes)


def is_packed(name: str) -> bool:
    """True for a dtype with several values per byte, whose last dim counts bytes."""
    return name in _BITS


def is_coded(name: str) -> bool:
    """True for the dtypes of at most one byte whose values are codes that need scales: float8, float6, float4."""
    return name.startswith(("float8", "float6", "float4"))


def from_storage(class_name: str) -> str | None:
    """The dtype of a torch storage class such as "BFloat16Storage", or None for an unknown class."""
    return _STORAGES.get(class_name)


def from_text(text: object) -> str | None:
    """The dtype that a config or a flag names ("torch.bfloat16", "bf16"), or None for an unknown name."""
    name = str(text).removeprefix("torch.").lower()
    name = _ALIASES.get(name, name)
    return name if name in _TABLE else None


def is_float(name: str) -> bool:
    """True for the floats that a dtype policy may cast. float8 is not one of them, because its codes need scales."""
    return name in FLOATS


def to_numpy(name: str) -> np.dtype[Any]:
    """The numpy dtype; it comes from ml_dtypes for the formats that numpy lacks. Packed dtypes are uint8."""
    import numpy as np

    if name in _BITS:
        return np.dtype(np.uint8)
    if name in _ML_DTYPES:
        import ml_dtypes

        return np.dtype(getattr(ml_dtypes, name))
    return np.dtype(name)
