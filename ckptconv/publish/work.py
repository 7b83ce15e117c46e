"""The folder in which a merge builds a model, and what a stopped run leaves in it for the next one.

It is next to the target, so that one rename publishes the model:

    .OUT.ckptconv-partial/
        lock          keeps a second merge out; the system releases it when the process ends
        plan          tells a later run what was begun: the plan's fingerprint, and a token of the run that began it
        model/        becomes OUT, or is exchanged with the existing OUT
        model.done/   holds the records of the complete files (`copy` writes them)
        publishing    holds the hash of the model's receipt from the moment on at which `model` may become the old OUT
        old/          holds the former OUT for an instant, if the file system cannot exchange two folders

Inode numbers tell nothing here: FUSE and FAT give a folder another one after a while.
"""

from __future__ import annotations

import contextlib
import errno
import os
import shutil
import time
from collections.abc import Iterator
from pathlib import Path
from uuid import uuid4

import xxhash

from ckptconv.copy.finished import finished_paths
from ckptconv.copy.output_file import file_system
from ckptconv.errors import CkptconvError, Interrupted, Kind, cannot_write
from ckptconv.publish.durable import fsync_file, fsync_folder, undisturbed
from ckptconv.publish.locks import locked
from ckptconv.publish.receipt import RECEIPT

_LOCK, _PLAN, MODEL, OLD, _PUBLISHING = "lock", "plan", "model", "old", "publishing"
# An open file that is removed stays under such a name until it is closed: FUSE's, NFS's and SMB's.
_REMOVED = (".fuse_hidden", ".nfs", ".smbdelete")
_PATIENCE = 2.0  # seconds for such a file to go


def home_of(target: Path) -> Path:
    """The work folder's parent `.OUT.ckptconv-partial` for a target."""
    resolved = target.resolve()
    return resolved.parent / f".{resolved.name}.ckptconv-partial"


def bytes_begun(target: Path) -> int:
    """Bytes on disk that a stopped run left. Files that another merge removes at this moment are ignored."""
    total = 0
    for folder, _, names in os.walk(home_of(target) / MODEL):
        for name in names:
            with contextlib.suppress(OSError):
                total += os.stat(os.path.join(folder, name)).st_blocks * 512
    return total


@contextlib.contextmanager
def work_folder(target: Path, stamp: str, resume: bool = True) -> Iterator[Path]:
    """Hold the folder in which a merge builds the model.

    It keeps the files of a stopped run with the same fingerprint. On an error everything is removed; on Ctrl-C and
    SIGTERM the complete weight files stay for the next run.

    Args:
        target: the folder to publish later.
        stamp: the fingerprint of the plan.
        resume: False to begin anew, and to keep nothing on Ctrl-C either.

    Raises:
        CkptconvError: another merge holds the folder, or it cannot be written.
        Interrupted: in place of KeyboardInterrupt, where complete files were kept.
    """
    home = home_of(target)
    created = [parent for parent in (home.parent, *home.parent.parents) if not parent.exists()]
    keep = False
    try:
        with locked(home / _LOCK) as mine:
            if not mine:
                raise CkptconvError("another merge is writing to OUT", where=target, kind=Kind.TARGET)
            try:
                _bring_back(home, target)
                _require_movable(home, target)
                yield _take_up(home, stamp if resume else None, stamp, created)
            except KeyboardInterrupt:
                keep = resume
                raise
            finally:
                undisturbed(lambda: _leave(home, target, keep))
    except BaseException as error:
        undisturbed(lambda: _forget(target, created))
        kept = finished_paths(home / MODEL) if keep else []
        if kept:
            raise Interrupted(home, len(kept), sum(path.stat().st_size for path in kept)) from error
        raise
    _remove(home)


def stamp_of(work: Path) -> str:
    """The content of the `plan` file, which identifies the run that owns a work folder; "" if there is none."""
    try:
        return (work.parent / _PLAN).read_text()
    except (OSError, ValueError):
        return ""


def tidy(target: Path) -> None:
    """Clean up after a run that was killed while it published its model.

    The old target is moved back if the run had moved it aside. Files that no later run could reuse are removed.
    """
    home = home_of(target)
    if not home.is_dir():
        return
    with contextlib.suppress(OSError, CkptconvError):
        with locked(home / _LOCK) as mine:
            if not mine:
                return
            _bring_back(home, target)
            if not _is_of(home):
                _end(home, target)
        _remove(home)


