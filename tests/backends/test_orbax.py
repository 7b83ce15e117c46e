"""An Orbax checkpoint (tests/make/orbax_step.py) is refused by its name, wherever in it the user points."""

from __future__ import annotations

from pathlib import Path

import pytest
from support.helpers import cli, unpacked

from ckptconv import CkptconvError, inspect
from ckptconv.errors import Kind


@pytest.mark.parametrize(
    "named", ["run", "run/checkpoints", "run/checkpoints/10", "run/checkpoints/10/items"]
)
def test_the_error_says_what_the_folder_is_and_what_to_do(named: str) -> None:
    with pytest.raises(CkptconvError, match="an Orbax checkpoint of JAX") as error:
        inspect(unpacked("orbax") / named)
    assert error.value.kind is Kind.UNSUPPORTED
    assert str(error.value.where).endswith("run/checkpoints/10/items")
    assert "maxtext.checkpoint_conversion.to_huggingface" in str(error.value.hint)


def test_merge_exits_with_2_and_writes_nothing(tmp_path: Path) -> None:
    done = cli("merge", unpacked("orbax") / "run", tmp_path / "out")
    assert (done.code, (tmp_path / "out").exists()) == (2, False)
    assert "Orbax" in done.err


def test_a_folder_with_a_folder_named_d_is_not_taken_for_orbax(tmp_path: Path) -> None:
    (tmp_path / "checkpoints" / "10" / "d").mkdir(parents=True)
    with pytest.raises(CkptconvError, match="no checkpoint found here"):
        inspect(tmp_path)
