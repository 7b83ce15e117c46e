"""How code looks at the content of an input: what a folder holds, what a name is, and the bytes of a file.

Every function takes a path on a disk or in a store, and asks its `Storage`. A look at a folder costs one request or system
call, however many names it holds; a look at a name costs one system call, and nothing in a store, whose listing is kept.
"""

from __future__ import annotations

import errno
import fnmatch
import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from ckptconv.errors import CkptconvError, Kind
from ckptconv.tensors.disk import DISK
from ckptconv.tensors.storage import Entry, FileState, OpenFile, Storage
from ckptconv.tensors.stored_file import far_of


def storage_of(path: str | Path | None) -> Storage:
    """The store that a path is in, or the disk."""
    storage: Storage = getattr(path, "storage", DISK)
    return storage


def is_far(path: str | Path | None) -> bool:
    """True for a path in a store."""
    return storage_of(path) is not DISK


def names_in(folder: Path) -> list[str]:
    """The names in a folder, in no order. Where a folder may hold 100,000 others, this costs least.

    Raises:
        OSError: the folder cannot be listed.
    """
    return storage_of(folder).names(folder)


def paths_in(folder: Path) -> list[Path]:
    """The paths in a folder, sorted by name. Raises as `names_in` does."""
    return [folder / name for name in sorted(names_in(folder))]


def entries(folder: Path) -> Iterator[Entry]:
    """The names in a folder with what they are, in no order. Raises as `names_in` does."""
    return storage_of(folder).entries(folder)


def matching(folder: Path, pattern: str) -> list[Path]:
    """The paths below a folder that fit a pattern, sorted in each folder; [] where a folder cannot be listed.

    Args:
        folder: where to look.
        pattern: names with the wildcards of `fnmatch`, such as `step_*/latest`. A `*` does not go into subfolders.
    """
    first, _, rest = pattern.partition("/")
    try:
        if any(mark in first for mark in "*?["):
            found = [folder / name for name in sorted(fnmatch.filter(names_in(folder), first))]
        else:
            found = [folder / first] if rest or exists(folder / first) else []
    except OSError:
        return []
    return [path for below in found for path in matching(below, rest)] if rest else found


def files_below(folder: Path, leave: Callable[[Path], bool] = lambda folder: False) -> Iterator[str]:
    """The paths of everything below a folder, in subfolders too, that is no folder. Links to folders are not followed.

    Args:
        folder: where to look. A folder that cannot be listed counts as empty.
        leave: True for a subfolder to skip.
    """
    return storage_of(folder).files_below(folder, leave)


def bytes_below(folder: Path) -> int:
    """The size in bytes of all files below a folder, without those that cannot be looked at."""
    total = 0
    for file in files_below(folder):
        with suppress(OSError):
            total += size_of(file)
    return total


def is_file(path: Path) -> bool:
    """True for a file, and for a link to one; False for a pipe."""
    return storage_of(path).is_file(path)


def is_dir(path: Path) -> bool:
    """True for a folder, and for a link to one."""
    return storage_of(path).is_dir(path)


def exists(path: Path) -> bool:
    """True for whatever has this name; False for a link whose target is gone."""
    return storage_of(path).exists(path)


def link_to(path: Path) -> Path | None:
    """The text of a symbolic link, as a path; None for whatever is none."""
    return storage_of(path).link_to(path)


def resolved(path: Path) -> Path:
    """The absolute path without links in it."""
    return storage_of(path).resolved(path)


def stamp(file: str | Path) -> FileState:
    """Size, time of change and identity of a file. An object in a store has the state that was listed.

    Raises:
        OSError: there is no such file.
    """
    if isinstance(file, Path):
        return storage_of(file).state(file)
    far = far_of(file)
    return DISK.state(file) if far is None else far.state


def size_of(file: str | Path) -> int:
    """The size of a file in bytes. Raises as `stamp` does."""
    return stamp(file).nbytes


def are_same(one: Path, other: Path) -> bool:
    """True if both paths name one file. Raises as `stamp` does."""
    return storage_of(one if is_far(one) else other).are_same(one, other)


@contextmanager
def opened(file: str | Path, kind: str = "a torch.save file") -> Iterator[OpenFile]:
    """Open a file to read ranges of it.

    Args:
        file: a regular file on a disk, or an object in a store.
        kind: what it should be, for the error message.

    Raises:
        CkptconvError: it cannot be read, or is a folder, pipe or device.
    """
    try:
        found = open_file(file)
    except OSError as error:
        raise CkptconvError(
            f"cannot be read: {error.strerror or error}", where=file, kind=Kind.ENVIRONMENT
        ) from error
    try:
        if not found.is_regular:
            raise CkptconvError(
                f"not {kind}, but a folder, a pipe or a device", where=file, kind=Kind.DAMAGED
            )
        yield found
    finally:
        found.close()


def open_file(file: str | Path) -> OpenFile:
    """Open whatever has this name, without waiting where it is a pipe. The caller closes it.

    Raises:
        OSError: it cannot be opened.
    """
    if isinstance(file, Path):
        return storage_of(file).open(file)
    return far_of(file) or DISK.open(file)


def read_bytes(file: str | Path) -> bytes:
    """The whole content of a file.

    Raises:
        OSError: it cannot be opened, or is a folder, pipe or device.
        CkptconvError: it cannot be read.
    """
    found = open_file(file)
    try:
        if not found.is_regular:
            raise IsADirectoryError(errno.EISDIR, os.strerror(errno.EISDIR), str(file))
        return found.read(0, found.nbytes)
    finally:
        found.close()
