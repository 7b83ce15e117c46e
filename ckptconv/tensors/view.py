"""A tensor as the positions of its elements in files, and the five moves on it. This module touches no data.

`stored, narrow, cat, permute, unflatten` each rewrite the list of chunks and nothing else, so any re-slicing of a
model is a rewrite of small tuples. `narrow, cat, permute, unflatten` and the functions built on them (`split, select,
stack, squeeze`) accept numpy arrays and torch tensors as well, so one rule serves views and real tensors alike.

There is no `flatten`: a plan's output is C-contiguous, so the plan merges dims by writing another shape at the end.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from functools import lru_cache
from math import prod
from typing import Any, NamedTuple, TypeVar

from ckptconv.errors import CkptconvError
from ckptconv.tensors.boxes import Chunk, Shape, contiguous_strides
from ckptconv.tensors.dtypes import itemsize
from ckptconv.tensors.intervals import boxes_of_interval
from ckptconv.tensors.tiling import check_tiling

T = TypeVar("T")  # a View, a numpy array or a torch tensor


class View(NamedTuple):
    """A tensor without data.

    Args:
        shape: elements along each dim.
        dtype: a name from `dtypes`, such as "bfloat16".
        chunks: boxes that tile the tensor exactly once, each with the position of its bytes.
    """

    shape: Shape
    dtype: str
    chunks: tuple[Chunk, ...]

    @property
    def numel(self) -> int:
        """The number of elements."""
        return prod(self.shape)

    @property
    def nbytes(self) -> int:
        """The size in bytes."""
        return self.numel * itemsize(self.dtype)

    @property
    def files(self) -> tuple[str, ...]:
        """The files that hold its elements, in the order of first use."""
        return tuple(dict.fromkeys(chunk.file for chunk in self.chunks))

    @property
    def views(self) -> tuple[View, ...]:
        """The view itself: what fills a tensor is a view, or is computed from several (`compute.Computed`)."""
        return (self,)


@lru_cache(maxsize=4096)  # thousands of files hold the same few shapes
def _byte_strides(shape: Shape, stride: Shape | None, item: int) -> Shape | None:
    """Strides in bytes; None if a size or a stride is negative."""
    strides = contiguous_strides(shape, item) if stride is None else tuple(step * item for step in stride)
    return None if any(number < 0 for number in shape + strides) else strides


def stored(
    file: str, start: int, shape: Sequence[int], dtype: str, stride: Sequence[int] | None = None
) -> View:
    """Move 1: a tensor as it is stored in a file.

    Args:
        file: the path.
        start: the byte at which the first element begins.
        shape: elements along each dim.
        dtype: a name from `dtypes`.
        stride: elements from one index to the next along each dim, as in torch; C-contiguous when omitted.

    Raises:
        CkptconvError: a size, stride or offset is negative, or shape and stride have different lengths.
    """
    shape = tuple(shape)
    strides = _byte_strides(shape, None if stride is None else tuple(stride), itemsize(dtype))
    if start < 0 or strides is None:
        raise CkptconvError("a stored tensor has a negative size, stride or offset", where=file)
    if len(strides) != len(shape):
        raise CkptconvError(f"a stored tensor has {len(shape)} dims but {len(strides)} strides", where=file)
    if not prod(shape):
        return View(shape, dtype, ())
    return View(shape, dtype, (Chunk((0,) * len(shape), shape, file, start, strides),))


def narrow(x: T, dim: int, start: int, length: int) -> T:
    """Move 2: take the elements start .. start+length-1 along dim.

    Raises:
        CkptconvError: the elements are out of range.
    """
    array: Any = x
    _check_dim(array, dim)
    size = array.shape[dim]
    if start < 0 or length < 0 or start + length > size:
        raise CkptconvError(
            f"elements {start} to {start + length} along dim {dim} are outside its {size} elements"
        )
    if not isinstance(x, View):
        return array[(slice(None),) * dim + (slice(start, start + length),)]
    if length == size:
        return x
    chunks, end = [], start + length
    for chunk in x.chunks:
        low = chunk.offsets[dim]
        begin, stop = max(low, start), min(low + chunk.sizes[dim], end)
        if not start and 0 < chunk.sizes[dim] == stop - begin:
            chunks.append(chunk)  # nothing is cut off, so the chunk stays the same
        elif begin < stop:
            chunks.append(
                Chunk(
                    _put(chunk.offsets, dim, begin - start),
                    _put(chunk.sizes, dim, stop - begin),
                    chunk.file,
                    chunk.start + (begin - low) * chunk.strides[dim],
                    chunk.strides,
                )
            )
    shape = _put(x.shape, dim, length)
    return View(shape, x.dtype, tuple(chunks) if prod(shape) else ())  # type: ignore[return-value]


def cat(parts: Sequence[T], dim: int) -> T:
    """Move 3: concatenate tensors along dim.

    Raises:
        CkptconvError: the dtypes or the sizes of another dim differ.
    """
    first: Any = parts[0]
    _check_dim(first, dim)
    if not isinstance(first, View):
        return _library(first).concatenate(list(parts), dim)
    views: Sequence[View] = parts  # type: ignore[assignment]
    chunks: list[Chunk] = []
    at = 0
    for view in views:
        if _put(view.shape, dim, 0) != _put(first.shape, dim, 0) or view.dtype != first.dtype:
            raise CkptconvError(
                f"tensors to be joined along dim {dim} do not fit together",
                found=f"{view.dtype} {list(view.shape)}",
                wanted=f"{first.dtype} {list(first.shape)} but for dim {dim}",
            )
        if at:
            chunks.extend(c._replace(offsets=_put(c.offsets, dim, c.offsets[dim] + at)) for c in view.chunks)
        else:
            chunks.extend(view.chunks)
        at += view.shape[dim]
    return View(_put(first.shape, dim, at), first.dtype, tuple(chunks))  # type: ignore[return-value]


def permute(x: T, dims: Sequence[int]) -> T:
    """Move 4: reorder the dims; new dim i is old dim dims[i].

    Raises:
        CkptconvError: `dims` is not a permutation of the tensor's dims.
    """
    array: Any = x
    if sorted(dims) != list(range(len(array.shape))):
        raise CkptconvError(f"{list(dims)} is not a permutation of {len(array.shape)} dims")
    if not isinstance(x, View):
        return array.permute(tuple(dims)) if hasattr(array, "permute") else array.transpose(dims)

    def pick(values: Shape) -> Shape:
        return tuple(values[dim] for dim in dims)

    chunks = tuple(Chunk(pick(c.offsets), pick(c.sizes), c.file, c.start, pick(c.strides)) for c in x.chunks)
    return View(pick(x.shape), x.dtype, chunks)  # type: ignore[return-value]


def unflatten(x: T, dim: int, sizes: Sequence[int]) -> T:
    """Move 5: split one dim into several dims of the given sizes, in row-major order.

    A chunk that begins or ends within a row becomes several boxes, at most 2n-1 for n new dims.
    Raises:
        CkptconvError: the product of `sizes` is not the size of the dim.
    """
    array: Any = x
    _check_dim(array, dim)
    sizes = tuple(sizes)
    if prod(sizes) != array.shape[dim] or any(size < 0 for size in sizes):
        raise CkptconvError(f"a dim of {array.shape[dim]} elements cannot become {list(sizes)}")
    shape = tuple(array.shape[:dim]) + sizes + tuple(array.shape[dim + 1 :])
    if not isinstance(x, View):
        return array.reshape(shape)
    chunks = []
    inner: dict[int, Shape] = {}  # stride -> strides of the new dims; most chunks share one stride
    for chunk in x.chunks:
        low, stride = chunk.offsets[dim], chunk.strides[dim]
        if stride not in inner:
            inner[stride] = contiguous_strides(sizes, stride)
        strides = chunk.strides[:dim] + inner[stride] + chunk.strides[dim + 1 :]
        for linear, offsets, box in boxes_of_interval(low, low + chunk.sizes[dim], sizes):
            chunks.append(
                Chunk(
                    chunk.offsets[:dim] + offsets + chunk.offsets[dim + 1 :],
                    chunk.sizes[:dim] + box + chunk.sizes[dim + 1 :],
                    chunk.file,
                    chunk.start + (linear - low) * stride,
                    strides,
                )
            )
    return View(shape, x.dtype, tuple(chunks))  # type: ignore[return-value]


def place(shape: Sequence[int], dtype: str, parts: Iterable[tuple[Sequence[int], View]]) -> View:
    """Assemble a tensor from parts, such as the shards of a mesh.

    Args:
        shape: elements along each dim of the whole tensor.
        dtype: the dtype of the tensor and of every part.
        parts: (offsets, view) of each part, the offsets in elements.

    Raises:
        CkptconvError: a part has another dtype or number of dims, or the parts do not tile the tensor exactly once.
    """
    shape = tuple(shape)
    chunks: list[Chunk] = []
    for offsets, part in parts:
        if part.dtype != dtype:
            raise CkptconvError("shards of one tensor have different dtypes", found=part.dtype, wanted=dtype)
        if not len(part.shape) == len(offsets) == len(shape):
            raise CkptconvError(
                "a shard and its tensor have different numbers of dims",
                found=list(part.shape),
                wanted=list(shape),
            )
        offsets = tuple(offsets)
        for c in part.chunks:
            shifted = c.box.shifted(offsets).offsets if any(c.offsets) else offsets
            chunks.append(Chunk(shifted, c.sizes, c.file, c.start, c.strides))
    check_tiling(shape, chunks)
    return View(shape, dtype, tuple(chunks))


def squeeze(x: T, dim: int) -> T:
    """Drop a dim of size 1.

    Raises:
        CkptconvError: the dim has another size.
    """
    array: Any = x
    _check_dim(array, dim)
    if array.shape[dim] != 1:
        raise CkptconvError(f"dim {dim} has {array.shape[dim]} elements, not one")
    if not isinstance(x, View):
        return array.reshape(tuple(array.shape[:dim]) + tuple(array.shape[dim + 1 :]))

    def drop(values: Shape) -> Shape:
        return values[:dim] + values[dim + 1 :]

    chunks = tuple(Chunk(drop(c.offsets), drop(c.sizes), c.file, c.start, drop(c.strides)) for c in x.chunks)
    return View(drop(x.shape), x.dtype, chunks)  # type: ignore[return-value]


def select(x: T, dim: int, index: int) -> T:
    """Take one index along dim, and drop the dim."""
    return squeeze(narrow(x, dim, index, 1), dim)


def unbind(x: T, dim: int) -> list[T]:
    """Split into one tensor per index along dim, without that dim. This takes one pass over the chunks."""
    array: Any = x
    _check_dim(array, dim)
    size = array.shape[dim]
    if not isinstance(x, View):
        return [select(x, dim, index) for index in range(size)]
    by_index: list[list[Chunk]] = [[] for _ in range(size)]
    for c in x.chunks:
        offsets, sizes = c.offsets[:dim] + c.offsets[dim + 1 :], c.sizes[:dim] + c.sizes[dim + 1 :]
        strides, step = c.strides[:dim] + c.strides[dim + 1 :], c.strides[dim]
        for index in range(c.sizes[dim]):
            by_index[c.offsets[dim] + index].append(
                Chunk(offsets, sizes, c.file, c.start + index * step, strides)
            )
    shape = x.shape[:dim] + x.shape[dim + 1 :]
    return [View(shape, x.dtype, tuple(chunks)) for chunks in by_index]  # type: ignore[misc]


def split(x: T, dim: int, lengths: Sequence[int]) -> list[T]:
    """Split into consecutive parts along dim.

    Raises:
        CkptconvError: the lengths do not add up to the dim's size.
    """
    array: Any = x
    _check_dim(array, dim)
    if sum(lengths) != array.shape[dim]:
        raise CkptconvError(f"parts of {list(lengths)} do not add up to dim {dim} of {array.shape[dim]}")
    parts, at = [], 0
    for length in lengths:
        parts.append(narrow(x, dim, at, length))
        at += length
    return parts


def stack(parts: Sequence[T], dim: int) -> T:
    """Stack tensors of one shape along a new dim."""
    return cat([_unsqueeze(part, dim) for part in parts], dim)


def _unsqueeze(x: T, dim: int) -> T:
    array: Any = x
    if dim == len(array.shape):  # for a new last dim, the present last one becomes (n, 1)
        if dim == 0:
            return _scalar_to_vector(x)
        return unflatten(x, dim - 1, (array.shape[dim - 1], 1))
    return unflatten(x, dim, (1, array.shape[dim]))


def _scalar_to_vector(x: T) -> T:
    array: Any = x
    if not isinstance(x, View):
        return array.reshape((1,))
    chunks = tuple(Chunk((0,), (1,), c.file, c.start, (itemsize(x.dtype),)) for c in x.chunks)
    return View((1,), x.dtype, chunks)  # type: ignore[return-value]


def _check_dim(x: Any, dim: int) -> None:
    if not 0 <= dim < len(x.shape):
        raise CkptconvError(
            f"dim {dim} is out of range for a tensor of {len(x.shape)} dims", hint="dims count from 0"
        )


def _put(values: Shape, dim: int, value: int) -> Shape:
    return (*values[:dim], value, *values[dim + 1 :])


def _library(array: Any) -> Any:
    """The library that the array is from, numpy or torch; the other one is not imported."""
    from importlib import import_module

    return import_module(type(array).__module__.split(".")[0])
