"""A mount that answers slowly, as those of HDFS, Lustre and stores do: FUSE whose server waits before opens and reads."""

from __future__ import annotations

import os
import shutil
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path

import pytest
from support.disks import fuse
from support.helpers import cli
from support.shim import faults

Made = Callable[[str], Path]
SLOW = 10_000  # microseconds for each open and each read of the server's, which knows its files by paths below its folder


@pytest.fixture
def run(made: Made, tmp_path: Path) -> Path:
    """A run of eight ranks, and its copy below the mount, which is not mounted yet."""
    shutil.copytree(made("hsdp_w4"), tmp_path / "mount.below" / "run")
    return made("hsdp_w4")


def test_a_slow_mount_gives_the_same_answers_and_bytes(run: Path, tmp_path: Path) -> None:
    server = os.environ | faults(f"slow:{SLOW}", "open,read", "run/")
    with fuse(tmp_path / "mount", server) as slow:
        begun = time.monotonic()
        next(slow.rglob("*_rank_3.pt")).read_bytes()
        assert time.monotonic() - begun >= 2 * SLOW / 1e6, "neither the open nor the read was slow"
        far, near = (cli("inspect", place, "--json") for place in (slow / "run", run))
        assert far.code == near.code == 0, far.err
        assert far.out.replace(str(slow / "run"), str(run)) == near.out
        for place, name in ((slow / "run", "far"), (run, "near")):
            assert cli("merge", place, tmp_path / name).code == 0
    for path in (tmp_path / "near").iterdir():
        if path.name != "ckptconv.json":  # its fingerprint is of times
            assert path.read_bytes() == (tmp_path / "far" / path.name).read_bytes()


def test_a_mount_is_asked_for_a_rank_file_a_few_times(run: Path, tmp_path: Path) -> None:
    """As the server sees it: one open, and reads of which the kernel makes pages."""
    log = tmp_path / "log"
    server = os.environ | faults("log", "open,read", "run/", say=log)
    with fuse(tmp_path / "mount", server) as mounted:
        assert cli("inspect", mounted / "run").code == 0
    asked = Counter(tuple(line.split(" ", 1)) for line in log.read_text().splitlines())
    for kind, most in (("read", 8), ("open", 3)):
        counts = [n for (what, path), n in asked.items() if what == kind and path.endswith(".pt")]
        assert len(counts) == 4, kind
        assert max(counts) <= most, kind
