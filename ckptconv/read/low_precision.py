"""Compares master weights with the trainer's low-precision copies: a cast of the masters must give the copies' values.

Names, shapes and sizes do not show that the masters are from one step and the module's weights from another. A small
tensor is compared completely. Of a large tensor, one block is compared in each part that one rank wrote, because a part
from another step differs nearly everywhere.
"""

from __future__ import annotations

import threading
from collections.abc import Callable
from typing import NamedTuple

import numpy as np

from ckptconv.errors import CkptconvError, Kind
from ckptconv.read import workers as threads
from ckptconv.read.each import for_each_reader
from ckptconv.read.gather import Array
from ckptconv.read.reader import Reader, prepare, raw_dtype, same_place
from ckptconv.tensors.boxes import contiguous_strides
from ckptconv.tensors.checkpoint import Checkpoint
from ckptconv.tensors.dtypes import to_numpy
from ckptconv.tensors.view import View

_WHOLE = 1 << 18  # tensors of at most this many elements are compared completely
_BLOCK = 1 << 14  # elements that are compared in each part of a larger tensor
_LEAST = 1 << 10  # the minimum per part, however many parts there are
_BUDGET = 1 << 26  # elements that the parts of all large tensors share
_FLOATS = ("float32", "float16", "bfloat16", "float64")


class _Task(NamedTuple):
    """One tensor to compare: its number, name, masters and copy."""

    number: int
    name: str
    masters: View
    copy: View


def require_casts(checkpoint: Checkpoint, *, workers: int | None = None) -> None:
    """Compare the trainer's low-precision copies with the masters, to the extent that the module's docstring gives.

    Args:
        checkpoint: its `low_precision` holds the copies.
        workers: threads; None for one per core and one more.

    Raises:
        CkptconvError: names the first tensor whose copy does not have the masters' values.
    """
    tasks = [
        _Task(number, name, tensor.view, copy)
        for number, (name, copy) in enumerate(checkpoint.low_precision.items())
        if (tensor := checkpoint.tensors.get(name)) is not None and _comparable(tensor.view, copy)
    ]
    if not tasks:
        return
    parts = sum(len(task.masters.chunks) for task in tasks if task.masters.numel > _WHOLE)
    block = max(_LEAST, min(_BLOCK, _BUDGET // max(parts, 1)))
    wrong: dict[int, CkptconvError] = {}
    lock = threading.Lock()

    def start(reader: Reader) -> Callable[[_Task], None]:
        def do(task: _Task) -> None:
            error = _compare(task, block, reader)
            if error is not None:
                with lock:
                    wrong[task.number] = error

        return do

    for_each_reader(tasks, start, min(threads.count(workers), len(tasks)))
    if wrong:
        raise wrong[min(wrong)]


def _comparable(masters: View, copy: View) -> bool:
    same_shape = masters.shape == copy.shape and masters.numel > 0
    return same_shape and masters.dtype in _FLOATS and copy.dtype in _FLOATS and not same_place(masters, copy)


def _compare(task: _Task, block: int, reader: Reader) -> CkptconvError | None:
    """The error for the first block that differs, or None."""
    masters, copies = prepare(task.masters), prepare(task.copy)
    wide, narrow = to_numpy(task.masters.dtype), to_numpy(task.copy.dtype)
    for low, high in _intervals(task.masters, block):
        one = np.empty(high - low, raw_dtype(task.masters.dtype))
        two = np.empty(high - low, raw_dtype(task.copy.dtype))
        reader.interval(masters, low, high, one)
        reader.interval(copies, low, high, two)
        values, copy = one.view(wide), two.view(narrow)
        differs = _differs(values, copy)
        if not differs.any():
            continue
        at = int(np.argmax(differs))
        index = [int(n) for n in np.unravel_index(low + at, task.copy.shape)] if task.copy.shape else []
        return CkptconvError(
            f"the module's own copy of {task.name} does not have the optimizer's values",
            where=task.copy.files[0],
            found=f"{float(copy[at]):g} at {index}; {int(differs.sum()):,} of {high - low:,} elements differ",
            wanted=f"{float(values[at]):g} in {task.copy.dtype}, as in {task.masters.files[0]}",
            hint="the files are of different saves: copy all of one step again; to convert the module's own copy, move the "
            "optimizer files (or the folder zero/) out of this folder",
            kind=Kind.DAMAGED,
        )
    return None


def _differs(values: Array, copy: Array) -> Array:
    """True at each element where the rounded master is not the copy.

    Some kernels for offloaded masters truncate to bfloat16 and do not round, so a block that is truncated throughout passes.
    """
    with np.errstate(over="ignore", invalid="ignore"):
        rounded = values.astype(copy.dtype)
    nan = np.isnan(values.astype(np.float32)) & np.isnan(copy.astype(np.float32))
    differs = (rounded != copy) & ~nan
    if differs.any() and values.dtype == np.float32 and copy.dtype.itemsize == 2 and copy.dtype != np.float16:
        truncated = (values.view(np.uint32) >> 16).astype(np.uint16)
        if np.array_equal(truncated, copy.view(np.uint16)):
            return np.zeros_like(differs)
    return differs


def _intervals(view: View, block: int) -> list[tuple[int, int]]:
    """The intervals of the flattened tensor to compare: all of a small tensor, else a block around each part's middle."""
    if view.numel <= _WHOLE:
        return [(0, view.numel)]
    steps = contiguous_strides(view.shape, 1)
    intervals = []
    for chunk in view.chunks:
        middle = sum(
            (o + n // 2) * step for o, n, step in zip(chunk.offsets, chunk.sizes, steps, strict=True)
        )
        low = max(0, min(middle - block // 2, view.numel - block))
        intervals.append((low, min(low + block, view.numel)))
    return sorted(set(intervals))
