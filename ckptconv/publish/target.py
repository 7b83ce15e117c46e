"""The target of a merge, which appears completely or not at all.

The merge writes into a folder next to the target and publishes it with one rename:

    .OUT.ckptconv-partial/
        lock          keeps a second merge out; the system releases it when the process ends
        plan          tells a later run what was begun: the plan's fingerprint, and the inode of `model`
        model/        becomes OUT, or is exchanged with the existing OUT
        model.done/   holds the records of the complete files (`copy` writes them)
        old/          holds the former OUT for an instant, if the file system cannot exchange two folders
"""

from __future__ import annotations

import contextlib
import os
import shutil
from collections.abc import Iterator
from pathlib import Path

from ckptconv.errors import CkptconvError, Kind, cannot_write, listed
from ckptconv.publish.durable import exchange, fsync_folder, fsync_tree, undisturbed
from ckptconv.publish.locks import locked

_LOCK, _PLAN, _MODEL, _OLD = "lock", "plan", "model", "old"


def check_target(target: Path, sources: list[Path], overwrite: bool) -> None:
    """Refuse a target that must not be written.

    Args:
        target: the folder that the merge will create.
        sources: the folders that it reads.
        overwrite: True to accept an existing model folder.

    Raises:
        CkptconvError: the target contains a source, cannot be written, or exists and must not be replaced.
    """
    resolved = target.resolve()
    for source in sources:
        if resolved == source.resolve() or resolved in source.resolve().parents:
            raise CkptconvError(
                "OUT contains the checkpoint", where=target, hint="choose another folder", kind=Kind.TARGET
            )
    parent = _existing_parent(target)
    if not os.access(parent, os.W_OK):
        raise CkptconvError("no permission to write here", where=parent, kind=Kind.TARGET)
    tidy(target)
    if not target.exists():
        return
    if not target.is_dir():
        raise CkptconvError("OUT is a file", where=target, kind=Kind.TARGET)
    if os.path.ismount(resolved):
        raise CkptconvError(
            "OUT is a mount point and cannot be replaced atomically",
            where=target,
            hint=f"use a subfolder: {target / 'model'}",
            kind=Kind.TARGET,
        )
    names = [path.name for path in target.iterdir()]
    if not names:
        return
    if not overwrite:
        raise CkptconvError(
            "OUT already exists",
            where=target,
            found=listed(sorted(names), 5),
            hint="use --overwrite to replace it (the old model is kept until the new one is complete)",
            kind=Kind.TARGET,
        )
    if not any(
        name == "config.json" or name == "adapter_config.json" or name.endswith(".safetensors")
        for name in names
    ):
        raise CkptconvError(
            "OUT exists and is not a model folder, so it will not be overwritten",
            where=target,
            found=listed(sorted(names), 5),
            hint="did you swap DIR and OUT?",
            kind=Kind.TARGET,
        )


def _existing_parent(target: Path) -> Path:
    parent = target.resolve().parent
    while not parent.exists():
        parent = parent.parent
    if not parent.is_dir():
        raise CkptconvError("part of the path of OUT is a file", where=parent, kind=Kind.TARGET)
    return parent


def check_room(target: Path, wanted: int) -> None:
    """Raise CkptconvError if the target's disk is too small for `wanted` bytes. What a killed run wrote counts as free."""
    parent = _existing_parent(target)
    free = shutil.disk_usage(parent).free
    if wanted > free + _begun(_home(target) / _MODEL):
        raise CkptconvError(
            "not enough free space for OUT",
            where=parent,
            found=f"{free:,} bytes free",
            wanted=f"{wanted:,} bytes",
            kind=Kind.TARGET,
        )


def _begun(work: Path) -> int:
    """Bytes on disk that a killed run left. Files that another merge removes at this moment are ignored."""
    total = 0
    for folder, _, names in os.walk(work):
        for name in names:
            with contextlib.suppress(OSError):
                total += os.stat(os.path.join(folder, name)).st_blocks * 512
    return total


def _home(target: Path) -> Path:
    resolved = target.resolve()
    return resolved.parent / f".{resolved.name}.ckptconv-partial"


