"""Strided reads: what numpy computes, in few calls and bounded memory, however the calls are chosen; casts on the way."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from math import prod
from pathlib import Path
from unittest.mock import patch

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.strategies import DataObject

from ckptconv.compute.block import Block
from ckptconv.errors import CkptconvError
from ckptconv.read import gather
from ckptconv.read import reader as read
from ckptconv.read.gather import arrange, groups, overlap
from ckptconv.read.reader import Reader, prepare, raw_dtype
from ckptconv.tensors.dtypes import itemsize, to_numpy
from ckptconv.tensors.view import View, cat, permute, place, stored, unflatten
from tests.tensors import test_view
from tests.tensors.test_view import FIXED, Disk, run

disk = test_view.disk  # the fixture
CASTS = ("bfloat16", "float32", "float64", "int64", "uint8")


@contextmanager
def costs(call: int, long: int = 64 << 10) -> Iterator[None]:
    """As if a call cost as much as so many bytes, and pieces of `long` bytes were worth a read of their own."""
    with ExitStack() as stack:
        stack.enter_context(patch.object(gather, "CALL", call))
        stack.enter_context(patch.object(read, "_LONG", long))
        arrange.cache_clear()
        stack.callback(arrange.cache_clear)
        yield


def a_reader(draw: DataObject) -> Reader:
    scratch = draw.draw(st.sampled_from((8, 64, 600, 4096, 1 << 16)))
    return Reader(scratch, drop_behind=draw.draw(st.booleans()))


def some_costs(draw: DataObject) -> tuple[int, int]:
    return draw.draw(st.sampled_from((0, 1, 20, 200, 32 << 10))), draw.draw(
        st.sampled_from((1, 16, 64 << 10))
    )


@settings(FIXED, max_examples=200)
@given(draw=st.data())
def test_any_interval_of_any_view_is_what_numpy_computes(disk: Disk, draw: DataObject) -> None:
    view, array, _ = run(draw, disk)
    flat = array.reshape(-1)
    with costs(*some_costs(draw)), a_reader(draw) as reader:
        prepared = prepare(view)
        for _ in range(3):
            low = draw.draw(st.integers(0, array.size))
            high = draw.draw(st.integers(low, array.size))
            out = np.zeros(high - low, array.dtype)
            reader.interval(prepared, low, high, out)
            assert out.tobytes() == flat[low:high].tobytes()


@settings(FIXED, max_examples=150)
@given(draw=st.data())
def test_a_cast_on_the_way_is_the_cast_of_what_was_read(disk: Disk, draw: DataObject) -> None:
    view, array, _ = run(draw, disk)
    dtype = draw.draw(st.sampled_from(CASTS))
    if view.dtype == "complex64" or not view.shape:
        return
    with np.errstate(all="ignore"):
        wanted = array.reshape(-1).view(to_numpy(view.dtype)).astype(to_numpy(dtype))
    with costs(*some_costs(draw)), a_reader(draw) as reader:
        block, low = Block(view, dtype), draw.draw(st.integers(0, array.size))
        high = draw.draw(st.integers(low, array.size))
        out = np.zeros((high - low) * itemsize(dtype), np.uint8)
        block.fill(reader, low, high, out, np.empty(1 << 19, np.uint8))
    assert out.tobytes() == wanted[low:high].tobytes()


@settings(FIXED, max_examples=150)
@given(draw=st.data())
def test_the_gathered_elements_are_complete_and_in_place(draw: DataObject) -> None:
    sizes = tuple(draw.draw(st.lists(st.integers(1, 9), min_size=1, max_size=4)))
    item = draw.draw(st.sampled_from((1, 2, 4, 8)))
    strides = tuple(stride * item for stride in test_view.a_stride(draw, sizes))
    room = draw.draw(st.integers(item, 2000))
    with costs(some_costs(draw)[0]):
        whole, seen = [sizes], np.zeros(sizes, int)
        found = arrange(sizes, strides, item, room)
        assert sum(prod(size) for _, size in groups(sizes, found.group)) == prod(sizes)
        for at, size in groups(sizes, found.group):
            seen[tuple(map(slice, at, map(int.__add__, at, size)))] += 1
            whole.append(size)
        assert (seen == 1).all()
        for size in whole:  # groups of groups come to an end, and each fits
            found = arrange(size, strides, item, room)
            while found.group != size:
                size = found.group
                found = arrange(size, strides, item, room)
            reach = sum((n - 1) * pitch for n, pitch in zip(size, found.pitches, strict=True))
            assert item + reach <= room
            walked = sum((size[dim] - 1) * found.pitches[dim] for dim in found.walked)
            assert walked + found.nbytes == item + reach


# --- real sizes


@pytest.fixture(scope="module")
def bytes_of(
    tmp_path_factory: pytest.TempPathFactory,
) -> tuple[str, np.ndarray[tuple[int], np.dtype[np.uint8]]]:
    """A file of 12 MB of random bytes."""
    path: Path = tmp_path_factory.mktemp("gather") / "file"
    content = np.random.default_rng(2).integers(0, 256, 12 << 20, np.uint8)
    path.write_bytes(content.tobytes())
    return str(path), content


class Calls:
    """Counts calls and bytes of os.preadv."""

    def __init__(self) -> None:
        self.count = self.nbytes = 0
        self._preadv = os.preadv

    def __call__(self, handle: int, buffers: list[memoryview], offset: int) -> int:
        self.count += 1
        n = self._preadv(handle, buffers, offset)
        self.nbytes += n
        return n


def blocks(view: View, wanted: np.ndarray, step: int) -> Calls:
    """Read a view in blocks of `step` elements, compare each, and return what that cost."""
    prepared, flat = prepare(view), wanted.reshape(-1)
    with patch.object(os, "preadv", Calls()) as calls, Reader() as reader:
        for low in range(0, view.numel, step):
            high = min(low + step, view.numel)
            out = np.zeros(high - low, wanted.dtype)
            reader.interval(prepared, low, high, out)
            assert np.array_equal(out, flat[low:high])
    return calls


@pytest.mark.parametrize("dtype", ["uint8", "bfloat16", "float32", "float64"])
@pytest.mark.parametrize("start", [0, 64, 4097])
def test_transposed_experts_take_few_calls(bytes_of: tuple[str, np.ndarray], dtype: str, start: int) -> None:
    file, content = bytes_of
    shape = (3, 640, 509)
    array = np.ndarray(shape, raw_dtype(dtype), content[start:].tobytes())
    view = permute(stored(file, start, shape, dtype), (0, 2, 1))
    calls = blocks(view, np.ascontiguousarray(array.transpose(0, 2, 1)), 100_003)
    assert calls.count < 60  # 13 blocks of 640 stored rows or more


def test_long_rows_are_not_read_whole(bytes_of: tuple[str, np.ndarray]) -> None:
    file, content = bytes_of
    shape = (40, 60_000)
    array = np.ndarray(shape, np.uint32, content[64:].tobytes())
    calls = blocks(permute(stored(file, 64, shape, "float32"), (1, 0)), np.ascontiguousarray(array.T), 20_000)
    assert calls.nbytes < array.nbytes * 1.2


def test_interleaved_halves(bytes_of: tuple[str, np.ndarray]) -> None:
    file, content = bytes_of
    array = np.ndarray((2, 300, 700), np.uint16, content.tobytes())
    view = permute(unflatten(stored(file, 0, (600, 700), "bfloat16"), 0, (2, 300)), (2, 1, 0))
    blocks(view, np.ascontiguousarray(array.transpose(2, 1, 0)), 65_537)


def test_a_column_shard_is_one_call_a_block(bytes_of: tuple[str, np.ndarray]) -> None:
    """Blocks that end in mid-row included."""
    file, content = bytes_of
    ranks, rows, columns = 4, 700, 251
    each = rows * columns * 2
    parts = [stored(file, 64 + rank * each, (rows, columns), "bfloat16") for rank in range(ranks)]
    view = place((rows, 4 * columns), "bfloat16", [((0, rank * columns), p) for rank, p in enumerate(parts)])
    wanted = np.concatenate(
        [np.ndarray((rows, columns), np.uint16, content[64 + r * each :].tobytes()) for r in range(ranks)], 1
    )
    step = 200_001
    calls = blocks(view, wanted, step)
    assert calls.count == ranks * -(-view.numel // step)
    assert calls.nbytes < wanted.nbytes * 1.02


def test_long_pieces_of_strided_shards_are_runs(bytes_of: tuple[str, np.ndarray]) -> None:
    """FSDP over TP: each rank holds strips of rows that are far apart."""
    file, content = bytes_of
    array = np.ndarray((4, 2, 200, 300), np.uint16, content.tobytes())
    view = permute(stored(file, 0, array.shape, "bfloat16"), (1, 0, 2, 3))
    assert not prepare(view).boxes
    calls = blocks(view, np.ascontiguousarray(array.transpose(1, 0, 2, 3)), array.size)
    assert (calls.count, calls.nbytes) == (8, array.nbytes)


def test_a_chunk_with_too_many_runs_is_read_as_a_box(bytes_of: tuple[str, np.ndarray]) -> None:
    """A tensor that is expanded (stride 0) has as many rows as its maker likes."""
    file, content = bytes_of
    view = stored(file, 64, (1 << 40, 1 << 16), "uint8", (0, 1))
    prepared, out = prepare(view), np.zeros(1 << 17, np.uint8)
    assert len(prepared.boxes) == 1
    with Reader() as reader:
        reader.interval(prepared, (1 << 50) - 9, (1 << 50) - 9 + len(out), out)
    row = content[64 : 64 + (1 << 16)]
    assert np.array_equal(out, np.roll(np.tile(row, 2), 9))


def test_the_count_of_bytes_is_of_what_was_asked_for(bytes_of: tuple[str, np.ndarray]) -> None:
    file, _ = bytes_of
    view = permute(stored(file, 0, (1000, 700), "bfloat16"), (1, 0))
    with Reader() as reader:
        reader.interval(prepare(view), 5, 100_000, np.empty(99_995, np.uint16))
        assert reader.nbytes == 2 * 99_995


@pytest.mark.parametrize("turned", [False, True])
def test_a_value_that_does_not_fit_is_an_error_in_a_gather_too(tmp_path: Path, turned: bool) -> None:
    values = np.zeros((64, 96), np.float32)
    values[17, 5] = 1e6
    (tmp_path / "file").write_bytes(values.tobytes())
    parts = [stored(str(tmp_path / "file"), n * 32 * 96 * 4, (32, 96), "float32") for n in range(2)]
    view = permute(cat(parts, 0), (1, 0)) if turned else cat(parts, 1)
    out, scratch = np.empty(2 * view.numel, np.uint8), np.empty(1 << 19, np.uint8)
    with Reader() as reader, pytest.raises(CkptconvError, match="do not fit in float16"):
        Block(view, "float16").fill(reader, 0, view.numel, out, scratch)


def test_what_was_read_with_gaps_is_dropped_with_its_last_block(bytes_of: tuple[str, np.ndarray]) -> None:
    file, _ = bytes_of
    view = permute(stored(file, 64, (300, 700), "bfloat16"), (1, 0))
    with patch.object(os, "posix_fadvise") as forget, Reader(drop_behind=True) as reader:
        for low in range(0, view.numel, 70_000):
            assert not forget.called
            reader.interval(prepare(view), low, low + 70_000, np.empty(70_000, np.uint16))
    (call,) = forget.call_args_list
    assert call.args[1:3] == (64, 2 * view.numel)


def test_boxes_that_touch_share_nothing() -> None:
    assert overlap((0, 0), (2, 3), (2, 0), (1, 3)) is None
    assert overlap((0, 1), (4, 3), (1, 0), (9, 3)) == ((1, 1), (3, 2))
