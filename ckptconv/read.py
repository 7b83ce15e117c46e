"""From a view to its elements: bounded preads into the caller's buffer, never a whole file, never a mapping.

A chunk that lies in one piece both in its file and in the tensor is a run, and costs one pread a block. Every
other chunk (a column shard, a transpose) is read as the smallest spans that are dense enough, through one scratch
buffer, and rearranged there.
"""

from __future__ import annotations

import os
from bisect import bisect_right
from collections import OrderedDict
from math import prod
from typing import Any, NamedTuple

import numpy as np

from ckptconv.dtypes import itemsize, to_numpy
from ckptconv.errors import CkptconvError
from ckptconv.view import Chunk, Shape, View, boxes_of_interval, contiguous_strides

SCRATCH = 4 << 20
_OPEN_FILES = 128
_DENSE = 4  # a span is read whole when at most this many times the bytes wanted
_RAW = {1: np.uint8, 2: np.uint16, 4: np.uint32, 8: np.uint64}

Array = np.ndarray[Any, np.dtype[Any]]


class Run(NamedTuple):
    """Elements first .. first+length-1 of the flattened tensor, in one piece at a byte of a file."""

    first: int
    length: int
    file: str
    start: int


class Prepared(NamedTuple):
    """A view made ready for reading: runs by position, the other chunks by their first row."""

    shape: Shape
    item: int
    runs: list[Run]
    starts: list[int]
    boxes: list[Chunk]


def prepare(view: View) -> Prepared:
    """Sort a view's chunks into runs and boxes; done once a tensor."""
    item = itemsize(view.dtype)
    steps = contiguous_strides(view.shape, 1)
    runs, boxes = [], []
    for chunk in view.chunks:
        if _is_run(chunk, view.shape, item):
            first = sum(offset * step for offset, step in zip(chunk.offsets, steps, strict=True))
            runs.append(Run(first, prod(chunk.sizes), chunk.file, chunk.start))
        else:
            boxes.append(chunk)
    runs.sort()
    boxes.sort(key=lambda chunk: chunk.offsets)
    return Prepared(view.shape, item, runs, [run.first for run in runs], boxes)


def _is_run(chunk: Chunk, shape: Shape, item: int) -> bool:
    step, whole = item, True  # whole: every dim to the right is covered entirely
    for size, stride, full in zip(
        reversed(chunk.sizes), reversed(chunk.strides), reversed(shape), strict=True
    ):
        if size != 1 and (not whole or stride != step):
            return False
        whole = whole and size == full
        step *= size
    return True