@contextlib.contextmanager
def work_folder(target: Path, stamp: str) -> Iterator[Path]:
    """Hold the folder in which a merge builds the model; only a run that is killed leaves it behind.

    It keeps the files of a killed run with the same fingerprint. On an error or Ctrl-C everything is removed.

    Args:
        target: the folder to publish later.
        stamp: the fingerprint of the plan.

    Raises:
        CkptconvError: another merge holds the folder, or it cannot be written.
    """
    home = _home(target)
    created = [parent for parent in (home.parent, *home.parent.parents) if not parent.exists()]
    try:
        with locked(home / _LOCK) as mine:
            if not mine:
                raise CkptconvError("another merge is writing to OUT", where=target, kind=Kind.TARGET)
            try:
                _bring_back(home, target)
                yield _take_up(home, stamp, created)
            finally:
                undisturbed(lambda: _end(home, target))
    except BaseException:
        undisturbed(lambda: _forget(target, created))
        raise


def _forget(target: Path, created: list[Path]) -> None:
    """Remove the work folder and the parent folders that this merge created, if they are still empty."""
    tidy(target)
    for parent in created:
        with contextlib.suppress(OSError):
            parent.rmdir()


def _take_up(home: Path, stamp: str, created: list[Path]) -> Path:
    """The model's folder, with the files of a killed run of the same plan, else empty."""
    work = home / _MODEL
    try:
        for parent in created:
            fsync_folder(parent.parent)
        if not _is_of(home, stamp):
            _empty(home)
            work.mkdir()
            (home / _PLAN).write_text(f"{stamp} {work.stat().st_ino}")
    except OSError as error:
        raise cannot_write(home, error) from error
    return work


def stamp_of(work: Path) -> str:
    """The content of the `plan` file, which identifies the run that owns a work folder; "" if there is none."""
    try:
        return (work.parent / _PLAN).read_text()
    except (OSError, ValueError):
        return ""


def _is_of(home: Path, stamp: str | None = None) -> bool:
    """True if `model` is the folder that a run (with this fingerprint) was filling, and not a target exchanged into it."""
    try:
        words = (home / _PLAN).read_text().split()
        inode = (home / _MODEL).stat().st_ino
    except (OSError, ValueError):
        return False
    return len(words) == 2 and stamp in (None, words[0]) and words[1] == str(inode)


def tidy(target: Path) -> None:
    """Clean up after a run that was killed while it published its model.

    The old target is moved back if the run had moved it aside. Files that no later run could reuse are removed.
    """
    home = _home(target)
    if not home.is_dir():
        return
    with contextlib.suppress(OSError, CkptconvError), locked(home / _LOCK) as mine:
        if mine:
            _bring_back(home, target)
            if not _is_of(home):
                _end(home, target)


def _bring_back(home: Path, target: Path) -> None:
    if (home / _OLD).exists() and not target.exists():
        os.replace(home / _OLD, target.resolve())


def _end(home: Path, target: Path) -> None:
    """Remove the work folder. The lock goes last, so that no other merge can begin meanwhile."""
    _bring_back(home, target)
    with contextlib.suppress(OSError):
        _empty(home)
        (home / _LOCK).unlink(missing_ok=True)
        home.rmdir()


def _empty(home: Path) -> None:
    for path in home.iterdir():
        if path.name != _LOCK:
            shutil.rmtree(path) if path.is_dir() and not path.is_symlink() else path.unlink()


def publish(work: Path, target: Path, overwrite: bool) -> None:
    """Rename the work folder to the target. An existing target is exchanged with it and removed last.

    Args:
        work: the folder with the complete model.
        target: the folder to publish.
        overwrite: True to replace an existing target.

    Raises:
        CkptconvError: the target appeared during the merge, or the rename failed.
    """
    target, home = target.resolve(), work.parent
    try:
        fsync_tree(work)
        if target.exists() and any(target.iterdir()):
            if not overwrite:
                raise CkptconvError(
                    "OUT already exists: it appeared during the merge", where=target, kind=Kind.TARGET
                )
            if not exchange(work, target):
                os.replace(target, home / _OLD)
                os.replace(
                    work, target
                )  # if the process dies between the two, _bring_back moves the old target back
        else:
            os.replace(work, target)
        fsync_folder(home)
        fsync_folder(target.parent)
    except OSError as error:
        raise CkptconvError(
            f"the finished folder cannot be moved into place: {error.strerror}",
            where=target,
            kind=Kind.TARGET,
        ) from error
