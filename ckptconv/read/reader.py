"""Reads the elements of a view with bounded preads into the caller's buffer, never a whole file, never a mapping.

Elements that are contiguous in the file and in the tensor form a run, which costs one pread per block. Every other
chunk (a column shard, a transpose) is a box: `gather` decides how it is read into one scratch buffer, from which its
elements are copied to their positions. A cast is part of that copy, while the elements are in a core's cache.
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Iterable
from itertools import accumulate, product
from math import prod
from operator import add, mul, sub
from typing import Any, NamedTuple

import numpy as np

from ckptconv.read.files import Files
from ckptconv.read.gather import RAW, Array, Cast, arrange, groups, overlap, put
from ckptconv.tensors.boxes import Chunk, Shape, contiguous_strides
from ckptconv.tensors.dtypes import itemsize, to_numpy
from ckptconv.tensors.intervals import boxes_of_interval
from ckptconv.tensors.view import View

_SPAN = 2 << 20  # bytes of a box that are read at a time
_PACKED = 1 << 20  # bytes of scratch in which they are transposed
SCRATCH = _SPAN + _PACKED  # bytes of a reader's buffers
CAST_BLOCK = 1 << 16  # elements per cast; source and target together stay in a core's cache
_LONG = 64 << 10  # from this many contiguous bytes on, a run gets its own read
_RUNS = (
    1 << 16
)  # most contiguous runs kept per chunk; with more (stride-0 expands) the chunk is read as a box

Part = tuple[Shape, Shape, Array]  # offsets and sizes of a box, in elements, and the memory that it fills


class Run(NamedTuple):
    """Elements first .. first+length-1 of the flattened tensor, contiguous in `file` from byte `start`."""

    first: int
    length: int
    file: str
    start: int


class Prepared(NamedTuple):
    """A view prepared for reading.

    Args:
        shape: the shape of the view.
        item: bytes per element.
        runs: the contiguous runs, sorted by position in the flattened tensor.
        starts: the first position of each run, for bisection.
        boxes: the other chunks, sorted by their first row.
        ends: ends[i] is the largest end row of boxes[: i + 1], for bisection.
        turned: some box is not row-major in its file.
    """

    shape: Shape
    item: int
    runs: list[Run]
    starts: list[int]
    boxes: list[Chunk]
    ends: list[int]
    turned: bool


def prepare(view: View) -> Prepared:
    """Sort the chunks of a view into runs and boxes. Call it once per tensor."""
    item = itemsize(view.dtype)
    steps = contiguous_strides(view.shape, 1)
    runs, boxes = [], []
    for chunk in view.chunks:
        outer = _outer_dims(chunk, view.shape, item)
        length = prod(chunk.sizes[outer:])
        if outer and (length * item < _LONG or prod(chunk.sizes[:outer]) > _RUNS):
            boxes.append(chunk)
            continue
        for index in product(*map(range, chunk.sizes[:outer])):
            first = _dot(map(add, chunk.offsets, (*index, *[0] * len(steps))), steps)
            runs.append(Run(first, length, chunk.file, chunk.start + _dot(index, chunk.strides)))
    runs.sort()
    boxes.sort(key=lambda chunk: chunk.offsets)
    ends = list(accumulate((chunk.offsets[0] + chunk.sizes[0] for chunk in boxes), max))
    turned = any(_is_turned(chunk.sizes, chunk.strides) for chunk in boxes)
    return Prepared(view.shape, item, runs, [run.first for run in runs], boxes, ends, turned)


def _is_turned(sizes: Shape, strides: Shape) -> bool:
    """True if the dim that varies fastest in memory is not the one that varies fastest in the file."""
    steps = [stride for size, stride in zip(sizes, strides, strict=True) if size > 1]
    return bool(steps) and steps[-1] > min(steps)


def _outer_dims(chunk: Chunk, shape: Shape, item: int) -> int:
    """The number of leading dims to iterate over, so that the rest is contiguous in the file and in the tensor."""
    step, whole = item, True  # whole: the chunk covers every dim to the right completely
    for dim in reversed(range(len(shape))):
        size = chunk.sizes[dim]
        if size != 1 and (not whole or chunk.strides[dim] != step):
            return dim + 1
        whole = whole and size == shape[dim]
        step *= size
    return 0


class Reader:
    """Reads views with a bounded number of open files and one scratch buffer. Each thread has its own.

    `nbytes` counts the bytes of the elements that callers have asked for so far.

    Args:
        scratch: bytes of buffers for boxes and casts.
        drop_behind: no byte will be read again (see `Files`).
    """

    def __init__(self, scratch: int = SCRATCH, drop_behind: bool = False) -> None:
        self._files = Files(drop_behind)
        packed = max(scratch - 8, 0) // 24 * 8  # a third, in whole elements of any dtype
        self._scratch, self._packed = np.empty(scratch - packed, np.uint8), np.empty(packed, np.uint8)
        self._memory = memoryview(self._scratch)
        self.nbytes = 0

    def __enter__(self) -> Reader:
        return self

    def __exit__(self, *_: object) -> None:
        self._files.close()

    def interval(self, prepared: Prepared, low: int, high: int, out: Array, cast: Cast | None = None) -> None:
        """Fill `out` with the elements low..high-1 of the flattened tensor.

        Args:
            prepared: the view.
            low: the first element.
            high: one past the last element.
            out: high-low elements: of `raw_dtype` without a cast, else of the dtype that the cast writes.
            cast: the conversion, or None to copy the stored bytes.

        Raises:
            CkptconvError: a file cannot be read, or it ends too early.
        """
        item = prepared.item
        if prepared.runs:
            at = max(bisect_right(prepared.starts, low) - 1, 0)
            for number in range(at, len(prepared.runs)):
                first, length, file, start = prepared.runs[number]
                if first >= high:
                    break
                begin, end = max(first, low), min(first + length, high)
                if begin < end:
                    self._run(file, start + (begin - first) * item, out[begin - low : end - low], item, cast)
        if prepared.boxes:
            self._boxes(prepared, low, high, out, cast)
        self.nbytes += (high - low) * item

    def _run(self, file: str, start: int, out: Array, item: int, cast: Cast | None) -> None:
        if cast is None:
            self._files.fill(file, start, memoryview(out).cast("B"))
            return
        step = min(CAST_BLOCK, len(self._scratch) // item)
        for at in range(0, len(out), step):
            part = out[at : at + step]
            values = self._scratch[: len(part) * item]
            self._files.fill(file, start + at * item, self._memory[: len(values)])
            cast.put(values.view(cast.stored), part)

    def _boxes(self, prepared: Prepared, low: int, high: int, out: Array, cast: Cast | None) -> None:
        shape, parts = prepared.shape, []
        for linear, offsets, sizes in boxes_of_interval(low, high, shape):
            parts.append((offsets, sizes, out[linear - low : linear - low + prod(sizes)].reshape(sizes)))
        # A part of a short row costs about as much as the whole row, so the interval is extended to whole rows.
        most = (high - low) // (16 if prepared.turned else 64)
        width = _short_rows(shape, most) if len(parts) > 1 else 1
        if width > 1:
            whole = boxes_of_interval(low // width * width, -(-high // width) * width, shape)
            wanted = [(offsets, sizes, parts) for _, offsets, sizes in whole]
        else:
            wanted = [(*part[:2], [part]) for part in parts]
        for offsets, sizes, places in wanted:
            for number in range(bisect_right(prepared.ends, offsets[0]), len(prepared.boxes)):
                chunk = prepared.boxes[number]
                if chunk.offsets[0] >= offsets[0] + sizes[0]:
                    break
                shared = overlap(chunk.offsets, chunk.sizes, offsets, sizes)
                if shared:
                    start = chunk.start + _dot(map(sub, shared[0], chunk.offsets), chunk.strides)
                    self._box(chunk.file, start, chunk.strides, *shared, places, cast)
                    if self._files.drop:
                        self._forget(prepared, chunk, low, high)

    def _box(
        self,
        file: str,
        start: int,
        strides: Shape,
        begin: Shape,
        sizes: Shape,
        parts: list[Part],
        cast: Cast | None,
    ) -> None:
        """Read a box of a chunk, and copy every element to its position in the parts."""
        raw = parts[0][2].dtype if cast is None else cast.stored
        gather = arrange(sizes, strides, raw.itemsize, len(self._scratch))
        if gather.group != sizes:
            for at, group in groups(sizes, gather.group):
                here = tuple(map(add, begin, at))
                self._box(file, start + _dot(at, strides), strides, here, group, parts, cast)
            return
        sources, places = [start], [0]
        for dim in gather.walked:
            stride, pitch, steps = strides[dim], gather.pitches[dim], range(sizes[dim])
            sources = [source + i * stride for source in sources for i in steps]
            places = [place + i * pitch for place in places for i in steps]
        for source, place in zip(sources, places, strict=True):
            self._files.fill(file, source, self._memory[place : place + gather.nbytes], gather.gaps)
        values = np.ndarray(sizes, raw, self._scratch, 0, gather.pitches)
        for offsets, shape, out in parts:
            if len(parts) == 1:
                put(values, _cut(out, offsets, begin, sizes), gather, cast, self._packed)
                continue
            shared = overlap(begin, sizes, offsets, shape)
            if shared:
                put(_cut(values, begin, *shared), _cut(out, offsets, *shared), gather, cast, self._packed)

    def _forget(self, prepared: Prepared, chunk: Chunk, low: int, high: int) -> None:
        """Drop the pages of a chunk that was read with gaps, once the interval includes the chunk's last element."""
        steps = contiguous_strides(prepared.shape, 1)
        last = sum((o + n - 1) * step for o, n, step in zip(chunk.offsets, chunk.sizes, steps, strict=True))
        if low <= last < high:
            reach = sum((n - 1) * step for n, step in zip(chunk.sizes, chunk.strides, strict=True))
            self._files.forget(chunk.file, chunk.start, reach + prepared.item)


