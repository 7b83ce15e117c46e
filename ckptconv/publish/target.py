"""The target of a merge: it appears whole or not at all.

Everything is made in a folder beside it, and moved into place by one rename:

    .OUT.ckptconv-partial/
        lock          keeps two merges out of one target; the system lets go of it when a process ends
        plan          what a killed run was doing: the plan's stamp, and the inode of the `model` that it filled
        model/        becomes OUT, or changes places with the OUT that is there
        model.done/   which of the model's files are finished (`copy` keeps it)
        old/          the former OUT for an instant, where a file system cannot make two folders change places
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
    """Refuse a target that holds one of the sources, cannot be written, or is there already; see `overwrite`."""
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
    """Refuse when the target's disk has less free than the bytes wanted, counting what a killed run left."""
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
    """Bytes that a killed run left, or that another merge is moving away at this moment."""
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
    """The folder in which a merge makes the model. A killed run's is taken up if its stamp is the same one.

    On an error or Ctrl-C everything is removed; only a run that is killed leaves it behind.
    """
    home = _home(target)
    made = [parent for parent in (home.parent, *home.parent.parents) if not parent.exists()]
    try:
        with locked(home / _LOCK) as mine:
            if not mine:
                raise CkptconvError("another merge is writing to OUT", where=target, kind=Kind.TARGET)
            try:
                _bring_back(home, target)
                yield _take_up(home, stamp, made)
            finally:
                undisturbed(lambda: _end(home, target))
    except BaseException:
        undisturbed(lambda: _forget(target, made))
        raise


def _forget(target: Path, made: list[Path]) -> None:
    """Remove the work folder and the parent folders that this merge created, if they are still empty."""
    tidy(target)
    for parent in made:
        with contextlib.suppress(OSError):
            parent.rmdir()


def _take_up(home: Path, stamp: str, made: list[Path]) -> Path:
    """The model's folder, with what a killed run of the same plan finished, else empty."""
    work = home / _MODEL
    try:
        for parent in made:
            fsync_folder(parent.parent)
        if not _is_of(home, stamp):
            _empty(home)
            work.mkdir()
            (home / _PLAN).write_text(f"{stamp} {work.stat().st_ino}")
    except OSError as error:
        raise cannot_write(home, error) from error
    return work


def stamp_of(work: Path) -> str:
    """What says whose a work folder is; "" where there is none."""
    try:
        return (work.parent / _PLAN).read_text()
    except (OSError, ValueError):
        return ""


def _is_of(home: Path, stamp: str | None = None) -> bool:
    """True when `model` is the folder that a run (with this stamp) was filling, and not an old target put in its place."""
    try:
        words = (home / _PLAN).read_text().split()
        inode = (home / _MODEL).stat().st_ino
    except (OSError, ValueError):
        return False
    return len(words) == 2 and stamp in (None, words[0]) and words[1] == str(inode)


def tidy(target: Path) -> None:
    """End what a run was doing that was killed while it put its model in place.

    An old target that it had moved aside comes back; what no later run could take up goes.
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
    """Remove everything, the lock last, so that no other merge moves in meanwhile."""
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
    """Make the work folder the target by one rename; one that is there changes places with it and is removed last."""
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
                os.replace(work, target)  # what happens between the two: _bring_back
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
