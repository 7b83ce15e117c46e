"""The path of a file that holds tensors, with where it is read from and what is checked once bytes of it are read."""

from __future__ import annotations

from pathlib import Path
from typing import TypeVar

from ckptconv.tensors.storage import FarFile, Ranges

S = TypeVar("S", bound="StoredFile")


class StoredFile(str):
    """A path of a file in a store, or one that a format's reader refines where a plan computes what it does not read.

    It compares, hashes and prints as the plain path. `Chunk.file` holds it, so that whoever reads the elements reads them
    from the right place and checks the computation first (`read.files.Files` does), however the chunk got there.

    Attributes:
        far: the object in a store; None for a file on a disk.
    """

    __slots__ = ("far",)
    far: FarFile | None

    def __new__(cls: type[S], path: str, far: FarFile | None = None) -> S:
        self = str.__new__(cls, path)
        self.far = far_of(path) if far is None else far
        return self

    def __str__(self) -> str:
        return str.__str__(self) if self.far is None else self

    def check(self, handle: Ranges, start: int) -> None:
        """Check that the bytes at `start` are those of the tensor for which they were computed.

        Args:
            handle: the open file.
            start: a byte in the file that is about to be read.

        Raises:
            CkptconvError: the file has something else there, or cannot be read.
        """


def far_of(file: str | Path) -> FarFile | None:
    """The object in a store that a path names, or None for a path on a disk."""
    text = str(file)  # of a place in a store it is a StoredFile
    return text.far if isinstance(text, StoredFile) else None


def path_of(file: str) -> Path:
    """The path of a file, which is one in a store if the file is."""
    far = far_of(file)
    return Path(file) if far is None else far.path
