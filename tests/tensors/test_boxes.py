"""Boxes of elements: every answer is compared with what numpy says of the same elements."""

from itertools import product
from math import prod

import numpy as np
import pytest

from ckptconv.tensors.boxes import Box, box_around

SHAPE = (3, 2, 4)
BOXES = [
    Box(tuple(low for low, _ in dims), tuple(high - low for low, high in dims))
    for dims in product(*([(low, high) for low in range(n) for high in range(low + 1, n + 1)] for n in SHAPE))
]


def marked(box: Box) -> np.ndarray:
    """Which elements of a tensor a box holds."""
    mask = np.zeros(SHAPE, bool)
    mask[tuple(slice(low, high) for low, high in zip(box.offsets, box.ends, strict=True))] = True
    return mask


def test_volume_and_position_are_those_of_the_elements() -> None:
    for box in BOXES:
        flat = np.flatnonzero(marked(box))
        assert (box.volume, box.position_in(SHAPE)) == (len(flat), flat[0])


def test_a_box_is_contiguous_where_its_elements_follow_each_other() -> None:
    for box in BOXES:
        flat = np.flatnonzero(marked(box))
        assert box.is_contiguous_in(SHAPE) == (flat[-1] - flat[0] + 1 == len(flat))


def test_boxes_overlap_where_they_share_an_element() -> None:
    for one, other in product(BOXES[::3], BOXES[::5]):
        assert one.overlaps(other) == bool((marked(one) & marked(other)).any())


def test_a_shifted_box_has_its_elements_in_the_larger_tensor() -> None:
    box = Box((0, 1), (2, 3)).shifted((5, 0))
    assert (box, box.ends) == (Box((5, 1), (2, 3)), (7, 4))


def test_the_box_around_others_holds_nothing_but_what_they_need() -> None:
    for one, other in product(BOXES[::7], BOXES[::11]):
        places = np.argwhere(marked(one) | marked(other))
        around = box_around([one, other])
        assert (around.offsets, around.ends) == (tuple(places.min(0)), tuple(places.max(0) + 1))


@pytest.mark.parametrize("sizes", [(), (1,), (1, 1)])
def test_one_element_is_contiguous_everywhere(sizes: tuple[int, ...]) -> None:
    box = Box(tuple(0 for _ in sizes), sizes)
    assert box.volume == prod(sizes) == 1
    assert box.is_contiguous_in(tuple(9 for _ in sizes))
