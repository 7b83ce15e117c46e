"""What the view algebra refuses, in one sentence; and tilings told from everything else."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.strategies import DataObject

from ckptconv.errors import CkptconvError
from ckptconv.tensors import view as algebra
from ckptconv.tensors.boxes import Chunk
from ckptconv.tensors.view import View, check_tiling, place, stored

FIXED = settings(deadline=None, derandomize=True, database=None)


def a_tiling(draw: DataObject, low: tuple[int, int], high: tuple[int, int], depth: int) -> list[Chunk]:
    """Boxes that tile a rectangle: halves of halves, or a pinwheel, which no straight cut takes apart."""
    sizes = (high[0] - low[0], high[1] - low[1])
    if depth and min(sizes) >= 3 and draw.draw(st.booleans()):
        (a, b), (c, d) = low, high
        e, f = draw.draw(st.integers(a + 1, c - 2)), draw.draw(st.integers(b + 1, d - 2))
        corners = [((a, b), (e, d - 1)), ((a, d - 1), (c - 1, d)), ((c - 1, f), (c, d)), ((e, b), (c, f))]
        corners += [((e, f), (c - 1, d - 1))]
        return [box for one, two in corners for box in a_tiling(draw, one, two, 0)]
    dim = draw.draw(st.integers(0, 1))
    if depth and sizes[dim] > 1:
        at = draw.draw(st.integers(low[dim] + 1, high[dim] - 1))
        middle_high, middle_low = (
            (at, high[1]) if dim == 0 else (high[0], at),
            (at, low[1]) if dim == 0 else (low[0], at),
        )
        return a_tiling(draw, low, middle_high, depth - 1) + a_tiling(draw, middle_low, high, depth - 1)
    return [Chunk(low, sizes, "a.pt", 0, (0, 0))]


@settings(FIXED, max_examples=150)
@given(shape=st.tuples(st.integers(1, 12), st.integers(1, 12)), draw=st.data())
def test_a_tiling_is_told_from_everything_else(shape: tuple[int, int], draw: DataObject) -> None:
    chunks = a_tiling(draw, (0, 0), shape, 3)
    for _ in range(draw.draw(st.integers(0, 2))):
        chosen = draw.draw(st.sampled_from(chunks))
        dim, step = draw.draw(st.integers(0, 1)), draw.draw(st.sampled_from((-1, 1)))
        offsets, sizes = list(chosen.offsets), list(chosen.sizes)
        draw.draw(st.sampled_from((offsets, sizes)))[dim] += step
        chunks = [c for c in chunks if c is not chosen] + [
            Chunk(tuple(offsets), tuple(sizes), "a.pt", 0, (0, 0))
        ]
    times = np.zeros((20, 20), int)
    for chunk in chunks:
        times[tuple(slice(o + 4, o + 4 + n) for o, n in zip(chunk.offsets, chunk.sizes, strict=True))] += 1
    inside = times[4 : 4 + shape[0], 4 : 4 + shape[1]]
    if (inside == 1).all() and times.sum() == inside.size and all(min(c.sizes) > 0 for c in chunks):
        check_tiling(shape, draw.draw(st.permutations(chunks)))
    else:
        with pytest.raises(CkptconvError, match=r"same part|do not cover|outside its tensor|negative"):
            check_tiling(shape, draw.draw(st.permutations(chunks)))


def x(*shape: int, dtype: str = "float32", file: str = "a.pt") -> View:
    return stored(file, 0, shape, dtype)


REFUSED: dict[str, tuple[Callable[[], object], str]] = {
    "narrow past the end": (lambda: algebra.narrow(x(4, 3), 1, 2, 2), "outside its 3 elements"),
    "narrow before the start": (lambda: algebra.narrow(x(4), 0, -1, 2), "outside its 4 elements"),
    "narrow by a negative length": (lambda: algebra.narrow(x(4), 0, 2, -1), "outside its 4 elements"),
    "narrow of numpy": (lambda: algebra.narrow(np.zeros(4), 0, 3, 2), "outside its 4 elements"),
    "cat of other sizes": (lambda: algebra.cat([x(2, 3), x(2, 4)], 0), "do not fit together"),
    "cat of other dims": (lambda: algebra.cat([x(2, 3), x(2)], 0), "do not fit together"),
    "cat of dtypes": (lambda: algebra.cat([x(2), x(2, dtype="int32")], 0), "do not fit together"),
    "stack of other shapes": (lambda: algebra.stack([x(2, 3), x(3, 2)], 0), "do not fit together"),
    "permute by a repeated dim": (lambda: algebra.permute(x(2, 3), (0, 0)), "not a permutation of"),
    "permute by too few dims": (lambda: algebra.permute(x(2, 3), (0,)), "not a permutation of"),
    "unflatten to another number": (lambda: algebra.unflatten(x(6), 0, (2, 2)), "cannot become [2, 2]"),
    "unflatten to negative sizes": (lambda: algebra.unflatten(x(6), 0, (-2, -3)), "cannot become [-2, -3]"),
    "unflatten of numpy": (lambda: algebra.unflatten(np.zeros(6), 0, (6, -1)), "cannot become [6, -1]"),
    "split that leaves a rest": (lambda: algebra.split(x(6), 0, (2, 3)), "do not add up to dim 0 of 6"),
    "split with a negative length": (lambda: algebra.split(x(6), 0, (7, -1)), "outside its 6 elements"),
    "select out of range": (lambda: algebra.select(x(6), 0, 6), "outside its 6 elements"),
    "squeeze of a wide dim": (lambda: algebra.squeeze(x(2), 0), "has 2 elements, not one"),
    "a negative start": (lambda: stored("a.pt", -1, (2,), "int8"), "negative"),
    "a negative size": (lambda: stored("a.pt", 0, (-2, -2), "int8"), "negative"),
    "a negative stride": (lambda: stored("a.pt", 0, (2,), "int8", (-1,)), "negative"),
    "too few strides": (lambda: stored("a.pt", 0, (2, 2), "int8", (1,)), "2 dims but 1 strides"),
    "a shard of another dtype": (lambda: place((2,), "float32", [((0,), x(2, dtype="int32"))]), "dtypes"),
    "a shard of other dims": (
        lambda: place((2,), "float32", [((0, 0), x(2, 1))]),
        "different numbers of dims",
    ),
    "a shard outside": (lambda: place((4,), "float32", [((3,), x(2))]), "outside its tensor"),
    "a shard before": (lambda: place((4,), "float32", [((-1,), x(2))]), "outside its tensor"),
    "an overlap": (lambda: place((4,), "float32", [((0,), x(3)), ((2,), x(2))]), "same part"),
    "an overlap that hides a hole": (lambda: place((4,), "float32", [((0,), x(2))] * 2), "same part"),
    "an overlap in 2-D": (
        lambda: place((3, 3), "float32", [((0, 0), x(2, 2)), ((1, 1), x(2, 2)), ((0, 2), x(1, 1))]),
        "same part",
    ),
    "a hole": (lambda: place((4,), "float32", [((0,), x(1)), ((2,), x(2))]), "do not cover"),
    "no shard": (lambda: place((4,), "float32", []), "do not cover"),
    "two scalars": (lambda: place((), "float32", [((), x()), ((), x())]), "same scalar"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_what_cannot_be_is_refused_in_one_sentence(case: str) -> None:
    attempt, text = REFUSED[case]
    with pytest.raises(CkptconvError) as error:
        attempt()
    assert text in error.value.what
    assert "\n" not in error.value.what


@pytest.mark.parametrize("move", ["narrow", "cat", "unflatten", "squeeze"])
def test_a_dim_counted_from_the_end_is_refused_or_understood(move: str) -> None:
    view, array = x(2, 3, 1), np.zeros((2, 3, 1))
    args: dict[str, tuple[Any, ...]] = {"narrow": (-2, 0, 2), "unflatten": (-2, (3, 1)), "squeeze": (-1,)}
    try:
        if move == "cat":
            made, wanted = algebra.cat([view, view], -1), np.concatenate([array, array], -1)
        else:
            made, wanted = (getattr(algebra, move)(one, *args[move]) for one in (view, array))
    except CkptconvError:
        return
    assert made.shape == wanted.shape == (2, 3, 2)[: wanted.ndim]
    check_tiling(made.shape, made.chunks)


def test_a_torch_scalar_is_permuted() -> None:
    torch = pytest.importorskip("torch")
    assert algebra.permute(torch.tensor(3), ()).item() == 3


def test_a_dim_of_one_element_unflattens_to_no_dims() -> None:
    view = algebra.unflatten(x(2, 1), 1, ())
    check_tiling(view.shape, view.chunks)


def test_offsets_of_too_few_dims_are_refused() -> None:
    with pytest.raises(CkptconvError, match="different numbers of dims"):
        place((2, 3), "float32", [((0,), x(2, 3))])
