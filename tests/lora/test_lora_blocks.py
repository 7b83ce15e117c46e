"""LoRA by blocks: any interval of any view gives the same elements, in bounded memory, DoRA's lengths as well."""

from __future__ import annotations

import tracemalloc
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
import pytest

from ckptconv.compute.block import Block
from ckptconv.compute.sources import Added, Computed, Decomposed, Dequantised, Fuse, Rewritten, Scales
from ckptconv.copy.hashing import HASH_BLOCK
from ckptconv.read.reader import Reader
from ckptconv.tensors.view import View, permute, split, stored, unflatten

Array = np.ndarray[Any, np.dtype[np.float32]]


class Disk:
    """Arrays in one file, as views."""

    def __init__(self, path: Path) -> None:
        self._path, self._end = path, 0

    def add(self, array: Any) -> View:
        with open(self._path, "ab") as file:
            file.write(bytes(-self._end % 4))
            self._end += -self._end % 4
            file.write(np.ascontiguousarray(array).tobytes())
        view = stored(str(self._path), self._end, array.shape, array.dtype.name)
        self._end += array.nbytes
        return view


def values(*shape: int, seed: int = 0) -> Array:
    return np.random.default_rng(seed).standard_normal(shape).astype(np.float32)


def filled(source: Computed, low: int, high: int) -> Array:
    out = np.empty((high - low) * 4, np.uint8)
    with Reader() as reader:
        Block(source, "float32").fill(reader, low, high, out, np.empty(8 << 16, np.uint8))
    return out.view(np.float32)


