"""Which rank stores which elements: boxes of ranks, in the shape that the tensor is read with."""

import numpy as np
import pytest

from ckptconv.tensors.boxes import Slice
from ckptconv.tensors.holders import Holders
from ckptconv.tensors.view import View, cat, narrow, stored, unflatten


def part_of(rank: int, shape: tuple[int, ...]) -> View:
    return stored(f"rank{rank}", 0, shape, "float32")


RANKS = {f"rank{rank}": rank for rank in range(4)}


def test_rows_and_a_rank_without_any() -> None:
    view = cat([part_of(0, (2, 3)), part_of(1, (0, 3)), part_of(2, (1, 3))], 0)
    holders = Holders.of_view(view, (3, 3), RANKS)
    assert holders.parts() == (Slice(0, (0, 0), (2, 3)), Slice(2, (2, 0), (1, 3)))
    assert holders.of(np.array([5]), set()) == {0}
    assert holders.of(np.array([5, 6]), {0}) == {2}


def test_boxes_of_two_dims() -> None:
    rows = [
        cat([part_of(0, (2, 3)), part_of(1, (2, 1))], 1),
        cat([part_of(2, (1, 3)), part_of(3, (1, 1))], 1),
    ]
    holders = Holders.of_view(cat(rows, 0), (3, 4), RANKS)
    assert holders.parts()[3] == Slice(3, (2, 3), (1, 1))
    assert holders.of(np.array([11]), set()) == {3}


def test_a_tensor_that_is_read_with_another_shape() -> None:
    """Groups of heads, as rows."""
    view = unflatten(cat([part_of(0, (6, 5)), part_of(1, (3, 5))], 0), 0, (3, 3))
    holders = Holders.of_view(view, (9, 5), RANKS)
    assert holders.parts() == (Slice(0, (0, 0), (6, 5)), Slice(1, (6, 0), (3, 5)))
    assert holders.of(np.array([30]), set()) == {1}


def test_pieces_that_no_box_holds_alone_are_not_stated() -> None:
    one, other = part_of(0, (4, 5)), part_of(1, (4, 5))
    taken = [narrow(one, 0, 0, 2), narrow(other, 0, 0, 2), narrow(one, 0, 2, 2)]
    assert Holders.of_view(cat(taken, 0), (6, 5), RANKS).parts() == ()


@pytest.mark.parametrize("shape", [(), (0, 3)])
def test_a_scalar_and_nothing(shape: tuple[int, ...]) -> None:
    holders = Holders.of_view(part_of(2, shape), shape, RANKS)
    assert len(holders.parts()) == (0 if shape else 1)


def test_from_a_list_and_back() -> None:
    parts = (Slice(0, (0, 0), (2, 3)), Slice(3, (2, 0), (1, 3)))
    assert Holders.of_parts(parts, (3, 3)).parts() == parts
