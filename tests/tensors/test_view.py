"""The view algebra is what numpy does: random programs of its moves, run on views, numpy arrays and torch tensors."""

from __future__ import annotations

from collections.abc import Callable
from math import prod
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.strategies import DataObject

from ckptconv.read.reader import Reader, prepare, raw_dtype, read_numpy
from ckptconv.tensors import view as algebra
from ckptconv.tensors.dtypes import itemsize, to_numpy
from ckptconv.tensors.intervals import boxes_of_interval
from ckptconv.tensors.view import View, check_tiling, place, stored

FILE_BYTES = 1 << 14
DTYPES = (
    "float64",
    "float32",
    "bfloat16",
    "float16",
    "float8_e4m3fn",
    "int64",
    "uint16",
    "bool",
    "complex64",
)
FIXED = settings(deadline=None, derandomize=True, database=None)


class Values(NamedTuple):
    """One tensor three times: as a view, as numpy's raw elements, and as torch's (where a test asks for it)."""

    view: View
    array: np.ndarray[Any, Any]
    tensor: Any = None


class Disk(dict[str, bytes]):
    """Files by path."""

    def __repr__(self) -> str:
        return "<disk>"


@pytest.fixture(scope="module")
def disk(tmp_path_factory: pytest.TempPathFactory) -> Disk:
    """Three files of random bytes."""
    folder, random = tmp_path_factory.mktemp("disk"), np.random.default_rng(1)
    found = Disk()
    for name in ("one", "two", "three"):
        path: Path = folder / name
        path.write_bytes(random.bytes(FILE_BYTES))
        found[str(path)] = path.read_bytes()
    return found


# --- random programs


def a_stride(draw: DataObject, shape: tuple[int, ...]) -> tuple[int, ...]:
    """Strides in elements: any order of dims, with gaps, and 0 where a dim is expanded."""
    stride, step = [0] * len(shape), 1
    for dim in draw.draw(st.permutations(range(len(shape)))):
        step += draw.draw(st.sampled_from((0, 0, 0, 1, 3)))
        stride[dim] = step if draw.draw(st.integers(0, 5)) else 0
        step *= max(shape[dim], 1)
    return tuple(stride)


def a_leaf(draw: DataObject, disk: Disk, dtype: str, shape: tuple[int, ...] | None, torch: Any) -> Values:
    """A tensor as it lies in a file: at any byte, contiguous or strided."""
    if shape is None:
        shape = tuple(draw.draw(st.lists(st.integers(0, 6), max_size=4)))
    item = itemsize(dtype)
    stride = a_stride(draw, shape) if draw.draw(st.booleans()) else None
    strides = algebra.contiguous_strides(shape, item) if stride is None else tuple(n * item for n in stride)
    reach = item + sum(max(n - 1, 0) * step for n, step in zip(shape, strides, strict=True))
    if reach > FILE_BYTES:
        stride = strides = (0,) * len(shape)
        reach = item
    file = draw.draw(st.sampled_from(sorted(disk)))
    start = draw.draw(st.integers(0, FILE_BYTES - reach))
    array = np.ndarray(shape, raw_dtype(dtype), disk[file], start, strides).copy()
    return values(stored(file, start, shape, dtype, stride), array, torch)


def values(view: View, array: np.ndarray[Any, Any], torch: Any) -> Values:
    """numpy's raw elements as torch sees them: signed, because torch does little with unsigned ones."""
    signed = np.dtype(f"i{array.itemsize}")
    return Values(view, array, torch.from_numpy(array.view(signed)) if torch else None)


def on_all(move: Callable[..., Any], x: Values, *args: Any) -> Values:
    return Values(*(None if one is None else move(one, *args) for one in x))


def on_lists(move: Callable[..., Any], parts: list[Values], dim: int) -> Values:
    return Values(*(None if one[0] is None else move(list(one), dim) for one in zip(*parts, strict=True)))


