"""Folders fill up with logs: files that are none of a checkpoint's cost next to nothing."""

from __future__ import annotations

import shutil
import sys
from pathlib import Path

from support.helpers import FIXTURES, cli, state

STRAYS = 2_000
RUN = FIXTURES / "verl_fsdp2_w4" / "run"


def calls_of(*words: object) -> int:
    """How many functions of Python and of C a command calls in this thread. Unlike its time, that is always the same."""
    count = 0

    def counted(frame: object, event: str, _: object) -> None:
        nonlocal count
        count += event in ("call", "c_call")

    sys.setprofile(counted)
    try:
        assert cli(*words, "-q").code == 0
    finally:
        sys.setprofile(None)
    return count


def test_a_stray_file_costs_a_look_at_its_name_and_its_state(tmp_path: Path) -> None:
    run = Path(shutil.copytree(RUN, tmp_path / "run"))
    crowded = [run, run / "global_step_2", run / "global_step_2" / "actor"]
    merging = ("merge", run, tmp_path / "out", "--overwrite")
    assert cli(*merging, "-q").code == 0
    calm = {"inspect": calls_of("inspect", run), "merge": calls_of(*merging)}
    before = state(tmp_path / "out")
    for folder in crowded:
        for number in range(STRAYS):
            (folder / f"events.out.{number}.log").touch()
    crowd = {"inspect": calls_of("inspect", run), "merge": calls_of(*merging)}
    each = {name: (crowd[name] - calm[name]) / (STRAYS * len(crowded)) for name in calm}
    assert each["inspect"] < 27, each
    assert each["merge"] < 35, each
    after = state(tmp_path / "out")
    assert {name for name in before if before[name] != after[name]} <= {
        "ckptconv.json"
    }  # it fingerprints the folder
