"""Layout changes, both ways and on views, numpy and torch alike; all dimensions differ."""

import importlib.util

import numpy as np
import pytest

from ckptconv.errors import CkptconvError
from ckptconv.models.pattern import Pattern
from ckptconv.models.pieces import Piece
from ckptconv.models.rules import (
    Cut,
    Gates,
    Grouped,
    Layout,
    Modalities,
    Pairs,
    Rope,
    Swap,
    Turned,
    Ungrouped,
    Unstack,
    to_hub_layout,
    to_trained_layout,
)
from ckptconv.tensors.view import View, stored

E, IN, OUT = 5, 6, 8  # experts, rows of one projection, columns

CASES: dict[str, tuple[list[Layout], list[tuple[int, ...]]]] = {
    "experts": ([Unstack(0)], [(E, IN, OUT)]),
    "gate and up of experts": ([Cut(1, 2), Unstack(0, 2)], [(E, 2 * IN, OUT)]),
    "transposed experts": ([Swap(1, 2), Cut(1, 2), Unstack(0, 2)], [(E, OUT, 2 * IN)]),
    "qkv into one": ([Turned(Cut(0, 3))], [(IN, OUT)] * 3),
    "rotated q and k, and v, into one": ([Rope(3, (0, 1)), Turned(Cut(0, 3))], [(12, OUT)] * 3),
    "a rotated bias": ([Rope(2)], [(12,)]),
    "rotated back": ([Turned(Rope(3))], [(12, OUT)]),
    "interleaved gate and up": ([Turned(Cut(0, 2)), Pairs(0)], [(IN, OUT)] * 2),
    "interleaved along dim 1": ([Pairs(1)], [(E, 2 * IN, OUT)]),
    "pairs back to halves": ([Turned(Pairs(1))], [(E, 2 * IN, OUT)]),
    "text and vision experts": ([Modalities(2, 2)], [(E, 2 * IN, OUT), (E, 2 * 7, OUT)]),
    "queries, keys and values by group": ([Grouped(2, (12, 4, 4))], [(40, OUT)]),
    "their bias": ([Grouped(2, (12, 4, 4))], [(40,)]),
    "gates after the queries of a group": ([Grouped(2, (24, 4, 4)), Gates(2, 3, 4)], [(64, OUT)]),
    "parts into groups": ([Turned(Grouped(3, (5, 2)))], [(15, OUT), (6, OUT)]),
    "grouped rows in one tensor": ([Ungrouped(2, (5, 5, 14))], [(48, 1, 3)]),
    "text and vision down": ([Modalities(2, 1)], [(E, IN, OUT), (E, 7, OUT)]),
}


def arrays(shapes: list[tuple[int, ...]]) -> list[np.ndarray]:
    made, at = [], 0
    for shape in shapes:
        made.append(np.arange(at, at + np.prod(shape), dtype=np.int32).reshape(shape))
        at += made[-1].size
    return made