def a_cut(draw: DataObject, size: int) -> list[int]:
    """Lengths, some of them empty, that add up to a size."""
    cuts = sorted(draw.draw(st.lists(st.integers(0, size), max_size=3)))
    return [high - low for low, high in zip([0, *cuts], [*cuts, size], strict=True)]


def factors(draw: DataObject, size: int) -> list[int]:
    found = []
    for _ in range(draw.draw(st.integers(0, 2))):
        divisors = [n for n in range(1, size + 1) if size % n == 0] if size else [0, 1, 2]
        found.append(draw.draw(st.sampled_from(divisors)))
        size = size // found[-1] if found[-1] else draw.draw(st.integers(0, 2))
    return [*found, size]


def placed(draw: DataObject, disk: Disk, x: Values, torch: Any) -> Values:
    """A tensor of x's shape from new shards, cut along every dim."""
    cuts = [a_cut(draw, size) for size in x.array.shape]
    array, parts = np.empty_like(x.array), []
    for index in np.ndindex(*map(len, cuts)):
        sizes = tuple(cut[i] for cut, i in zip(cuts, index, strict=True))
        offsets = tuple(sum(cut[:i]) for cut, i in zip(cuts, index, strict=True))
        part = a_leaf(draw, disk, x.view.dtype, sizes, torch)
        array[tuple(slice(o, o + n) for o, n in zip(offsets, sizes, strict=True))] = part.array
        parts.append((offsets, part.view))
    return values(place(array.shape, x.view.dtype, parts[::-1]), array, torch)


def step(draw: DataObject, disk: Disk, x: Values, torch: Any) -> Values:
    """One random move."""
    shape, dtype = x.array.shape, x.view.dtype
    moves = ["stack"] + ["permute", "narrow", "cat", "unflatten", "split", "select", "squeeze"] * bool(shape)
    move = draw.draw(st.sampled_from([*moves, "place"] if x.array.size < 200 else moves))
    dim = draw.draw(st.integers(0, max(len(shape) - 1, 0)))
    if move == "permute":
        return on_all(algebra.permute, x, draw.draw(st.permutations(range(len(shape)))))
    if move == "place":
        return placed(draw, disk, x, torch)
    if move == "stack":
        other = a_leaf(draw, disk, dtype, shape, torch)
        return on_lists(algebra.stack, [x, other, x], draw.draw(st.integers(0, len(shape))))
    if move == "narrow":
        start = draw.draw(st.integers(0, shape[dim]))
        return on_all(algebra.narrow, x, dim, start, draw.draw(st.integers(0, shape[dim] - start)))
    if move == "cat":
        sizes = [draw.draw(st.integers(0, 3)) for _ in range(2)]
        before, after = (
            a_leaf(draw, disk, dtype, (*shape[:dim], n, *shape[dim + 1 :]), torch) for n in sizes
        )
        return on_lists(algebra.cat, [before, x, after], dim)
    if move == "unflatten":
        return on_all(algebra.unflatten, x, dim, factors(draw, shape[dim]))
    if move == "split":
        cut = a_cut(draw, shape[dim])
        parts = [
            Values(*found)
            for found in zip(
                *([None] * len(cut) if one is None else algebra.split(one, dim, cut) for one in x),
                strict=True,
            )
        ]
        return on_lists(algebra.cat, draw.draw(st.permutations(parts)), dim)
    if move == "select" and shape[dim]:
        return on_all(algebra.select, x, dim, draw.draw(st.integers(0, shape[dim] - 1)))
    if move == "squeeze" and shape[dim] == 1:
        return on_all(algebra.squeeze, x, dim)
    return x


def run(draw: DataObject, disk: Disk, torch: Any = None) -> Values:
    """A leaf, and up to eight moves on it."""
    x = a_leaf(draw, disk, draw.draw(st.sampled_from(DTYPES)), None, torch)
    for _ in range(draw.draw(st.integers(1, 8))):
        if prod(max(size, 1) for size in x.array.shape) > 3000 or x.array.ndim > 6:
            break
        x = step(draw, disk, x, torch)
    return x


