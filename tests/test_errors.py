"""CkptconvError: what a caller can react to, and how an error is reported further out."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from support.helpers import own_copy

import ckptconv
from ckptconv import CkptconvError, Incomplete, Kind

Made = Callable[[str], Path]


def test_within_adds_what_the_error_does_not_say_itself() -> None:
    inner = CkptconvError("a tensor is cut off", found=3, wanted=4)
    outer = inner.within(inside="w", where="file.pt", hint="copy it again", kind=Kind.DAMAGED)
    assert (outer.what, outer.where, outer.hint) == ("a tensor is cut off", "w in file.pt", "copy it again")
    assert (outer.found, outer.wanted, outer.kind) == ("3", "4", Kind.DAMAGED)
    assert (inner.where, inner.hint, inner.kind) == (None, None, Kind.OTHER)


def test_within_leaves_what_the_error_says_itself() -> None:
    inner = Incomplete("a file is missing", where="here", hint="wait")
    outer = inner.within(what="rank 3", where="there", hint="go", kind=Kind.DAMAGED)
    assert isinstance(outer, Incomplete)
    assert str(outer) == "rank 3: a file is missing\n  in     here\n  hint   wait"
    assert outer.kind is Kind.INCOMPLETE


def raised(do: Callable[..., Any], *args: Any, **keywords: Any) -> CkptconvError:
    """The error of a call, whose kind the test looks at."""
    try:
        do(*args, **keywords)
    except CkptconvError as error:
        return error
    pytest.fail("nothing was refused")


def test_what_kind_of_refusal_it_is(made: Made, tmp_path: Path) -> None:
    run = made("fsdp2_w4")
    (tmp_path / "empty").mkdir()
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "notes.txt").write_text("mine")
    partial = own_copy(run, tmp_path / "partial")
    next(partial.rglob("*rank_2.pt")).unlink()
    torn = own_copy(run, tmp_path / "torn")
    file = next(torn.rglob("model*rank_2.pt"))
    file.write_bytes(file.read_bytes()[:-100])
    kinds = {
        Kind.NOT_A_CHECKPOINT: raised(ckptconv.open, tmp_path / "empty"),
        Kind.INCOMPLETE: raised(ckptconv.inspect, partial),
        Kind.DAMAGED: raised(ckptconv.inspect, torn),
        Kind.DOES_NOT_FIT: raised(ckptconv.merge, run, tmp_path / "out", lora="merge"),
        Kind.TARGET: raised(ckptconv.merge, run, tmp_path / "full"),
        Kind.USAGE: raised(ckptconv.merge, run, tmp_path / "out", mtp="dorp"),
    }
    assert {kind: error.kind for kind, error in kinds.items()} == {kind: kind for kind in kinds}
    assert raised(ckptconv.open, tmp_path / "absent").kind is Kind.NOT_A_CHECKPOINT