def note_publishing(home: Path) -> None:
    """Note the receipt of the complete model, so that a later run can tell it from a target that was exchanged with it.

    Raises:
        OSError: it cannot be written.
    """
    part = home / f"{_PUBLISHING}.part"  # half a hash would look like a target that was exchanged
    part.write_text(_receipt_hash(home / MODEL))
    fsync_file(part)
    os.replace(part, home / _PUBLISHING)
    fsync_folder(home)


def _take_up(home: Path, stamp: str | None, new: str, created: list[Path]) -> Path:
    """The model's folder, with the files of a stopped run of the plan `stamp`, else empty."""
    work = home / MODEL
    try:
        for parent in created:
            fsync_folder(parent.parent)
        if stamp is not None and _is_of(home, stamp):
            (home / _PUBLISHING).unlink(missing_ok=True)
        else:
            _empty(home)
            work.mkdir()
            (home / _PLAN).write_text(f"{new} {uuid4().hex}")
    except OSError as error:
        raise cannot_write(home, error) from error
    return work


def _is_of(home: Path, stamp: str | None = None) -> bool:
    """True if `model` is the folder that a run (with this fingerprint) was filling, and not a target exchanged into it."""
    words = stamp_of(home / MODEL).split()
    if len(words) != 2 or stamp not in (None, words[0]) or not (home / MODEL).is_dir():
        return False
    try:
        noted = (home / _PUBLISHING).read_text()
    except FileNotFoundError:
        return True
    except (OSError, ValueError):
        return False
    return noted == _receipt_hash(home / MODEL)


def _receipt_hash(model: Path) -> str:
    try:
        return xxhash.xxh3_128_hexdigest((model / RECEIPT).read_bytes())
    except OSError:
        return "none"


def _require_movable(home: Path, target: Path) -> None:
    """Refuse a target that could not be moved away at the end, before anything is written.

    The kernel does not rename a folder of an overlay's lower layer, such as one of a container's image, unless it was
    mounted with redirect_dir (Linux, Documentation/filesystems/overlayfs.rst). The folder is moved aside and back.
    """
    if not target.exists() or file_system(os.stat(home).st_dev) != "overlay":
        return
    try:
        os.rename(target.resolve(), home / OLD)
    except OSError as error:
        if error.errno != errno.EXDEV:
            return  # what else is wrong is found when it is published
        raise CkptconvError(
            "OUT is in a lower layer of an overlay (a container's image), where a folder cannot be replaced in one step",
            where=target,
            hint=f"choose another folder, or remove this one first: rm -r {target}",
            kind=Kind.TARGET,
        ) from error
    _bring_back(home, target)


def _bring_back(home: Path, target: Path) -> None:
    if (home / OLD).exists() and not target.exists():
        os.replace(home / OLD, target.resolve())


def _leave(home: Path, target: Path, keep: bool) -> None:
    """Remove the work folder, or with `keep` all in it but the complete files, if there are any."""
    kept = set(finished_paths(home / MODEL)) if keep and _is_of(home) else set()
    if not kept:
        _end(home, target)
        return
    _bring_back(home, target)
    with contextlib.suppress(OSError):
        for path in home.iterdir():
            if path.name not in (_LOCK, _PLAN, _PUBLISHING, MODEL, f"{MODEL}.done"):
                shutil.rmtree(path) if path.is_dir() else path.unlink()
        for path in (home / MODEL).rglob("*"):
            if path.suffix == ".part" and path not in kept:
                path.unlink()


def _end(home: Path, target: Path) -> None:
    """Empty the work folder. The lock goes last, so that no other merge can begin meanwhile."""
    _bring_back(home, target)
    with contextlib.suppress(OSError):
        _empty(home)
        (home / _LOCK).unlink(missing_ok=True)


def _remove(home: Path) -> None:
    """Remove the folder if it is empty, once the lock is closed: a removed file that is open may still be in it."""
    until = time.monotonic() + _PATIENCE
    while True:
        try:
            home.rmdir()
            return
        except OSError:
            names = os.listdir(home) if home.is_dir() else []
            if not names or not all(name.startswith(_REMOVED) for name in names) or time.monotonic() > until:
                return
        time.sleep(0.01)


def _empty(home: Path) -> None:
    for path in home.iterdir():
        if path.name != _LOCK:
            shutil.rmtree(path) if path.is_dir() and not path.is_symlink() else path.unlink()


def _forget(target: Path, created: list[Path]) -> None:
    """Remove the work folder and the parent folders that this merge created, if they are still empty."""
    tidy(target)
    _remove(home_of(target))
    for parent in created:
        with contextlib.suppress(OSError):
            parent.rmdir()