@settings(FIXED, max_examples=200)
@given(draw=st.data())
def test_a_program_on_views_reads_what_numpy_computes(disk: Disk, draw: DataObject) -> None:
    view, array, _ = run(draw, disk)
    assert view.shape == array.shape
    assert view.nbytes == array.nbytes
    check_tiling(view.shape, view.chunks)
    with Reader(scratch=64) as reader:
        assert read_numpy(view, reader).tobytes() == array.tobytes()
    assert read_numpy(view).dtype == to_numpy(view.dtype)


@settings(FIXED, max_examples=100)
@given(draw=st.data())
def test_any_interval_can_be_read_alone(disk: Disk, draw: DataObject) -> None:
    view, array, _ = run(draw, disk)
    flat, prepared = array.reshape(-1), prepare(view)
    with Reader(scratch=draw.draw(st.sampled_from((8, 64, 1 << 12)))) as reader:
        for _ in range(4):
            low = draw.draw(st.integers(0, array.size))
            high = draw.draw(st.integers(low, array.size))
            out = np.zeros(high - low, array.dtype)
            reader.interval(prepared, low, high, out)
            assert out.tobytes() == flat[low:high].tobytes()


@settings(FIXED, max_examples=50)
@given(draw=st.data())
def test_the_same_program_serves_torch_tensors(disk: Disk, draw: DataObject) -> None:
    torch = pytest.importorskip("torch")
    _, array, tensor = run(draw, disk, torch)
    assert tuple(tensor.shape) == array.shape
    assert tensor.contiguous().numpy().tobytes() == array.tobytes()


# --- facts about single moves


@settings(FIXED, max_examples=200)
@given(sizes=st.lists(st.integers(1, 5), min_size=1, max_size=5).map(tuple), draw=st.data())
def test_an_interval_becomes_at_most_2n_minus_1_boxes(sizes: tuple[int, ...], draw: DataObject) -> None:
    low = draw.draw(st.integers(0, prod(sizes) - 1))
    high = draw.draw(st.integers(low + 1, prod(sizes)))
    boxes = boxes_of_interval(low, high, sizes)
    assert len(boxes) <= 2 * len(sizes) - 1
    lattice, at = np.arange(prod(sizes)).reshape(sizes), low
    for first, offsets, box in boxes:
        part = lattice[tuple(slice(o, o + n) for o, n in zip(offsets, box, strict=True))]
        assert first == at
        assert part.reshape(-1).tolist() == list(range(at, at + prod(box)))
        at += prod(box)
    assert at == high


def test_moves_touch_no_file() -> None:
    view = algebra.cat([stored("nowhere", 0, (4, 6), "float32"), stored("nothing", 8, (2, 6), "float32")], 0)
    grouped = algebra.unflatten(algebra.permute(view, (1, 0)), 0, (2, 3))
    assert [part.files for part in algebra.split(grouped, 2, (4, 2))] == [("nowhere",), ("nothing",)]


def test_qkv_of_megatron_comes_apart_as_the_design_says(disk: Disk) -> None:
    groups, heads, head_dim, hidden = 2, 6, 5, 7
    file, rows = next(iter(disk)), (heads // groups + 2) * head_dim
    leaf = algebra.cat([stored(file, i * 2000, (rows, hidden), "float32") for i in range(groups)], 0)
    grouped = algebra.unflatten(leaf, 0, (groups, heads // groups + 2, head_dim))
    query, key, _ = algebra.split(grouped, 1, (heads // groups, 1, 1))
    whole = read_numpy(leaf).reshape(groups, -1, head_dim, hidden)
    assert query.numel == heads * head_dim * hidden
    assert read_numpy(query).tobytes() == whole[:, :3].tobytes()
    assert read_numpy(key).tobytes() == whole[:, 3:4].tobytes()