def _short_rows(shape: Shape, most: int) -> int:
    """The number of elements in the last few dims, as many dims as have at most `most` elements; at least 1."""
    width = 1
    for size in reversed(shape):
        if width * size > most:
            break
        width *= size
    return width


def _dot(places: Iterable[int], strides: Shape) -> int:
    return sum(map(mul, places, strides))


def _cut(array: Array, origin: Shape, offsets: Shape, sizes: Shape) -> Array:
    """The box at `offsets` of an array whose first element is at `origin`."""
    if array.shape == sizes:
        return array
    first = tuple(map(sub, offsets, origin))
    return array[tuple(map(slice, first, map(add, first, sizes)))]


def raw_dtype(dtype: str) -> np.dtype[Any]:
    """The unsigned numpy dtype that carries a dtype's bytes."""
    return RAW[itemsize(dtype)]


def read_numpy(view: View, reader: Reader | None = None) -> Array:
    """Read a whole tensor, which must fit in memory.

    Args:
        view: the tensor.
        reader: reads the files; None for one that is closed at the end.

    Returns:
        An array of the view's shape and dtype (from ml_dtypes for bfloat16 and float8).

    Raises:
        CkptconvError: a file cannot be read, or it ends too early.
    """
    out = np.empty(view.numel, raw_dtype(view.dtype))
    if view.numel:
        if reader is None:
            with Reader() as fresh:
                fresh.interval(prepare(view), 0, view.numel, out)
        else:
            reader.interval(prepare(view), 0, view.numel, out)
    return out.view(to_numpy(view.dtype)).reshape(view.shape)


def same_place(a: View, b: View) -> bool:
    """True if two views consist of the same stored bytes in the same order, so that they are equal without reading."""
    return a.shape == b.shape and a.dtype == b.dtype and sorted(a.chunks) == sorted(b.chunks)


def same_values(a: View, b: View, block: int = 1 << 20) -> bool:
    """True if two views hold the same bytes. Both are streamed.

    Args:
        a: a view.
        b: another.
        block: elements that are compared at a time.

    Raises:
        CkptconvError: a file cannot be read, or it ends too early.
    """
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
