"""The name of a place in a store as a `Path`; the `Tree` looks at what is there."""

from __future__ import annotations

import sys
from pathlib import Path, PurePosixPath
from typing import Any

from ckptconv.errors import CkptconvError, Kind
from ckptconv.storage.tree import Tree
from ckptconv.tensors.stored_file import StoredFile

_Local: type[Path] = type(Path())


class StorePath(_Local):  # type: ignore[misc, valid-type]
    """A place in a bucket: code that joins and compares names takes it for a path on a disk.

    Names, parents and comparisons are pathlib's, of the text `s3:/bucket/key`. The functions of `tensors.look` ask `storage`
    what is there. `str()` gives the address as a `StoredFile`, so that a place handed on as text is still read from the
    store. Whatever needs a real file is refused: `os.fspath`, as `open`, `os.stat` and pathlib's own methods call it.

    Args:
        tree: the listing.
        key: the name in the bucket, without slashes at its ends.

    Attributes:
        storage: the listing.
        key: the name in the bucket.
    """

    def __new__(cls, tree: Tree, key: str) -> StorePath:
        return super().__new__(cls, _text(tree, key))  # type: ignore[no-any-return]

    def __init__(self, tree: Tree, key: str) -> None:
        if sys.version_info >= (3, 12):
            super().__init__(_text(tree, key))
        self.storage, self.key = tree, key

    def __str__(self) -> str:
        far = self.storage.file(self.key) if self.storage.is_listed(self.key) else None
        return StoredFile(str(self.storage.store.address._replace(key=self.key)), far)

    def __repr__(self) -> str:
        return f"StorePath({str(self)!r})"

    def __fspath__(self) -> str:
        raise CkptconvError(
            "this needs a file on a disk, and the folder is in an object store",
            where=str(self),
            hint="copy the folder to a disk and name the copy",
            kind=Kind.UNSUPPORTED,
        )

    def __reduce__(self) -> tuple[Any, ...]:
        return _again, (str(self.storage.store.address._replace(key=self.key)),)

    def _at(self, key: str) -> StorePath:
        return StorePath(self.storage, key)

    def __truediv__(self, name: Any) -> StorePath:
        parts = [part for part in str(name).split("/") if part not in ("", ".")]
        return self._at("/".join([*filter(None, [self.key]), *parts]))

    def joinpath(self, *names: Any) -> StorePath:
        """The path below this one."""
        found = self
        for name in names:
            found = found / name
        return found

    @property
    def parent(self) -> StorePath:
        """The folder that holds it; a bucket's is the bucket."""
        return self._at(self.key.rpartition("/")[0])

    @property
    def parents(self) -> tuple[StorePath, ...]:  # type: ignore[override]
        """All folders above, the nearest first."""
        names = self.key.split("/") if self.key else []
        return tuple(self._at("/".join(names[:number])) for number in range(len(names) - 1, -1, -1))

    def with_name(self, name: str) -> StorePath:
        """The path next to this one."""
        return self.parent / name

    def with_suffix(self, suffix: str) -> StorePath:
        """The path with another suffix."""
        return self.parent / PurePosixPath(self.name).with_suffix(suffix).name

    def relative_to(self, other: Any, *more: Any, **options: Any) -> Path:  # type: ignore[override]
        """The part below another path, as a path without a place."""
        return Path(PurePosixPath(*self.parts).relative_to(PurePosixPath(*other.parts)))

    def is_relative_to(self, other: Any, *more: Any) -> bool:  # type: ignore[override]
        """True for the other path, and below it."""
        return other == self or other in self.parents

    def with_segments(self, *parts: Any) -> Path:
        """A path without a place, as Python's pathlib makes them from 3.12 on for patterns and comparisons."""
        return Path(*(PurePosixPath(*part.parts) if isinstance(part, StorePath) else part for part in parts))

    def absolute(self) -> StorePath:
        """Itself."""
        return self

    def expanduser(self) -> StorePath:
        """Itself."""
        return self

    def is_absolute(self) -> bool:
        """True: an address does not depend on the working folder."""
        return True


def _text(tree: Tree, key: str) -> str:
    address = tree.store.address
    return f"{address.scheme}:/{address.bucket}" + (f"/{key}" if key else "")


def _again(address: str) -> Path:
    """The same place for another process, which lists it anew."""
    from ckptconv.storage.open import located

    return located(address)
