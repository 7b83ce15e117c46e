"""File systems of a test's own: a small tmpfs, or a small ext4 with O_DIRECT. Skipped where mounting is not permitted."""

from __future__ import annotations

import contextlib
import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest


def _mount(*words: str) -> None:
    permitted = sys.platform == "linux" and os.geteuid() == 0 and shutil.which("mount") is not None
    if not permitted or subprocess.run(["mount", *words], capture_output=True).returncode:
        pytest.skip("mounting is not permitted here")


@contextlib.contextmanager
def _until_unmounted(folder: Path) -> Iterator[Path]:
    try:
        yield folder
    finally:
        subprocess.run(["umount", "-l", str(folder)], check=True)


@contextlib.contextmanager
def tmpfs(folder: Path, size: str) -> Iterator[Path]:
    """Pages of memory: no O_DIRECT before Linux 6.6."""
    folder.mkdir()
    _mount("-t", "tmpfs", "-o", f"size={size}", "tmpfs", str(folder))
    with _until_unmounted(folder):
        yield folder


@contextlib.contextmanager
def ext4(folder: Path, nbytes: int) -> Iterator[Path]:
    """A disk in a file."""
    if shutil.which("mkfs.ext4") is None:
        pytest.skip("needs mkfs.ext4")
    folder.mkdir()
    disk = folder.with_name(f"{folder.name}.img")
    disk.touch()
    os.truncate(disk, nbytes)
    subprocess.run(["mkfs.ext4", "-q", "-m", "0", "-O", "^has_journal", str(disk)], check=True)
    _mount("-o", "loop", str(disk), str(folder))
    with _until_unmounted(folder):
        shutil.rmtree(folder / "lost+found")
        yield folder


def fill(file: Path) -> None:
    """Take all the room that is left."""
    with contextlib.suppress(OSError), file.open("wb", buffering=0) as ballast:
        while ballast.write(b"b" * (1 << 16)):
            pass
