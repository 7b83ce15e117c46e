"""The tensors of a quantised model under the names that its class gives the weights, and what each quantised weight lacks.

A quantiser replaces a weight by codes and what belongs to them: `X.weight` with `X.weight_scale_inv` (float8), `X.qweight`
with `X.scales`, `X.qzeros` and `X.g_idx` (GPTQ, AWQ), `X.weight_packed` with `X.weight_scale` and `X.weight_shape`
(compressed-tensors), `X.weight` with `X.weight.absmax` and others (bitsandbytes), `X_blocks` with `X_scales` (MXFP4).
The sources of these names are those of ckptconv/models/quantised.py.
"""

from __future__ import annotations

import re
from collections import Counter, defaultdict
from collections.abc import Iterator, Mapping
from typing import Any, NamedTuple

from ckptconv.tensors.dtypes import is_float, itemsize
from ckptconv.tensors.view import Shape

_CODES = r"qweight|packed|blocks|W_q|_data|_qdata|codes|CB"
_PARTS = (
    r"qzeros|scales?|scale_inv|scale_[0-9]|scale_ub|zeros|zero_point|g_idx|perm|shape|SCB|weight_format|absmax|nested_absmax|"
    r"quant_map|nested_quant_map|quant_state\.[\w-]+|codebooks|_scale|_zero_point|global_scale"
)
_OF_INPUTS = r"(?:input|activation|output)_(?:scale|scale_ub|zero_point|global_scale)"
_PART = re.compile(rf"(?P<of>.+?)(?P<sep>[._])(?:(?P<codes>{_CODES})|(?P<inputs>{_OF_INPUTS})|{_PARTS})$")
_TAIL = ".weight"


class Plainly(NamedTuple):
    """A quantised model's tensors.

    Args:
        shapes: the name of each weight, and of each tensor that is not quantised -> shape; that of codes where they are
            packed.
        sized: the names whose shapes are those of the class.
        missing: stored names that the codes of a weight need and that are not there.
    """

    shapes: dict[str, Shape]
    sized: frozenset[str]
    missing: tuple[str, ...]


def plainly(shapes: Mapping[str, Shape], dtypes: Mapping[str, str]) -> Plainly:
    """Name a quantised model's tensors as if it were not quantised.

    Args:
        shapes: stored name -> shape.
        dtypes: stored name -> dtype.
    """
    plain: dict[str, Shape] = {}
    codes: dict[str, tuple[str, str]] = {}  # weight -> its tensor's ending, its dtype
    parts: dict[str, str] = {}  # name -> the weight it belongs to
    for name, shape in shapes.items():
        found = _PART.match(name)
        weight = _weight(found["of"], found["sep"]) if found else name
        if found and not found["codes"]:
            parts[name] = weight
        elif found or weight not in plain:
            plain[weight] = shape
            codes[weight] = (name.removeprefix(weight.removesuffix(_TAIL)), dtypes[name])
    held: dict[str, set[str]] = defaultdict(set)
    for name, weight in parts.items():
        if weight not in plain:
            plain[name] = shapes[name]  # a scale of the model itself, such as logit_scale
            codes[name] = ("", dtypes[name])
            continue
        found = _PART.match(name)
        if found and not found["inputs"]:
            held[weight].add(name.removeprefix(weight.removesuffix(_TAIL)))
    sized = {name for name, (_, dtype) in codes.items() if name in plain and _is_plain(name, dtype, held)}
    return Plainly(plain, frozenset(sized), tuple(_missing(codes, held)))


def other_blocks(shapes: Mapping[str, Shape], block: Any) -> Iterator[tuple[str, tuple[int, int]]]:
    """Yield each tensor of scales that is not one per block: its name, (the blocks in the weight's dim, the scales in it).

    Args:
        shapes: stored name -> shape.
        block: weight_block_size of the config, [rows, columns]; anything else is not compared.
    """
    if not (isinstance(block, list) and len(block) == 2 and all(type(n) is int and n > 0 for n in block)):
        return
    for name, scales in shapes.items():
        weight = shapes.get(name.removesuffix("_scale_inv"), ())
        if not name.endswith("_scale_inv") or len(weight) < 2 or len(scales) != len(weight):
            continue
        for size, stored, rows in zip(weight[-2:], scales[-2:], block, strict=True):
            if stored not in (1, -(-size // rows)):
                yield name, (-(-size // rows), stored)
                break


def is_quantisers(name: str, stored: Mapping[str, Any]) -> bool:
    """True for a name that a quantiser may add to those of the class.

    That is the scale of a key-value cache, or a bias of zeros, which AutoGPTQ writes where the class has none.
    """
    module = name.removesuffix(".bias")
    return _PART.match(name) is not None or (module != name and f"{module}.qweight" in stored)


def _weight(of: str, separator: str) -> str:
    """The weight of a part: `X.qweight` and `X.weight_scale` belong to X.weight, `X_blocks` to the parameter X."""
    return of if separator == "_" or of.endswith(_TAIL) else of + _TAIL


def _is_plain(name: str, dtype: str, held: Mapping[str, set[str]]) -> bool:
    """Whether a tensor has the shape of the class: float8 codes have it, packed integers have not."""
    return dtype.startswith("float8") or (is_float(dtype) and itemsize(dtype) > 1 and name not in held)


def _missing(codes: Mapping[str, tuple[str, str]], held: Mapping[str, set[str]]) -> list[str]:
    """The parts that most weights with codes of one kind have and that others of them lack."""
    alike: dict[tuple[str, str], list[str]] = defaultdict(list)
    for weight, kind in codes.items():
        alike[kind].append(weight)
    found = []
    for weights in alike.values():
        counts = Counter(part for weight in weights for part in held.get(weight, ()))
        wanted = sorted(part for part, count in counts.items() if 2 * count > len(weights))
        for weight in weights:
            lacking = [part for part in wanted if part not in held.get(weight, ())]
            found += [weight.removesuffix(_TAIL) + part for part in lacking]
    return found
