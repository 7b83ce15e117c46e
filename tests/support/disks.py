"""File systems of a test's own: a small tmpfs, ext4, vfat, FUSE, overlay. Skipped where mounting is not permitted."""

from __future__ import annotations

import contextlib
import os
import shutil
import subprocess
import sys
from collections.abc import Iterator, Mapping
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
def tmpfs(folder: Path, size: str, inodes: int = 0) -> Iterator[Path]:
    """Pages of memory: no O_DIRECT before Linux 6.6. inodes: how many files it can hold; 0 for no such limit."""
    folder.mkdir()
    _mount("-t", "tmpfs", "-o", f"size={size},nr_inodes={inodes}", "tmpfs", str(folder))
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


@contextlib.contextmanager
def vfat(folder: Path, nbytes: int) -> Iterator[Path]:
    """A memory card: no owners, no links, times of two seconds, another inode number at each mount."""
    if shutil.which("mkfs.vfat") is None:
        pytest.skip("needs mkfs.vfat")
    folder.mkdir()
    disk = folder.with_name(f"{folder.name}.img")
    disk.touch()
    os.truncate(disk, nbytes)
    subprocess.run(["mkfs.vfat", str(disk)], check=True, stdout=subprocess.DEVNULL)
    _mount("-t", "vfat", "-o", "loop", str(disk), str(folder))
    with _until_unmounted(folder):
        yield folder


@contextlib.contextmanager
def fuse(folder: Path, env: Mapping[str, str] | None = None) -> Iterator[Path]:
    """A FUSE file system: an open file that is removed stays under another name until it is closed.

    Its files are those of the folder `FOLDER.below`. env: the environment of its server, such as one with faults.
    """
    if shutil.which("bindfs") is None or not Path("/dev/fuse").exists():
        pytest.skip("needs bindfs")
    below = folder.with_name(f"{folder.name}.below")
    for path in (folder, below):
        path.mkdir(exist_ok=True)
    if subprocess.run(["bindfs", str(below), str(folder)], capture_output=True, env=env).returncode:
        pytest.skip("mounting is not permitted here")
    with _until_unmounted(folder):
        yield folder


@contextlib.contextmanager
def overlay(folder: Path, lower: Path) -> Iterator[Path]:
    """A container's file system: `lower` is its image."""
    upper, work = folder.with_name(f"{folder.name}.upper"), folder.with_name(f"{folder.name}.work")
    for path in (folder, upper, work):
        path.mkdir()
    layers = f"lowerdir={lower},upperdir={upper},workdir={work},redirect_dir=off"
    _mount("-t", "overlay", "-o", layers, "overlay", str(folder))
    with _until_unmounted(folder):
        yield folder


def fill(file: Path) -> None:
    """Take all the room that is left."""
    with contextlib.suppress(OSError), file.open("wb", buffering=0) as ballast:
        while ballast.write(b"b" * (1 << 16)):
            pass