def check(source: Computed, wanted: Array, **close: float) -> None:
    """All of it at once, and intervals that begin and end in mid-row."""
    flat = wanted.reshape(-1)
    for low, high in ((0, flat.size), (7, 8), (5, flat.size - 3), (flat.size // 3, flat.size // 2), (3, 3)):
        np.testing.assert_allclose(
            filled(source, low, high), flat[low:high], **(close or {"rtol": 1e-5, "atol": 1e-5})
        )


def groups(view: Any) -> list[Any]:
    """Queries, keys and values of two KV heads, as Megatron's rows have them: views that no flat one is."""
    return split(unflatten(view, 0, (2, 5, 7)), 1, (3, 1, 1))


@pytest.mark.parametrize("width", [11, 9_001, 70_001])
def test_the_pieces_of_an_interleaved_weight(width: int, tmp_path: Path) -> None:
    disk = Disk(tmp_path / "file")
    weight, left, right = values(70, width), values(70, 3, seed=1), values(3, width, seed=2)
    views = [disk.add(array) for array in (weight, left, right)]
    whole = weight + (left @ right) * np.float32(1.5)
    for base, part, wanted in zip(groups(views[0]), groups(views[1]), groups(whole), strict=True):
        check(Fuse(base, part, views[2], 1.5), np.ascontiguousarray(wanted))


@pytest.mark.parametrize("width", [11, 9_001, 70_001])
@pytest.mark.parametrize("by_column", [False, True])
def test_dora(width: int, by_column: bool, tmp_path: Path) -> None:
    disk = Disk(tmp_path / "file")
    weight, left, right = values(70, width), values(70, 3, seed=1), values(3, width, seed=2)
    magnitude = np.abs(values(width if by_column else 70, seed=3))
    one, two, three, four = (disk.add(array) for array in (weight, left, right, magnitude))
    whole = (weight + (left @ right) * np.float32(0.5)).astype(np.float64)
    dim = 0 if by_column else 1
    factor = np.expand_dims(magnitude, dim) / np.linalg.norm(whole, axis=dim, keepdims=True)
    check(Decomposed(one, two, three, 0.5, four, by_column), (factor * whole).astype(np.float32))


@pytest.mark.parametrize("experts", [1, 3])
def test_a_stack_of_experts(experts: int, tmp_path: Path) -> None:
    disk = Disk(tmp_path / "file")
    weight, left, right = (
        values(experts, 9, 13),
        values(experts, 9, 2, seed=1),
        values(experts, 2, 13, seed=2),
    )
    views = [disk.add(array) for array in (weight, left, right)]
    check(Fuse(*views, 2.0), weight + left @ right * np.float32(2))


def test_a_turned_left_side_and_a_bias(tmp_path: Path) -> None:
    disk = Disk(tmp_path / "file")
    weight, left, right = values(9, 13), values(2, 9, seed=1), values(2, 13, seed=2)
    views = [disk.add(array) for array in (weight, left, right)]
    check(Fuse(views[0], permute(views[1], (1, 0)), views[2], 2.0), weight + left.T @ right * np.float32(2))
    check(
        Added(views[0], disk.add(values(9, 13, seed=5)), 3.0), weight + values(9, 13, seed=5) * np.float32(3)
    )


# --- float8 codes and their scales


def quantised(*shape: int, block: tuple[int, int]) -> tuple[Any, Array, Array]:
    """Codes, scales, and the values that they stand for, by a definition of its own: each element is looked up."""
    codes = values(*shape, seed=4).astype(ml_dtypes.float8_e4m3fn)
    *stack, out, width = shape
    rows, columns = block
    scales = np.exp(values(*stack, -(-out // rows), -(-width // columns), seed=5))
    where = np.ix_(*map(range, stack), np.arange(out) // rows, np.arange(width) // columns)
    return codes, scales, codes.astype(np.float32) * scales[where]


@pytest.mark.parametrize("block", [(4, 8), (3, 5), (1, 100), (100, 100)])
@pytest.mark.parametrize("shape", [(9, 13), (3, 9, 13), (9, 70_001)])
def test_float8_codes_become_their_values(
    shape: tuple[int, ...], block: tuple[int, int], tmp_path: Path
) -> None:
    """Shapes that the blocks do not divide, and stacks, whose blocks end with each matrix."""
    disk = Disk(tmp_path / "file")
    codes, scales, wanted = quantised(*shape, block=block)
    found = Dequantised(disk.add(codes), scales=Scales(disk.add(scales), block, "bfloat16"))
    check(found, wanted, rtol=1e-6)
    assert found.dtype == "bfloat16"


def test_one_scale_for_all_codes(tmp_path: Path) -> None:
    disk = Disk(tmp_path / "file")
    codes, scale = values(9, 13).astype(ml_dtypes.float8_e5m2), np.array(1.75, np.float32)
    found = Dequantised(disk.add(codes), scales=Scales(disk.add(scale), (0, 0), "bfloat16"))
    check(found, codes.astype(np.float32) * np.float32(1.75), rtol=1e-6)


@pytest.mark.parametrize("by_row", [False, True])
def test_updates_are_added_to_the_values_of_float8_codes(by_row: bool, tmp_path: Path) -> None:
    disk = Disk(tmp_path / "file")
    codes, scales, weight = quantised(9, 13, block=(4, 5))
    left, right = values(9, 2, seed=1), values(2, 13, seed=2)
    sides = (disk.add(codes), disk.add(left), disk.add(right), 2.0)
    kept = Scales(disk.add(scales), (4, 5), "bfloat16")
    whole = weight + left @ right * np.float32(2)
    if not by_row:
        check(Fuse(*sides, scales=kept), whole)
        return
    magnitude = np.abs(values(9, seed=3))
    length = np.linalg.norm(whole.astype(np.float64), axis=1)
    wanted = (magnitude / length)[:, None] * whole
    check(Decomposed(*sides, disk.add(magnitude), scales=kept), wanted.astype(np.float32))


@pytest.mark.parametrize("width", [13, 70_001])
def test_rows_are_replaced(width: int, tmp_path: Path) -> None:
    disk = Disk(tmp_path / "file")
    weight, rows = values(9, width), values(3, width, seed=1)
    indices = (4, 8, 0)
    wanted = weight.copy()
    wanted[list(indices)] = rows
    check(Rewritten(disk.add(weight), disk.add(rows), indices), wanted, rtol=0)


@pytest.mark.parametrize("kind", ["fuse", "dora"])
def test_memory_does_not_grow_with_the_weight(kind: str, tmp_path: Path) -> None:
    """One block of an interleaved weight, whose reads are as large as the scratch buffer: no copy of that size is made."""
    disk, rows, width = Disk(tmp_path / "file"), 4 * 5 * 256, 2048
    weight, left, right, magnitude = (
        disk.add(array)
        for array in (values(rows, width), values(rows, 4), values(4, width), values(rows // 5 * 3))
    )
    base = split(unflatten(weight, 0, (4, 5, 256)), 1, (3, 1, 1))[0]
    part = split(unflatten(left, 0, (4, 5, 256)), 1, (3, 1, 1))[0]
    source = Fuse(base, part, right, 1.0) if kind == "fuse" else Decomposed(base, part, right, 1.0, magnitude)
    out, scratch = np.empty(HASH_BLOCK, np.uint8), np.empty(2 * HASH_BLOCK, np.uint8)
    with Reader() as reader:
        block = Block(source, "float32")
        block.fill(reader, 0, HASH_BLOCK // 4, out, scratch)
        tracemalloc.start()
        block.fill(reader, HASH_BLOCK // 4 + 5, HASH_BLOCK // 2 + 5, out, scratch)
        peak = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
    assert peak < 3 << 20
