"""Check that files did not change while they were read: a merge of two states of a checkpoint would be wrong."""

from __future__ import annotations

import contextlib
import os.path
from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path

from ckptconv.errors import CkptconvError, Kind
from ckptconv.tensors.look import files_below, stamp
from ckptconv.tensors.storage import FarFile, FarGroup, FileState
from ckptconv.tensors.stored_file import far_of


def stamps_of(files: Iterable[str], known: Mapping[str, FileState]) -> dict[str, FileState]:
    """The state of each file: the known one, which was taken before its header was read, else the present one.

    Args:
        files: paths.
        known: file -> state.

    Returns:
        file -> state, sorted by path.

    Raises:
        CkptconvError: a file without a known state has disappeared.
    """
    return {file: known.get(file) or _present(file) for file in sorted(files)}


def stamps_under(folders: Iterable[Path], leave: Callable[[Path], bool]) -> dict[str, FileState]:
    """The states of all files under some folders, without those that cannot be looked at.

    Args:
        folders: where to look, subfolders included.
        leave: True for a subfolder to skip.

    Returns:
        file -> state.
    """
    states: dict[str, FileState] = {}
    for folder in folders:
        for file in files_below(folder, leave):
            with contextlib.suppress(OSError):
                states[file] = stamp(file)
    return states


def fingerprint(stamps: Mapping[str, FileState]) -> str:
    """One hash over the names, sizes and times of files; it stays the same where their folder is moved or renamed."""
    import xxhash  # which inspect does not need; hashlib would load OpenSSL

    files = sorted(stamps)
    # An address counts as a path below the root: --also may name a folder on a disk next to one in a store.
    plain = [file if far_of(file) is None else f"/{file.replace('://', '/')}" for file in files]
    top = os.path.commonpath({os.path.dirname(file) for file in plain}) if files else ""
    digest = xxhash.xxh3_128()
    for file, path in zip(files, plain, strict=True):
        was = stamps[file]
        version = (was.version,) if was.version else ()
        inside = path[len(top) :].lstrip("/").removeprefix("./")  # os.path.relpath takes ten times as long
        digest.update(repr((inside, was.nbytes, was.changed, *version)).encode())
    return digest.hexdigest()


def require_unchanged(stamps: Mapping[str, FileState]) -> None:
    """Check that every file still has the state that was noted.

    Raises:
        CkptconvError: names the first file that changed or disappeared.
    """
    for (file, was), now in zip(stamps.items(), _states_now(stamps), strict=True):
        if now != was:
            raise CkptconvError(
                "a file of the checkpoint changed while it was read; nothing was written",
                where=file,
                found=now if str(now) != str(was) else "another file, or a later write in that second",
                wanted=was,
                hint="run it again when the trainer has finished writing",
                kind=Kind.ENVIRONMENT,
            )


def _states_now(files: Iterable[str]) -> Iterator[FileState]:
    """The present state of each file; the stores are asked about all of their objects together.

    Raises:
        CkptconvError: a file has disappeared.
    """
    files = list(files)
    groups: dict[FarGroup, list[FarFile]] = {}
    for file in files:
        if (far := far_of(file)) is not None:
            groups.setdefault(far.group, []).append(far)
    known = {
        far: now
        for group, found in groups.items()
        for far, now in zip(found, group.states_now(found), strict=True)
    }
    for file in files:
        far = far_of(file)
        if far is None:
            yield _present(file)
        elif (now := known[far]) is not None:
            yield now
        else:
            raise CkptconvError(
                "a file of the checkpoint disappeared while it was read", where=file, kind=Kind.ENVIRONMENT
            )


def _present(file: str) -> FileState:
    try:
        return stamp(file)
    except OSError as error:
        raise CkptconvError(
            f"a file of the checkpoint disappeared while it was read: {error.strerror}",
            where=file,
            kind=Kind.ENVIRONMENT,
        ) from error