def read(view: View, storage: np.ndarray) -> np.ndarray:
    """The elements of a view, read one chunk at a time from the int32 file it lies in."""
    out = np.full(view.shape, -1, np.int32)
    for c in view.chunks:
        box = np.lib.stride_tricks.as_strided(storage[c.start // 4 :], c.sizes, c.strides)
        out[tuple(slice(o, o + s) for o, s in zip(c.offsets, c.sizes, strict=True))] = box
    return out


def pieces_of(values: list) -> list:
    return [Piece.of(value) for value in values]


@pytest.mark.parametrize("case", CASES)
def test_join_undoes_split(case: str) -> None:
    layouts, shapes = CASES[case]
    values = arrays(shapes)
    back = to_trained_layout(layouts, to_hub_layout(layouts, pieces_of(values)))
    assert len(back) == len(values)
    for piece, value in zip(back, values, strict=True):
        assert piece.shape == value.shape
        assert np.array_equal(piece.plain, value)


@pytest.mark.parametrize("case", CASES)
def test_views_hold_what_numpy_holds(case: str) -> None:
    layouts, shapes = CASES[case]
    values = arrays(shapes)
    storage = np.concatenate([value.ravel() for value in values])
    starts = np.cumsum([0] + [value.nbytes for value in values])
    views = [stored("f", int(at), v.shape, "int32") for at, v in zip(starts, values, strict=False)]
    for mine, wanted in zip(
        to_hub_layout(layouts, pieces_of(views)), to_hub_layout(layouts, pieces_of(values)), strict=True
    ):
        assert mine.shape == wanted.shape
        assert np.array_equal(read(mine.value, storage).reshape(mine.shape), wanted.plain)


@pytest.mark.skipif(not importlib.util.find_spec("torch"), reason="needs torch")
@pytest.mark.parametrize("case", CASES)
def test_torch_tensors_go_the_same_way(case: str) -> None:
    import torch

    layouts, shapes = CASES[case]
    values = arrays(shapes)
    tensors = [torch.from_numpy(value) for value in values]
    for mine, wanted in zip(
        to_hub_layout(layouts, pieces_of(tensors)), to_hub_layout(layouts, pieces_of(values)), strict=True
    ):
        assert np.array_equal(mine.plain.numpy(), wanted.plain)


def test_pairs_and_rope_are_told_by_hand() -> None:
    rows = np.arange(8).reshape(8, 1)
    (halves,) = Pairs(0).split(pieces_of([rows]))
    assert halves.plain.ravel().tolist() == [0, 4, 1, 5, 2, 6, 3, 7]
    (heads,) = Rope(2).split(pieces_of([rows]))
    assert heads.plain.ravel().tolist() == [0, 2, 1, 3, 4, 6, 5, 7]


def test_groups_and_gates_are_told_by_hand() -> None:
    rows = np.arange(12).reshape(12, 1)
    query, key = Grouped(2, (4, 2)).split(pieces_of([rows]))
    assert query.plain.ravel().tolist() == [0, 1, 2, 3, 6, 7, 8, 9]
    assert key.plain.ravel().tolist() == [4, 5, 10, 11]
    gated, rest = Gates(2, 2, 1).split([query, key])
    assert gated.plain.ravel().tolist() == [0, 2, 1, 3, 6, 8, 7, 9]
    assert rest is key
    (whole,) = Ungrouped(2, (4, 2)).split(pieces_of([rows]))
    assert whole.plain.ravel().tolist() == [0, 1, 2, 3, 6, 7, 8, 9, 4, 5, 10, 11]


def test_rows_that_do_not_fill_the_groups_are_refused() -> None:
    for layout in (Grouped(2, (4, 2)), Ungrouped(2, (4, 2))):
        with pytest.raises(CkptconvError, match=r"13 (elements cannot become|rows are not 2 groups)"):
            layout.split(pieces_of([np.ones((13, 1))]))


def test_text_experts_come_before_vision_experts() -> None:
    text, vision = arrays([(2, 4, 3), (2, 6, 3)])
    names = ["gate 0", "gate 1", "gate 2", "gate 3", "up 0", "up 1", "up 2", "up 3"]
    split = dict(zip(names, Modalities(2, 2).split(pieces_of([text, vision])), strict=True))
    assert np.array_equal(split["gate 1"].plain, text[1, :2])
    assert np.array_equal(split["up 2"].plain, vision[0, 3:])


def test_uneven_parts_are_refused() -> None:
    with pytest.raises(CkptconvError, match="3 equal parts"):
        Cut(0, 3).split(pieces_of([np.ones((10, 2))]))


def test_a_view_is_not_cut_through_merged_dims() -> None:
    (mixed,) = Pairs(0).split(pieces_of([stored("f", 0, (8, 3), "int32")]))
    with pytest.raises(CkptconvError, match="merged shape"):
        Cut(0, 2).split([mixed])


def test_patterns_match_and_fill_their_holes() -> None:
    pattern = Pattern("decoder.layers.{layer}.mlp.experts.{expert}.fc1.{what}")
    holes = pattern.match("decoder.layers.3.mlp.experts.12.fc1.weight")
    assert holes == {"layer": "3", "expert": "12", "what": "weight"}
    assert pattern.fill(holes) == "decoder.layers.3.mlp.experts.12.fc1.weight"
    assert pattern.match("decoder.layers.x.mlp.experts.12.fc1.weight") is None
    assert pattern.match("decoder.layers.3.mlp.experts.12.fc1.weight.more") is None


def test_a_pattern_with_a_list_stands_for_its_names() -> None:
    gate, up = Pattern("layers.{layer}.mlp.{gate,up}_proj.weight").names
    assert (gate.text, up.text) == (
        "layers.{layer}.mlp.gate_proj.weight",
        "layers.{layer}.mlp.up_proj.weight",
    )
    assert up.fill({"layer": 2}) == "layers.2.mlp.up_proj.weight"
