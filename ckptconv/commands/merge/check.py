"""`merge --verify`: reads the output again with safetensors' own reader, and compares it with the source.

This happens before the folder is published. The headers, the positions of the tensors and their bytes come from
safetensors; the wanted values come from the plan's views, which are read again. A file is reopened every few megabytes,
because its pages count as this process's memory while it is mapped.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Sequence
from math import prod
from pathlib import Path
from typing import Any, NamedTuple

import ml_dtypes  # noqa: F401 - numpy knows bfloat16 by name from here on, and safetensors asks it
import numpy as np

from ckptconv.compute.tiles import Filler
from ckptconv.errors import CkptconvError, ExitCode, Kind
from ckptconv.formats.safetensors import header_by_library
from ckptconv.plan import Output, Plan
from ckptconv.plan.shards import INDEX
from ckptconv.read.each import for_each_reader
from ckptconv.read.reader import Array, Reader, raw_dtype
from ckptconv.tensors.dtypes import (
    from_safetensors,
    is_packed,
    itemsize,
    shape_from_safetensors,
    shape_in_safetensors,
    to_safetensors,
)

_BLOCK = 4 << 20  # bytes of a tensor that are compared at a time
_MAPPED = 16 << 20  # bytes that are read from a mapping before the file is reopened
_SCRATCH = 8 << 20  # bytes for stored elements before they are cast
_MOST = 5  # threads: each has 36 MB of buffers and mapped pages

Slices = tuple[slice, ...]
OnBytes = Callable[[int, str], None]  # bytes that were read, and the file


class _Tile(NamedTuple):
    """A part of an output tensor that is contiguous in its file.

    Args:
        file: the output file.
        key: the plan's key of the tensor.
        name: the tensor.
        output: the plan's record of it.
        slices: the part, as one slice per dim.
        low: the part's first element, in C order.
        high: one past its last element.
    """

    file: Path
    key: str
    name: str
    output: Output
    slices: Slices
    low: int
    high: int


def check_written(plan: Plan, work: Path, workers: int, on_bytes: OnBytes | None = None) -> int:
    """Compare every output file with the source.

    Args:
        plan: the plan that was executed.
        work: the folder that holds the output files.
        workers: threads; at most 5 are used.
        on_bytes: called with the bytes that were read, and their file.

    Returns:
        The number of tensors that were compared.

    Raises:
        CkptconvError: names the first difference; its exit code is 1.
    """
    wrong = [*_headers(plan, work), *_index(plan, work)]
    if not wrong:
        wrong = _values(plan, work, workers, on_bytes)
    if wrong:
        raise CkptconvError(
            "the output does not match the checkpoint",
            where=wrong[0],
            found=f"{len(wrong):,} differences" if len(wrong) > 1 else None,
            hint="nothing was published; the disk or the memory may be at fault: run it again",
            code=ExitCode.NO,
            kind=Kind.ENVIRONMENT,
        )
    return sum(len(out.offsets) for out in plan.files)


def _headers(plan: Plan, work: Path) -> Iterator[str]:
    """Compare names, dtypes and shapes, as safetensors reads them; yields one sentence per difference."""
    from safetensors import SafetensorError

    for out in plan.files:
        try:
            found, _ = header_by_library(work / out.name)
        except (SafetensorError, OSError) as error:
            yield f"{out.name}: safetensors cannot open it: {error}"
            continue
        outputs = [plan.outputs[key] for key in out.offsets]
        wanted = {
            o.name: (to_safetensors(o.dtype), shape_in_safetensors(o.dtype, tuple(o.shape))) for o in outputs
        }
        for name in sorted(found.keys() | wanted.keys()):
            if found.get(name) != wanted.get(name):
                yield f"{out.name}: {name} is {found.get(name)}, not {wanted.get(name)}"


def _index(plan: Plan, work: Path) -> Iterator[str]:
    """Compare the index with the tensors of the model's files; yields one sentence per difference."""
    if not (work / INDEX).is_file():
        return
    stated = json.loads((work / INDEX).read_text(encoding="utf-8"))["weight_map"]
    wanted = {
        plan.outputs[key].name: out.name for out in plan.files if "/" not in out.name for key in out.offsets
    }
    for name in sorted(stated.keys() | wanted.keys()):
        if stated.get(name) != wanted.get(name):
            yield f"{INDEX}: {name} is listed in {stated.get(name)}, not {wanted.get(name)}"


