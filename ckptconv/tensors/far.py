"""What is read from another machine: the interface of a stored object and of a folder of them, without the store.

`ckptconv.storage` implements it for object stores. Code that reads files takes a `Handle`: a file descriptor for a file on
a disk, or what reads ranges, such as a `FarFile`. Code that walks folders takes a `Path`; a folder in a store is a `Path`
that is a `FarFolder` too.
"""

from __future__ import annotations

import os
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple, Protocol, Union

if TYPE_CHECKING:
    from ckptconv.tensors.file_state import FileState


class Ranges(Protocol):
    """What reads ranges of an open file.

    Attributes:
        nbytes: the size of the file in bytes.
    """

    nbytes: int

    def read(self, start: int, nbytes: int) -> bytes:
        """Read bytes; fewer at the end of the file."""
        ...


class FarFile(ABC):
    """An object in a store, in the state in which it was listed. Threads may share it.

    Attributes:
        nbytes: its size in bytes.
        state: its state when it was listed.
        group: what lists it; files of one group are looked up together.
    """

    nbytes: int
    state: FileState
    group: FarGroup

    @property
    @abstractmethod
    def path(self) -> Path:
        """Its path, as a folder of the store lists it."""

    @abstractmethod
    def fill(self, start: int, memory: memoryview) -> int:
        """Read bytes from `start` on into `memory`; returns how many, fewer only at the end of the object.

        Raises:
            CkptconvError: the store cannot be asked, or the object is another one than the one that was listed.
        """

    @abstractmethod
    def expect(self, ranges: Sequence[tuple[int, int]]) -> None:
        """Begin to fetch ranges (start, end) of bytes that will be read soon."""

    def read(self, start: int, nbytes: int) -> bytes:
        """Read bytes; fewer at the end of the object. Raises as `fill` does."""
        memory = bytearray(max(0, min(nbytes, self.nbytes - start)))
        return bytes(memory[: self.fill(start, memoryview(memory))])


class FarGroup(ABC):
    """The objects of one listing.

    Attributes:
        budget: bytes of memory for what was fetched and not read yet.
    """

    budget: int

    @abstractmethod
    def states_now(self, files: Sequence[FarFile]) -> list[FileState | None]:
        """The present state of each file; None if it does not exist any more."""


class FarFolder(ABC):
    """A folder in a store, which is a `Path` too."""

    @abstractmethod
    def files_below(self, leave: Callable[[Path], bool]) -> Iterator[Path]:
        """All objects below the folder, without folders for which `leave` is true."""


class FolderEntry(NamedTuple):
    """What a folder holds under one name.

    Attributes:
        folder: the folder.
        name: the name.
        is_dir: True for a folder, and not for a link to one.
        is_file: True for a file, or a link to one.
    """

    folder: Path
    name: str
    is_dir: bool
    is_file: bool

    @property
    def path(self) -> Path:
        """Its path."""
        return self.folder / self.name


Handle = Union[int, Ranges]  # noqa: UP007 - it is evaluated on Python 3.10


def names_in(folder: Path) -> list[str]:
    """The names in a folder, in no order. Where a folder may hold 100,000 others, this costs least.

    Raises:
        OSError: the folder cannot be listed.
    """
    if isinstance(folder, FarFolder):
        return [path.name for path in folder.iterdir()]  # type: ignore[attr-defined]
    return os.listdir(folder)


def entries(folder: Path) -> Iterator[FolderEntry]:
    """What is in a folder, in no order.

    Raises:
        OSError: the folder cannot be listed.
    """
    if isinstance(folder, FarFolder):
        for path in folder.iterdir():  # type: ignore[attr-defined]
            is_dir = path.is_dir()
            yield FolderEntry(folder, path.name, is_dir, not is_dir)  # type: ignore[arg-type]
        return
    with os.scandir(folder) as found:
        for entry in found:
            try:
                is_file = entry.is_file()
            except OSError:  # a link to itself
                is_file = False
            yield FolderEntry(folder, entry.name, entry.is_dir(follow_symlinks=False), is_file)


def size_of(handle: Handle) -> int:
    """The size in bytes of an open file."""
    return os.fstat(handle).st_size if isinstance(handle, int) else handle.nbytes
