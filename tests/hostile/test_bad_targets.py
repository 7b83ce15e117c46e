"""Targets that cannot be written: one clear error, and nothing left behind."""

from __future__ import annotations

import contextlib
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from support.helpers import (
    ROLE,
    assert_equal,
    assert_one_error,
    cast,
    cli,
    environment,
    many_tensors,
    own_copy,
    state,
    tensors,
)

from ckptconv.commands.merge.run import merge
from ckptconv.errors import CkptconvError

Made = Callable[[str], Path]


def test_a_target_under_a_file(made: Made, place: Path) -> None:
    before = state(place)
    assert_one_error(
        cli("merge", made("fsdp2_w4"), place / "neighbour" / "out"), r"is a file", names=("neighbour",)
    )
    assert_one_error(cli("merge", made("fsdp2_w4"), place / "neighbour"), r"OUT is a file")
    assert state(place) == before


@pytest.mark.skipif(not Path("/proc/self").exists(), reason="no /proc")
def test_a_target_where_nobody_may_write(made: Made) -> None:
    assert_one_error(
        cli("merge", made("fsdp2_w4"), "/proc/ckptconv-out"),
        r"cannot be written|no permission|not enough free space",
    )


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write everywhere")
def test_a_target_in_a_folder_without_permission(made: Made, place: Path) -> None:
    place.chmod(0o555)
    try:
        assert_one_error(cli("merge", made("fsdp2_w4"), place / "out"), r"no permission", names=(place,))
    finally:
        place.chmod(0o755)


def mount(*words: str) -> bool:
    permitted = sys.platform == "linux" and os.geteuid() == 0 and shutil.which("mount") is not None
    return permitted and subprocess.run(["mount", *words], capture_output=True).returncode == 0


@contextlib.contextmanager
def mounted(folder: Path, *options: str) -> Iterator[Path]:
    """A small file system of its own, where this machine permits it."""
    folder.mkdir(exist_ok=True)
    if not mount("-t", "tmpfs", "-o", ",".join(options), "tmpfs", str(folder)):
        pytest.skip("mounting a tmpfs is not permitted here")
    try:
        yield folder
    finally:
        subprocess.run(["umount", "-l", str(folder)], check=True)


def test_a_read_only_target(made: Made, place: Path) -> None:
    with mounted(place / "disk", "size=1m") as disk:
        subprocess.run(["mount", "-o", "remount,ro", str(disk)], check=True)
        ran = cli("merge", made("fsdp2_w4"), disk / "out")
        assert_one_error(ran, r"cannot be written|no permission|read-only", names=(disk,))
        assert list(disk.iterdir()) == []


@pytest.fixture(scope="module")
def large(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """2.6 MB of weights in 80 tensors."""
    return many_tensors(tmp_path_factory.mktemp("large") / "run", count=80)


def test_a_full_target_is_found_before_the_first_byte(large: Path, place: Path) -> None:
    with mounted(place / "disk", "size=1m") as disk:
        begun: list[object] = []
        with pytest.raises(CkptconvError, match="not enough free space"):
            merge(large, disk / "out", dtype="keep", on_progress=begun.append)
        assert begun == []
        ran = cli("merge", large, disk / "out", "--dtype", "keep")
        assert_one_error(ran, r"not enough free space", names=("bytes free", disk))
        assert list(disk.iterdir()) == []


@pytest.mark.parametrize("shards", ["5GB", "100KB"])
def test_a_disk_that_fills_in_the_middle(
    large: Path, place: Path, monkeypatch: pytest.MonkeyPatch, shards: str
) -> None:
    """Somebody else filled it meanwhile: simulated by a check that sees more room than there is."""
    usage = shutil.disk_usage
    monkeypatch.setattr(shutil, "disk_usage", lambda path: usage(path)._replace(free=1 << 40))
    with mounted(place / "disk", "size=1m") as disk:
        (disk / "neighbour").write_text("stays")
        ran = cli("merge", large, disk / "out", "--dtype", "keep", "--max-shard-size", shards)
        assert_one_error(ran, r"the disk is full", names=(disk,))
        assert [path.name for path in disk.iterdir()] == ["neighbour"]
        assert (disk / "neighbour").read_text() == "stays"


def test_a_full_disk_promises_nothing_that_is_not_kept(
    large: Path, place: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    usage = shutil.disk_usage
    monkeypatch.setattr(shutil, "disk_usage", lambda path: usage(path)._replace(free=1 << 40))
    with mounted(place / "disk", "size=1m") as disk:
        ran = cli("merge", large, disk / "out", "--dtype", "keep", "--max-shard-size", "100KB")
        assert "resume" not in ran.err or any(disk.rglob("*.safetensors"))


def test_a_disk_that_fills_at_the_last_small_file(made: Made, tmp_path: Path, place: Path) -> None:
    run = own_copy(made("fsdp2_w4"), tmp_path / "run")
    (run / ROLE / "huggingface" / "vocab.txt").write_bytes(b"v" * 900_000)
    with mounted(place / "disk", "size=800k") as disk:
        ran = cli("merge", run, disk / "out")
        assert_one_error(ran, r"disk is full|not enough free space", names=(disk,))
        assert list(disk.iterdir()) == []


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="no /dev/full")
def test_a_result_that_cannot_be_printed_does_not_undo_the_merge(made: Made, place: Path) -> None:
    with open("/dev/full", "w") as full:
        words = [sys.executable, "-m", "ckptconv", "merge", str(made("fsdp2_w4")), str(place / "out"), "-q"]
        done = subprocess.run(
            words, stdout=full, stderr=subprocess.PIPE, text=True, env=environment(), timeout=60
        )
    assert "Traceback" not in re.sub(r"Exception ignored.*", "", done.stderr, flags=re.DOTALL)
    assert_equal(tensors(place / "out"), cast(tensors(made("fsdp2_w4") / "hub")))
