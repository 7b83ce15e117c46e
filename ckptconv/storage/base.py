"""`Store`: what a store can do for us. It lists, looks up and reads ranges; everything else is built on these."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple, Protocol

from ckptconv.storage.address import Address


class Object(NamedTuple):
    """An object as a store lists it.

    Attributes:
        key: its name in the bucket.
        nbytes: its size in bytes.
        changed: the time of its last change, in nanoseconds since 1970, in whole seconds.
        version: its ETag or generation; "" if the store states none.
    """

    key: str
    nbytes: int
    changed: int
    version: str

    def is_same(self, other: Object) -> bool:
        """True if two answers are of one object. Some servers list no ETag; then size and time of change decide."""
        if self.version and other.version:
            return self.version == other.version and self.nbytes == other.nbytes
        return self._replace(version="") == other._replace(version="")


class Listed(NamedTuple):
    """The content of one folder.

    Attributes:
        objects: the objects in it.
        folders: the keys of its subfolders.
    """

    objects: Sequence[Object]
    folders: Sequence[str]


class Store(Protocol):
    """A bucket, or one commit of a repository. Threads may share it. Every method raises CkptconvError for what is refused.

    Attributes:
        least: bytes that a read fetches at least, since a request takes about as long as they do; 0 to fetch exactly what
            is read.
    """

    least: int

    @property
    def address(self) -> Address:
        """The bucket's own address."""
        ...

    def below(self, key: str) -> Sequence[Object]:
        """All objects below a folder, in subfolders too."""
        ...

    def inside(self, key: str) -> Listed:
        """The objects and subfolders of a folder."""
        ...

    def look(self, key: str) -> Object | None:
        """One object; None if there is none of that name."""
        ...

    def fetch(self, item: Object, start: int, end: int) -> memoryview:
        """The bytes [start, end) of an object.

        Raises:
            CkptconvError: the object is another one than `item`, or it cannot be read.
        """
        ...
