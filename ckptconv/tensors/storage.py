"""`Storage`: the one interface through which the content of inputs is looked at, on a disk or in a store.

`tensors.disk.Disk` implements it for every mounted file system, and `ckptconv.storage.tree.Tree` for a bucket and for a
repository of the Hub. A `Path` only names a place. Code that reads calls the functions of `tensors.look`, which ask the
storage of the path.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Sequence
from datetime import datetime, timezone
from pathlib import Path
from typing import NamedTuple, Protocol


class FileState(NamedTuple):
    """The facts that change when a file is written or replaced.

    Args:
        nbytes: the size in bytes.
        changed: the time of the last change, in nanoseconds since 1970.
        inode: the inode number; 0 on network and FUSE file systems, whose inode numbers are not stable.
        version: the ETag or generation of an object in a store; "" for a file on a disk.
    """

    nbytes: int
    changed: int
    inode: int
    version: str = ""

    def __str__(self) -> str:
        when = datetime.fromtimestamp(self.changed // 10**9, tz=timezone.utc)
        return f"{self.nbytes:,} bytes of {when:%Y-%m-%d %H:%M:%S} UTC"


class Entry(NamedTuple):
    """What a folder holds under one name.

    Attributes:
        folder: the folder.
        name: the name.
        is_folder: True for a folder, and not for a link to one.
        is_regular: True for a regular file, or a link to one.
    """

    folder: Path
    name: str
    is_folder: bool
    is_regular: bool

    @property
    def path(self) -> Path:
        """Its path."""
        return self.folder / self.name


class Ranges(Protocol):
    """What reads ranges of a file."""

    @property
    def nbytes(self) -> int:
        """The size of the file in bytes."""
        ...

    def read(self, start: int, nbytes: int) -> bytes:
        """Read bytes; fewer at the end of the file."""
        ...


class OpenFile(ABC):
    """A file that is open for reading. It is a `Ranges`, and threads may share it.

    Attributes:
        nbytes: its size in bytes.
        is_regular: False for a folder, a pipe and a device.
    """

    nbytes: int
    is_regular: bool = True

    @abstractmethod
    def fill(self, start: int, memory: memoryview) -> int:
        """Read bytes from `start` on into `memory`; returns how many, fewer only at the end of the file.

        Raises:
            CkptconvError: the file cannot be read. An object in a store also if it is another one than was listed.
        """

    def read(self, start: int, nbytes: int) -> bytes:
        """Read bytes; fewer at the end of the file. Raises as `fill` does."""
        memory = bytearray(max(0, min(nbytes, self.nbytes - start)))
        return bytes(memory[: self.fill(start, memoryview(memory))])

    def drop(self, start: int, nbytes: int) -> None:  # noqa: B027 - an object in a store is in no cache of the system
        """Let the system drop these bytes from its cache."""

    def close(self) -> None:  # noqa: B027 - an object in a store holds nothing of the system
        """Give back what the file holds of the system."""


class FarFile(OpenFile):
    """An object in a store, in the state in which it was listed. It needs no opening and no closing.

    Attributes:
        state: its state when it was listed.
        group: what lists it; files of one group are looked up together.
    """

    state: FileState
    group: FarGroup

    @property
    @abstractmethod
    def path(self) -> Path:
        """Its path, as a folder of the store lists it."""

    @abstractmethod
    def expect(self, ranges: Sequence[tuple[int, int]]) -> None:
        """Begin to fetch ranges (start, end) of bytes that will be read soon."""


class FarGroup(ABC):
    """The objects of one listing.

    Attributes:
        budget: bytes of memory for what was fetched and not read yet.
    """

    budget: int

    @abstractmethod
    def states_now(self, files: Sequence[FarFile]) -> list[FileState | None]:
        """The present state of each file; None if it does not exist any more."""


class Storage(ABC):
    """A disk or a store: it lists folders, looks names up and opens files, which are read by ranges."""

    @abstractmethod
    def names(self, folder: Path) -> list[str]:
        """The names in a folder, in no order.

        Raises:
            OSError: the folder cannot be listed.
        """

    @abstractmethod
    def entries(self, folder: Path) -> Iterator[Entry]:
        """The names in a folder with what they are, in no order. Raises as `names` does."""

    @abstractmethod
    def files_below(self, folder: Path, leave: Callable[[Path], bool]) -> Iterator[str]:
        """See `tensors.look.files_below`."""

    @abstractmethod
    def is_file(self, path: Path) -> bool:
        """True for a file, and for a link to one."""

    @abstractmethod
    def is_dir(self, path: Path) -> bool:
        """True for a folder, and for a link to one."""

    @abstractmethod
    def exists(self, path: Path) -> bool:
        """True for whatever has this name; False for a link whose target is gone."""

    @abstractmethod
    def state(self, path: Path) -> FileState:
        """Size, time of change and identity of a file. An object in a store has the state that was listed.

        Raises:
            OSError: there is no such file.
        """

    @abstractmethod
    def open(self, path: Path) -> OpenFile:
        """Open a file, without waiting where it is a pipe.

        Raises:
            OSError: the file cannot be opened.
        """

    def link_to(self, path: Path) -> Path | None:
        """The text of a symbolic link, as a path; None for whatever is none. A store has no links."""
        return None

    def resolved(self, path: Path) -> Path:
        """The absolute path without links in it. A store has no links."""
        return path

    def are_same(self, one: Path, other: Path) -> bool:
        """True if both paths name one file.

        Raises:
            OSError: one of them does not exist.
        """
        return str(one) == str(other)
