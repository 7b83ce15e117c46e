"""A mount that answers slowly, as those of HDFS, Lustre and stores do: FUSE with a server that waits before each open."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable
from pathlib import Path

from support.disks import fuse
from support.helpers import cli
from support.shim import faults

Made = Callable[[str], Path]
SLOW = 20000  # microseconds for each open of the server's, which hands reads on to the kernel


def test_a_slow_mount_gives_the_same_answers_and_bytes(made: Made, tmp_path: Path) -> None:
    below, mount = tmp_path / "mount.below", tmp_path / "mount"
    run = made("hsdp_w4")
    shutil.copytree(run, below / "run")
    server = os.environ | faults(f"slow:{SLOW}", "open", below)
    with fuse(mount, server) as slow:
        far, near = (cli("inspect", place, "--json") for place in (slow / "run", run))
        assert far.code == near.code == 0, far.err
        assert far.out.replace(str(slow / "run"), str(run)) == near.out
        for place, name in ((slow / "run", "far"), (run, "near")):
            assert cli("merge", place, tmp_path / name).code == 0
    for path in (tmp_path / "near").iterdir():
        if path.name != "ckptconv.json":  # its fingerprint is of times
            assert path.read_bytes() == (tmp_path / "far" / path.name).read_bytes()
