"""The target of a merge: it appears whole or not at all.

Everything is made in a work folder beside it and moved into place by one rename. A lock keeps two merges out of one
target; a stamp says whether what a killed run left belongs to the same plan.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import shutil
from collections.abc import Iterator
from pathlib import Path

from ckptconv.errors import CkptconvError

_STAMP = ".plan"


def check_target(target: Path, sources: list[Path], overwrite: bool) -> None:
    """Refuse a target that holds one of the sources, cannot be written, or is there already; see `overwrite`."""
    resolved = target.resolve()
    for source in sources:
        if resolved == source.resolve() or resolved in source.resolve().parents:
            raise CkptconvError(
                "the target holds the checkpoint itself", where=target, hint="choose another folder"
            )
    parent = _existing_parent(target)
    if not os.access(parent, os.W_OK):
        raise CkptconvError("no permission to write here", where=parent)
    if not target.exists():
        return
    if not target.is_dir():
        raise CkptconvError("the target is a file", where=target)
    names = [path.name for path in target.iterdir()]
    if not names:
        return
    if not overwrite:
        raise CkptconvError(
            "the target is there already",
            where=target,
            found=_listed(names),
            hint="--overwrite replaces it when the new one is whole",
        )
    if not any(
        name == "config.json" or name == "adapter_config.json" or name.endswith(".safetensors")
        for name in names
    ):
        raise CkptconvError(
            "the target is no model folder; it will not be replaced", where=target, found=_listed(names)
        )


def _listed(names: list[str]) -> str:
    return ", ".join(sorted(names)[:5]) + (f" and {len(names) - 5} more" if len(names) > 5 else "")


def _existing_parent(target: Path) -> Path:
    parent = target.resolve().parent
    while not parent.exists():
        parent = parent.parent
    if not parent.is_dir():
        raise CkptconvError("a part of the target's path is a file", where=parent)
    return parent


def check_room(target: Path, wanted: int) -> None:
    """Refuse when the target's disk has less free than the bytes wanted, counting what a killed run left."""
    parent = _existing_parent(target)
    free = shutil.disk_usage(parent).free
    work = _work_path(target)
    begun = (
        sum(path.stat().st_blocks * 512 for path in work.rglob("*") if path.is_file()) if work.is_dir() else 0
    )
    if wanted > free + begun:
        raise CkptconvError(
            "not enough room on the target's disk",
            where=parent,
            found=f"{free:,} bytes free",
            wanted=f"{wanted:,} bytes",
        )


def _work_path(target: Path) -> Path:
    resolved = target.resolve()
    return resolved.parent / f".{resolved.name}.ckptconv-partial"


@contextlib.contextmanager
def work_folder(target: Path, stamp: str) -> Iterator[Path]:
    """The folder beside the target in which a merge works. A killed run's is taken up if its stamp is the same one.

    On an error or Ctrl-C it is removed; only a run that is killed leaves it behind.
    """
    work = _work_path(target)
    made = [parent for parent in (work.parent, *work.parent.parents) if not parent.exists()]
    try:
        work.mkdir(parents=True, exist_ok=True)
        lock = os.open(work / ".lock", os.O_RDWR | os.O_CREAT, 0o644)
    except OSError as error:
        raise CkptconvError(f"cannot be written: {error.strerror}", where=work.parent) from error
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as error:
        os.close(lock)
        raise CkptconvError("another merge is writing this target", where=target) from error
    try:
        if not (work / _STAMP).is_file() or (work / _STAMP).read_text() != stamp:
            _empty(work)
            (work / _STAMP).write_text(stamp)
        yield work
    except BaseException:
        shutil.rmtree(work, ignore_errors=True)
        for parent in made:
            with contextlib.suppress(OSError):
                parent.rmdir()
        raise
    finally:
        os.close(lock)


def _empty(work: Path) -> None:
    for path in work.iterdir():
        if path.name != ".lock":
            shutil.rmtree(path) if path.is_dir() else path.unlink()


def publish(work: Path, target: Path, overwrite: bool) -> None:
    """Make the work folder the target by one rename; the old target is moved aside first and removed last."""
    (work / _STAMP).unlink(missing_ok=True)
    target = target.resolve()
    old = None
    try:
        fsync_tree(work)
        if target.exists() and any(target.iterdir()):
            if not overwrite:
                raise CkptconvError("the target is there already: it appeared during the merge", where=target)
            old = target.parent / f".{target.name}.ckptconv-old-{os.getpid()}"
            os.replace(target, old)
        try:
            os.replace(work, target)
        except OSError:
            if old is not None:
                os.replace(old, target)
            raise
        (target / ".lock").unlink(missing_ok=True)  # only now: until the rename it keeps other merges out
        _fsync_folder(target.parent)
    except OSError as error:
        raise CkptconvError(
            f"the finished folder cannot be moved into place: {error.strerror}", where=target
        ) from error
    if old is not None:
        shutil.rmtree(old, ignore_errors=True)


def fsync_tree(folder: Path) -> None:
    for path in folder.rglob("*"):
        if path.is_file() and not path.name.endswith(".safetensors"):  # those are synced as they finish
            handle = os.open(path, os.O_RDONLY)
            os.fsync(handle)
            os.close(handle)
    _fsync_folder(folder)


def _fsync_folder(folder: Path) -> None:
    handle = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
