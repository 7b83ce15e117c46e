"""The ledger balances for every re-cut of what is stored, and for nothing else."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.strategies import DataObject

from ckptconv.errors import CkptconvError
from ckptconv.plan.ledger import check_balance
from ckptconv.tensors.dtypes import itemsize
from ckptconv.tensors.view import View, cat, narrow, permute, split, stack, stored, unflatten

FIXED = settings(deadline=None, derandomize=True, database=None)


def checkpoint(draw: DataObject) -> list[View]:
    """Tensors side by side in two files, two dtypes in each; contiguous or with gaps between rows."""
    found, at = [], {"a.pt": 64, "b.pt": 0}
    for _ in range(draw.draw(st.integers(1, 5))):
        file, dtype = (
            draw.draw(st.sampled_from(sorted(at))),
            draw.draw(st.sampled_from(("float32", "bfloat16"))),
        )
        rows, columns = draw.draw(st.integers(1, 6)), draw.draw(st.integers(1, 6))
        wide = columns + draw.draw(st.integers(0, 2))
        found.append(stored(file, at[file], (rows, columns), dtype, (wide, 1)))
        at[file] += rows * wide * itemsize(dtype)
    return found


def parts_of(draw: DataObject, view: View) -> list[View]:
    """A tensor in pieces: cut, transposed and unflattened at random, in any order."""
    pieces = [view]
    for _ in range(draw.draw(st.integers(0, 4))):
        piece = pieces.pop(draw.draw(st.integers(0, len(pieces) - 1)))
        dim = draw.draw(st.integers(0, len(piece.shape) - 1))
        move = draw.draw(st.sampled_from(("split", "permute", "unflatten")))
        if move == "split":
            at = draw.draw(st.integers(0, piece.shape[dim]))
            pieces += split(piece, dim, (at, piece.shape[dim] - at))
        elif move == "permute":
            pieces.append(permute(piece, draw.draw(st.permutations(range(len(piece.shape))))))
        else:
            divisors = [n for n in range(1, piece.shape[dim] + 1) if piece.shape[dim] % n == 0] or [1]
            inner = draw.draw(st.sampled_from(divisors))
            pieces.append(unflatten(piece, dim, (piece.shape[dim] // inner, inner)))
    return draw.draw(st.permutations([piece for piece in pieces if piece.numel]))


def shifted(view: View, elements: int) -> View:
    """The same boxes, some elements further on in the file."""
    move = elements * itemsize(view.dtype)
    return View(view.shape, view.dtype, tuple(c._replace(start=c.start + move) for c in view.chunks))


@settings(FIXED, max_examples=200)
@given(draw=st.data())
def test_every_recut_balances(draw: DataObject) -> None:
    tensors = checkpoint(draw)
    pieces = [piece for view in tensors for piece in parts_of(draw, view)]
    kept = draw.draw(st.integers(0, len(pieces)))
    total = check_balance(tensors, pieces[:kept], pieces[kept:])
    assert total == sum(view.nbytes for view in tensors)


@settings(FIXED, max_examples=200)
@given(draw=st.data())
def test_the_ledger_refuses_every_use_that_is_not_exactly_once(draw: DataObject) -> None:
    tensors = checkpoint(draw)
    pieces = [piece for view in tensors for piece in parts_of(draw, view)]
    chosen = draw.draw(st.integers(0, len(pieces) - 1))
    one, rest = pieces[chosen], pieces[:chosen] + pieces[chosen + 1 :]
    twins = [view for view in rest if view.nbytes == one.nbytes and view.dtype == one.dtype]
    wrong = {
        "missing": rest,
        "used twice": [*pieces, one],
        "one element off": [*rest, shifted(one, 1)],
        "one element short": [*rest, narrow(one, 0, 0, one.shape[0] - 1)],
        "one used for another": [*(view for view in pieces if view is not twins[0]), one] if twins else rest,
    }
    for used in wrong.values():
        with pytest.raises(CkptconvError, match="does not balance"):
            check_balance(tensors, used, [])


# Two tensors of one size in each of two files.
A, B, C = (stored("a.pt", at, (4, 6), "float32") for at in (0, 96, 192))
D = stored("b.pt", 0, (4, 6), "float32")
TOP, BOTTOM = split(A, 0, (2, 2))
LEFT, RIGHT = split(A, 1, (3, 3))

BALANCED: dict[str, tuple[list[View], list[View], list[View]]] = {
    "nothing at all": ([], [], []),
    "unchanged": ([A, D], [D, A], []),
    "dropped": ([A, B, D], [A], [B, D]),
    "cut": ([A, B], [TOP, B, BOTTOM], []),
    "cut, and a part dropped": ([A], [LEFT], [RIGHT]),
    "transposed": ([A], [permute(A, (1, 0))], []),
    "transposed, then cut": ([A], split(permute(A, (1, 0)), 1, (1, 3)), []),
    "joined over files": ([A, D], [cat([A, D], 0)], []),
    "stacked, transposed and cut": ([A, B], split(permute(stack([A, B], 1), (2, 0, 1)), 0, (1, 5)), []),
    "rows taken as one run": ([A], [stored("a.pt", 0, (24,), "float32")], []),
    "tied: stored twice, used twice": ([A, A], [A, TOP, BOTTOM], []),
    "tied: stored twice, one dropped": ([A, A], [A], [A]),
    "expanded": ([stored("a.pt", 0, (3, 4), "int8", (0, 1))], [stored("a.pt", 0, (4,), "int8")] * 3, []),
    "scalars": (
        [stored("a.pt", 8 * i, (), "int64") for i in range(3)],
        [stored("a.pt", 0, (3,), "int64")],
        [],
    ),
    "empty": ([stored("a.pt", 0, (0, 4), "int8")], [], []),
}


@pytest.mark.parametrize("case", BALANCED)
def test_the_ledger_accepts_every_use_that_is_exactly_once(case: str) -> None:
    tensors, used, dropped = BALANCED[case]
    assert check_balance(tensors, used, dropped) == sum(view.nbytes for view in tensors)


UNBALANCED: dict[str, tuple[list[View], list[View], list[View], str]] = {
    "a tensor left": ([A, B], [A], [], "96 stored bytes are never used"),
    "a row left": ([A], [narrow(A, 0, 0, 3)], [], "24 stored bytes are never used"),
    "a tensor twice": ([A], [A, A], [], "96 stored bytes are used more than once"),
    "used and dropped": ([A], [A], [A], "96 stored bytes are used more than once"),
    "halves that overlap": ([A], [narrow(A, 0, 0, 3), BOTTOM], [], "24 stored bytes are used more than once"),
    "one for another of its size": ([A, B], [A, A], [], "used twice, others never"),
    "one half twice": ([A], [TOP, TOP], [], "used twice, others never"),
    "a row and a column": ([A], [LEFT, BOTTOM], [], "used twice, others never"),
    "one for another file's": ([A, D], [A, A], [], "96 stored bytes are"),
    "one element off": ([A], [shifted(A, 1)], [], "used twice, others never"),
    "one byte off": ([A], [stored("a.pt", 1, (4, 6), "float32")], [], "used twice, others never"),
    "off by one, and back": ([A, B, C], [A, shifted(B, 1), shifted(C, -1)], [], "used twice, others never"),
    "other strides": ([A], [stored("a.pt", 0, (4, 6), "float32", (7, 1))], [], "used twice, others never"),
    "never stored": ([], [A], [], "96 stored bytes are used more than once"),
}


@pytest.mark.parametrize("case", UNBALANCED)
def test_these_do_not_balance(case: str) -> None:
    tensors, used, dropped, text = UNBALANCED[case]
    with pytest.raises(CkptconvError, match="does not balance") as error:
        check_balance(tensors, used, dropped)
    assert text in str(error.value.found)
    assert error.value.where in ("a.pt", "b.pt")


@pytest.mark.parametrize("where", [0, 1, 1 << 20, 1 << 50])
def test_one_element_among_millions_is_missed(where: int) -> None:
    """Sums are taken modulo a prime near 2^61: far positions must count like near ones."""
    big = stored("a.pt", where, (1 << 11, 1 << 11), "bfloat16")
    before, row, after = split(big, 0, (7, 1, (1 << 11) - 8))
    one, others = split(row, 1, (1, (1 << 11) - 1))
    assert check_balance([big], [before, others, after], [one]) == big.nbytes
    with pytest.raises(CkptconvError, match="does not balance"):
        check_balance([big], [before, others, after], [narrow(after, 0, 0, 1)])
    with pytest.raises(CkptconvError, match="does not balance") as error:
        check_balance([big], [before, others, after], [])
    assert error.value.found == "2 stored bytes are never used"
