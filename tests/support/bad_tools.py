"""What the tests of bad input share."""

from __future__ import annotations

from pathlib import Path

from support.helpers import (
    Ran,
    assert_one_error,
    cli,
    state,
)


def refused(run: Path, place: Path, says: str, *words: object, names: tuple[object, ...] = ()) -> Ran:
    """merge refuses it with one error, and so does inspect unless the target or the config is what is wrong."""
    before = state(place)
    ran = cli("merge", run, place / "out", *words)
    assert_one_error(ran, says, names=names)
    assert state(place) == before
    return ran