class Reader:
    """Reads views with a bounded number of open files and one scratch buffer. One per thread.

    drop_behind: tell the kernel that what was read will not be read again, so that it need not look for pages to
    give up while the output is written. For what does not fit in memory anyway.
    """

    def __init__(self, scratch: int = SCRATCH, drop_behind: bool = False) -> None:
        self._drop = drop_behind and hasattr(os, "posix_fadvise")
        self._files: OrderedDict[str, int] = OrderedDict()
        self._scratch = np.empty(scratch, np.uint8)
        self.nbytes = 0

    def __enter__(self) -> Reader:
        return self

    def __exit__(self, *_: object) -> None:
        while self._files:
            os.close(self._files.popitem()[1])

    def interval(self, prepared: Prepared, low: int, high: int, out: Array) -> None:
        """Fill `out` (raw unsigned elements, high - low of them) with that part of the flattened tensor."""
        item = prepared.item
        if prepared.runs:
            at = max(bisect_right(prepared.starts, low) - 1, 0)
            for first, length, file, start in prepared.runs[at:]:
                if first >= high:
                    break
                begin, end = max(first, low), min(first + length, high)
                if begin < end:
                    self._fill(file, start + (begin - first) * item, out[begin - low : end - low])
        if prepared.boxes:
            for linear, offsets, sizes in boxes_of_interval(low, high, prepared.shape):
                part = out[linear - low : linear - low + prod(sizes)].reshape(sizes)
                self._box(prepared.boxes, offsets, sizes, part)

    def _box(self, chunks: list[Chunk], offsets: Shape, sizes: Shape, out: Array) -> None:
        for chunk in chunks:
            if chunk.offsets[0] >= offsets[0] + sizes[0]:
                break
            begin = tuple(map(max, chunk.offsets, offsets))
            end = tuple(
                min(o + s, lo + ls)
                for o, s, lo, ls in zip(chunk.offsets, chunk.sizes, offsets, sizes, strict=True)
            )
            if all(b < e for b, e in zip(begin, end, strict=True)):
                start = chunk.start + sum(
                    (b - o) * step for b, o, step in zip(begin, chunk.offsets, chunk.strides, strict=True)
                )
                target = out[tuple(slice(b - o, e - o) for b, e, o in zip(begin, end, offsets, strict=True))]
                self._strided(chunk.file, start, chunk.strides, target)

    def _strided(self, file: str, start: int, strides: Shape, out: Array) -> None:
        """Read a strided box: its whole span where that is dense and fits, or its two halves along the widest dim."""
        span = out.itemsize + sum(
            (size - 1) * stride for size, stride in zip(out.shape, strides, strict=True)
        )
        if span <= out.nbytes * _DENSE and span <= self._scratch.nbytes:
            span_bytes = self._scratch[:span]
            self._fill(file, start, span_bytes)
            flat = span_bytes[: span - span % out.itemsize].view(out.dtype)
            np.copyto(out, np.lib.stride_tricks.as_strided(flat, out.shape, strides, writeable=False))
            return
        dim = max((d for d in range(out.ndim) if out.shape[d] > 1), key=lambda d: strides[d])
        half = out.shape[dim] // 2
        before = (slice(None),) * dim
        self._strided(file, start, strides, out[(*before, slice(0, half))])
        self._strided(file, start + half * strides[dim], strides, out[(*before, slice(half, None))])

    def _fill(self, file: str, start: int, out: Array) -> None:
        handle = self._files.get(file)
        if handle is None:
            handle = self._open(file)
        want, view = out.nbytes, memoryview(out).cast("B")
        got = 0
        while got < want:
            try:
                n = os.preadv(handle, [view[got:]], start + got)
            except OSError as error:
                raise CkptconvError(f"cannot be read: {error.strerror}", where=file) from error
            if not n:
                raise CkptconvError(
                    "the file ends before its tensors do",
                    where=file,
                    found=f"{start + got:,} bytes",
                    wanted=f"at least {start + want:,}",
                    hint="it was truncated, or changed while it was read",
                )
            got += n
        self.nbytes += want
        if self._drop:
            os.posix_fadvise(handle, start, want, os.POSIX_FADV_DONTNEED)

    def _open(self, file: str) -> int:
        if len(self._files) >= _OPEN_FILES:
            os.close(self._files.popitem(last=False)[1])
        try:
            handle = self._files[file] = os.open(file, os.O_RDONLY)
        except OSError as error:
            raise CkptconvError(f"cannot be opened: {error.strerror}", where=file) from error
        return handle


def raw_dtype(dtype: str) -> np.dtype[Any]:
    """The unsigned numpy dtype that carries a dtype's bytes."""
    return np.dtype(_RAW.get(itemsize(dtype), np.uint64))


def read_numpy(view: View, reader: Reader | None = None) -> Array:
    """The whole tensor as a numpy array of its own dtype (ml_dtypes' for bfloat16); it must fit in memory."""
    out = np.empty(view.numel, raw_dtype(view.dtype))
    if view.numel:
        if reader is None:
            with Reader() as fresh:
                fresh.interval(prepare(view), 0, view.numel, out)
        else:
            reader.interval(prepare(view), 0, view.numel, out)
    return out.view(to_numpy(view.dtype)).reshape(view.shape)


def same_place(a: View, b: View) -> bool:
    """True when two views are made of the same stored bytes in the same order; equal without reading."""
    return a.shape == b.shape and a.dtype == b.dtype and sorted(a.chunks) == sorted(b.chunks)


def same_values(a: View, b: View, block: int = 1 << 20) -> bool:
    """True when two views hold the same bytes; streams both, block by block."""
    if a.shape != b.shape or a.dtype != b.dtype:
        return False
    if same_place(a, b):
        return True
    left, right = np.empty(block, raw_dtype(a.dtype)), np.empty(block, raw_dtype(b.dtype))
    one, two = prepare(a), prepare(b)
    with Reader() as reader:
        for low in range(0, a.numel, block):
            high = min(low + block, a.numel)
            reader.interval(one, low, high, left[: high - low])
            reader.interval(two, low, high, right[: high - low])
            if not np.array_equal(left[: high - low], right[: high - low]):
                return False
    return True
