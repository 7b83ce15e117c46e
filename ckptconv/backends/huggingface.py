"""A Hugging Face model folder: safetensors files, one or sharded with an index.

Format: safetensors README, "Format": eight bytes of header length, a JSON header, then the data.
"""

from __future__ import annotations

import json
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from ckptconv.backends.json_file import read_table
from ckptconv.backends.locate import Place
from ckptconv.checkpoint import Checkpoint, RankFile, StoredTensor
from ckptconv.dtypes import from_safetensors, itemsize
from ckptconv.errors import CkptconvError
from ckptconv.view import View, stored

NAME = "huggingface"
_INDEX = "model.safetensors.index.json"
_ADAPTER, _ADAPTER_CONFIG = "adapter_model.safetensors", "adapter_config.json"
_MAX_HEADER = 100_000_000


def is_mine(folder: Path) -> bool:
    """True for a folder with an index, with safetensors files beside a config, or for a PEFT adapter."""
    if (folder / _ADAPTER).is_file() and (folder / _ADAPTER_CONFIG).is_file():
        return True
    if (folder / _INDEX).is_file() or (folder / "model.safetensors").is_file():
        return True
    return (folder / "config.json").is_file() and any(folder.glob("*.safetensors"))


def read(place: Place, also: Sequence[Path] = ()) -> Checkpoint:
    """Read every header. Raises CkptconvError where index and files disagree or a header breaks the format's laws."""
    folder = place.folder
    names, expected = _files(folder)
    tensors: dict[str, StoredTensor] = {}
    files = []
    for number, name in enumerate(names):
        path = folder / name
        if not path.is_file():
            raise CkptconvError("a shard that the index names is missing", where=folder, wanted=name)
        found, _ = read_header(path)
        for tensor, view in found.items():
            if tensor in tensors:
                raise CkptconvError(
                    f"two shards hold {tensor}", where=f"{tensors[tensor].view.files} and {path}"
                )
            tensors[tensor] = StoredTensor(view)
        files.append(RankFile(number, str(path), path.stat().st_size))
    if expected is not None:
        _check_index(folder, expected, tensors)
    return Checkpoint(
        backend=NAME,
        layout="PEFT adapter" if names == [_ADAPTER] else "Hugging Face model folder",
        root=folder,
        world_size=len(files),
        files=tuple(files),
        tensors=tensors,
        step=place.step,
        role=place.role,
        assets=folder if (folder / "config.json").is_file() else None,
        extras={"lora": read_table(folder / _ADAPTER_CONFIG)} if names == [_ADAPTER] else {},
        naming="hub",
    )


def read_header(path: Path) -> tuple[dict[str, View], dict[str, str]]:
    """The tensors of one safetensors file as views, and its `__metadata__`."""
    size = os.path.getsize(path)
    with open(path, "rb") as file:
        length = int.from_bytes(file.read(8), "little")
        if size < 8 or length > min(size - 8, _MAX_HEADER):
            raise CkptconvError(
                "not a safetensors file, or a truncated one", where=path, found=f"{size:,} bytes"
            )
        data = file.read(length)
    try:
        header = json.loads(data)
    except ValueError as error:
        raise CkptconvError("a safetensors header that is not JSON", where=path) from error
    if not isinstance(header, dict):
        raise CkptconvError("a safetensors header that is no table", where=path)
    metadata = header.pop("__metadata__", None) or {}
    begin = 8 + length
    views, end = {}, 0
    for name, entry in sorted(header.items(), key=lambda item: _offset(item[1])):
        view, end = _tensor(path, name, entry, begin, end)
        views[name] = view
    if begin + end != size:
        raise CkptconvError(
            "a safetensors file whose tensors do not fill it",
            where=path,
            found=f"{size:,} bytes",
            wanted=f"{begin + end:,}",
        )
    return {name: views[name] for name in header}, metadata


def _offset(entry: Any) -> tuple[int, int]:
    offsets = entry.get("data_offsets") if isinstance(entry, dict) else None
    if not (
        isinstance(offsets, list) and len(offsets) == 2 and all(type(n) is int and n >= 0 for n in offsets)
    ):
        return (-1, -1)
    return (offsets[0], offsets[1])


def _tensor(path: Path, name: str, entry: Any, begin: int, expected: int) -> tuple[View, int]:
    low, high = _offset(entry)
    shape = entry.get("shape") if isinstance(entry, dict) else None
    dtype = from_safetensors(str(entry.get("dtype"))) if isinstance(entry, dict) else None
    where = f"{name} in {path}"
    if dtype is None:
        raise CkptconvError("a dtype that ckptconv does not know", where=where, found=str(entry)[:80])
    if low != expected or not isinstance(shape, list) or not all(type(n) is int and n >= 0 for n in shape):
        raise CkptconvError(
            "a safetensors header with a hole, an overlap or no shape", where=where, found=str(entry)[:120]
        )
    view = stored(str(path), begin + low, shape, dtype)
    if view.numel * itemsize(dtype) != high - low:
        raise CkptconvError(
            "a tensor whose bytes do not match its shape", where=where, found=str(entry)[:120]
        )
    return view, high


def _files(folder: Path) -> tuple[list[str], dict[str, str] | None]:
    index = folder / _INDEX
    if (folder / _ADAPTER).is_file() and not index.is_file() and not (folder / "model.safetensors").is_file():
        return [_ADAPTER], None
    if not index.is_file():
        single = folder / "model.safetensors"
        return (
            [single.name] if single.is_file() else sorted(p.name for p in folder.glob("*.safetensors"))
        ), None
    try:
        weight_map = json.loads(index.read_text(encoding="utf-8"))["weight_map"]
        expected = {str(name): str(file) for name, file in weight_map.items()}
    except (ValueError, KeyError, AttributeError) as error:
        raise CkptconvError("an index without a weight map", where=index) from error
    for file in expected.values():
        if Path(file).name != file:
            raise CkptconvError("an index that names a file outside its folder", where=index, found=file)
    return sorted(set(expected.values())), expected


def _check_index(folder: Path, expected: dict[str, str], tensors: dict[str, StoredTensor]) -> None:
    for name, file in expected.items():
        held = tensors.get(name)
        if held is None or (held.view.files and held.view.files != (str(folder / file),)):
            raise CkptconvError(f"the index says that {name} is in {file}, and it is not", where=folder)
    extra = sorted(set(tensors) - set(expected))
    if extra:
        raise CkptconvError(f"the shards hold {extra[0]}, which the index does not name", where=folder)