def _values(plan: Plan, work: Path, workers: int, on_bytes: OnBytes | None) -> list[str]:
    """The position of the first different element of every tensor that has one."""
    wrong: dict[str, tuple[int, str]] = {}

    def start(reader: Reader) -> Callable[[_Tile], None]:
        written, filler = _Written(), Filler(reader, np.empty(_SCRATCH, np.uint8))

        def do(tile: _Tile) -> None:
            raw = raw_dtype(tile.output.dtype)
            wanted = np.empty((tile.high - tile.low) * raw.itemsize, np.uint8)
            filler.fill(tile.output.source, tile.output.dtype, tile.low, tile.high, wanted)
            found = written.read(tile.file, tile.output, tile.slices, wanted.nbytes)
            if not np.array_equal(found, wanted):
                bad = np.flatnonzero(found.view(raw) != wanted.view(raw))
                at = tile.low + int(bad[0])
                index = [int(n) for n in np.unravel_index(at, tile.output.shape)]
                where = f"{tile.name}, element {index} in {tile.file.name}"
                wrong[tile.key] = min((at, where), wrong.get(tile.key, (at, where)))
            if on_bytes:
                on_bytes(wanted.nbytes, tile.file.name)

        return do

    for_each_reader(_tiles(plan, work), start, min(workers, _MOST))
    return [where for _, where in wrong.values()]


def _tiles(plan: Plan, work: Path) -> Iterator[_Tile]:
    for out in plan.files:
        for key in out.offsets:
            output = plan.outputs[key]
            low = 0
            for slices, numel in _boxes(output.shape, _BLOCK // itemsize(output.dtype)):
                if numel:
                    yield _Tile(work / out.name, key, output.name, output, slices, low, low + numel)
                low += numel


def _boxes(shape: Sequence[int], most: int) -> Iterator[tuple[Slices, int]]:
    """Cut a tensor into boxes that are contiguous in C order.

    Args:
        shape: the tensor's shape.
        most: the largest number of elements of a box.

    Returns:
        (slices, number of elements) of each box, in C order.
    """
    if prod(shape) <= most:
        yield tuple(slice(0, size) for size in shape), prod(shape)
        return
    inner = prod(shape[1:])
    if inner > most:
        for row in range(shape[0]):
            for slices, numel in _boxes(shape[1:], most):
                yield (slice(row, row + 1), *slices), numel
        return
    step = most // inner
    for row in range(0, shape[0], step):
        last = min(row + step, shape[0])
        yield (slice(row, last), *(slice(0, size) for size in shape[1:])), (last - row) * inner


class _Written:
    """Reads slices of output tensors with safetensors' reader. Each thread has its own."""

    def __init__(self) -> None:
        self._path: Path | None = None
        self._file: Any = None
        self._read = 0

    def read(self, path: Path, output: Output, slices: Slices, nbytes: int) -> Array:
        """The bytes of a slice.

        Args:
            path: the output file.
            output: the plan's record of the tensor.
            slices: the slice, which is contiguous in the file; () for a scalar.
            nbytes: its size.
        """
        from safetensors import safe_open

        name = output.name
        if is_packed(output.dtype):  # safetensors slices by values, which may end within a byte
            return self._plain(path, name, slices, nbytes)
        if path != self._path or self._read > _MAPPED:
            self._file = None  # unmaps it
            self._path, self._file, self._read = path, safe_open(path, framework="numpy"), 0
        self._read += nbytes
        try:
            found = self._file.get_slice(name)[slices] if slices else self._file.get_tensor(name)
        except (AttributeError, TypeError):  # a dtype that numpy has no name for: float8
            return self._plain(path, name, slices, nbytes)
        return np.ascontiguousarray(found).reshape(-1).view(np.uint8)

    def _plain(self, path: Path, name: str, slices: Slices, nbytes: int) -> Array:
        """The bytes of a slice whose dtype numpy does not have, by the file's own header."""
        with open(path, "rb") as file:
            length = int.from_bytes(file.read(8), "little")
            entry = json.loads(file.read(length))[name]
            begin, end = entry["data_offsets"]
            shape = shape_from_safetensors(str(from_safetensors(entry["dtype"])), tuple(entry["shape"])) or ()
            item = (end - begin) // max(prod(shape), 1)
            first = np.ravel_multi_index([s.start for s in slices], shape) if slices else 0
            file.seek(8 + length + begin + int(first) * item)
            return np.frombuffer(file.read(nbytes), np.uint8)
