"""Lays out the safetensors files of a model folder: which shard holds which tensor, every header and every offset.

Order and padding are those of safetensors' own writer (safetensors/src/tensor.rs, `prepare`): the widest dtype first, then
by name; the header is padded with spaces to a multiple of eight bytes.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from typing import NamedTuple, Protocol

from ckptconv.errors import CkptconvError, Kind
from ckptconv.tensors.dtypes import itemsize, shape_in_safetensors, to_safetensors
from ckptconv.tensors.view import Shape

_SIZE = re.compile(
    r"\s*(?P<number>[0-9]{1,18}(?:\.[0-9]{1,9})?)\s*(?P<unit>b|[kmgt](?:i?b)?)\s*", re.IGNORECASE
)
_UNITS = {
    "b": 1,
    **{f"{letter}{tail}": 1000 ** (n + 1) for n, letter in enumerate("kmgt") for tail in ("", "b")},
    **{f"{letter}ib": 1024 ** (n + 1) for n, letter in enumerate("kmgt")},
}
INDEX = "model.safetensors.index.json"
# The members of safetensors' Dtype enum, in its order of alignment.
_ORDER = (
    *("BOOL", "F4", "F6_E2M3", "F6_E3M2", "U8", "I8", "F8_E5M2", "F8_E4M3", "F8_E8M0"),
    *("F8_E4M3FNUZ", "F8_E5M2FNUZ"),
    *("I16", "U16", "F16", "BF16", "I32", "U32", "F32", "C64", "F64", "I64", "U64"),
)
_RANK = {code: rank for rank, code in enumerate(_ORDER)}


class Laid(Protocol):
    """The facts about a tensor that its position in a file depends on."""

    @property
    def shape(self) -> Shape: ...
    @property
    def dtype(self) -> str: ...
    @property
    def nbytes(self) -> int: ...


class OutFile(NamedTuple):
    """One safetensors file.

    Args:
        name: its path in the output folder.
        header: its first bytes, with the length of the header.
        offsets: key of a tensor -> the byte of the file where its data begins. The keys of a file in a subfolder begin with
            that folder; its header has the bare names.
        nbytes: its size in bytes.
    """

    name: str
    header: bytes
    offsets: dict[str, int]
    nbytes: int


def shards(
    tensors: Mapping[str, Laid], max_shard_size: int | str, stem: str = "model"
) -> tuple[OutFile, ...]:
    """Cut a state dict into files, as save_pretrained does.

    Args:
        tensors: the tensors by name, in the order of writing.
        max_shard_size: the largest file, in bytes or as text such as "5GB".
        stem: the first part of the file names.

    Raises:
        CkptconvError: the size is not valid.
    """
    limit = in_bytes(max_shard_size)
    sizes = {name: tensor.nbytes for name, tensor in tensors.items()}
    if tensors and sum(sizes.values()) <= limit:
        return (out_file(f"{stem}.safetensors", tensors),)
    from huggingface_hub import split_state_dict_into_shards_factory

    split = split_state_dict_into_shards_factory(
        sizes,
        get_storage_size=lambda size: size,
        filename_pattern=f"{stem}{{suffix}}.safetensors",
        max_shard_size=limit,
    )
    return tuple(
        out_file(name, {n: tensors[n] for n in names}) for name, names in split.filename_to_tensors.items()
    )


def in_bytes(size: int | str) -> int:
    """Convert a size to bytes: a number, or text such as "5GB", "5G" (powers of 1000) or "256MiB" (powers of 1024).

    Raises:
        CkptconvError: the text is not a size, or the size is below one byte.
    """
    if isinstance(size, int):
        number = size
    else:
        match = _SIZE.fullmatch(str(size))
        number = int(float(match["number"]) * _UNITS[match["unit"].lower()]) if match else 0
    if number < 1:
        raise CkptconvError(
            f'"{size}" is not a size', wanted="a number with a unit, such as 5GB or 256MiB", kind=Kind.USAGE
        )
    return number


def out_file(name: str, tensors: Mapping[str, Laid]) -> OutFile:
    """Lay out one file that holds these tensors."""
    folder = name.rpartition("/")[0]
    order = sorted(tensors, key=lambda n: (-_RANK[to_safetensors(tensors[n].dtype)], n))
    header: dict[str, object] = {"__metadata__": {"format": "pt"}}
    at, relative = 0, {}
    for tensor_name in order:
        tensor = tensors[tensor_name]
        end = at + tensor.nbytes
        header[tensor_name.removeprefix(f"{folder}/") if folder else tensor_name] = {
            "dtype": to_safetensors(tensor.dtype),
            "shape": list(shape_in_safetensors(tensor.dtype, tensor.shape)),
            "data_offsets": [at, end],
        }
        relative[tensor_name], at = at, end
    text = json.dumps(header, separators=(",", ":"), ensure_ascii=False).encode()
    text += b" " * (-len(text) % 8)
    begin = 8 + len(text)
    offsets = {tensor_name: begin + offset for tensor_name, offset in relative.items()}
    return OutFile(name, len(text).to_bytes(8, "little") + text, offsets, begin + at)


def index(files: Sequence[OutFile], tensors: Mapping[str, Laid]) -> bytes | None:
    """The content of model.safetensors.index.json, or None if one file holds all tensors."""
    if len(files) < 2:
        return None
    weight_map = {name: file.name for file in files for name in file.offsets}
    total = sum(tensor.nbytes for tensor in tensors.values())
    parameters = sum(tensor.nbytes // itemsize(tensor.dtype) for tensor in tensors.values())
    data = {"metadata": {"total_parameters": parameters, "total_size": total}, "weight_map": weight_map}
    return (json.dumps(data, indent=2, sort_keys=True) + "\n").encode()
