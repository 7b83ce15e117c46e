"""A folder or object of a store as a `Path`, with the methods of pathlib that read; its listing is kept by a `Tree`."""

from __future__ import annotations

import io
import os
import stat
import sys
from collections.abc import Callable, Iterator
from fnmatch import fnmatchcase
from pathlib import Path, PurePosixPath
from typing import IO, Any

from ckptconv.errors import CkptconvError, Kind
from ckptconv.storage.tree import Tree
from ckptconv.tensors.storage import FarFile
from ckptconv.tensors.stored_file import StoredFile

_Local: type[Path] = type(Path())
_BUFFER = 64 << 10  # bytes


class StorePath(_Local):  # type: ignore[misc, valid-type]
    """A place in a bucket: code that reads folders takes it for a path on a disk.

    Names, parents and comparisons are pathlib's, of the text `s3:/bucket/key`. What looks at the content asks the listing.
    `str()` gives the address as a `StoredFile`, so that a place handed on as text is still read from the store. Whatever
    needs a real file (`os.fspath`, as `open` and `os.stat` call it) is refused.

    Args:
        tree: the listing.
        key: the name in the bucket, without slashes at its ends.
    """

    def __new__(cls, tree: Tree, key: str) -> StorePath:
        return super().__new__(cls, _text(tree, key))  # type: ignore[no-any-return]

    def __init__(self, tree: Tree, key: str) -> None:
        if sys.version_info >= (3, 12):
            super().__init__(_text(tree, key))
        self.storage, self.key = tree, key

    def __str__(self) -> str:
        far = self._far() if self.storage.is_listed(self.key) else None
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

    def _far(self) -> FarFile | None:
        """The object; None for a folder, and for a name that does not exist."""
        return self.storage.file(self.key)

    # names

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

    def resolve(self, strict: bool = False) -> StorePath:
        """Itself: a store has no links."""
        return self

    def absolute(self) -> StorePath:
        """Itself."""
        return self

    def expanduser(self) -> StorePath:
        """Itself."""
        return self

    def is_absolute(self) -> bool:
        """True: an address does not depend on the working folder."""
        return True

    # content

    def exists(self, **_: Any) -> bool:
        """True for an object, and for a folder with objects below it."""
        return self.is_file() or self.is_dir()

    def is_file(self, **_: Any) -> bool:
        """True for an object."""
        return bool(self.key) and self.storage.find(self.key) is not None

    def is_dir(self, **_: Any) -> bool:
        """True if objects are below this name."""
        return self.storage.is_folder(self.key)

    def is_symlink(self) -> bool:
        """False: a store has no links."""
        return False

    def iterdir(self) -> Iterator[StorePath]:  # type: ignore[override]
        """Objects and folders in it.

        Raises:
            FileNotFoundError: there is no such folder.
        """
        found = self.storage.children(self.key)
        if not found:
            raise FileNotFoundError(2, os.strerror(2), str(self))
        return iter([self / name for name in sorted(found)])

    def glob(self, pattern: str, **options: Any) -> Iterator[StorePath]:  # type: ignore[override]
        """What is below and has such a name; each part of the pattern is matched with one name, and `**` is not known."""
        first, _, rest = pattern.partition("/")
        for name in sorted(self.storage.children(self.key)):
            if fnmatchcase(name, first):
                yield from (self / name).glob(rest) if rest else [self / name]

    def rglob(self, pattern: str, **options: Any) -> Iterator[StorePath]:  # type: ignore[override]
        """What is below, at any depth, and has such a name."""
        for name, item in sorted(self.storage.children(self.key).items()):
            if fnmatchcase(name, pattern):
                yield self / name
            if item is None:
                yield from (self / name).rglob(pattern)

    def files_below(self, leave: Callable[[Path], bool]) -> Iterator[Path]:
        """See `Storage`."""
        for name, item in sorted(self.storage.children(self.key).items()):
            path = self / name
            if item is not None:
                yield path
            elif not leave(path):
                yield from path.files_below(leave)

    def stat(self, **options: Any) -> os.stat_result:
        """Size and time of change of an object.

        Raises:
            FileNotFoundError: there is no such object.
        """
        item = self.storage.find(self.key)
        if item is None and not self.is_dir():
            raise FileNotFoundError(2, os.strerror(2), str(self))
        mode = stat.S_IFDIR if item is None else stat.S_IFREG
        size, when = (0, 0) if item is None else (item.nbytes, item.changed // 10**9)
        return os.stat_result((mode, 0, 0, 1, 0, 0, size, when, when, when))

    def lstat(self) -> os.stat_result:
        """As `stat`."""
        return self.stat()

    def samefile(self, other: Any) -> bool:
        """True for the same address."""
        return str(self) == str(other)

    def read_bytes(self) -> bytes:
        """The whole object.

        Raises:
            FileNotFoundError: there is no such object.
            CkptconvError: the store cannot be asked.
        """
        far = self._far()
        if far is None:
            raise FileNotFoundError(2, os.strerror(2), str(self))
        return far.read(0, far.nbytes)

    def read_text(self, encoding: str | None = None, errors: str | None = None, **_: Any) -> str:
        """The whole object as text; raises as `read_bytes` does."""
        return self.read_bytes().decode(encoding or "utf-8", errors or "strict")

    def open(self, mode: str = "r", *_: Any, **options: Any) -> IO[Any]:  # type: ignore[override]
        """The object for reading; raises as `read_bytes` does."""
        if "b" not in mode:
            return io.StringIO(self.read_text(options.get("encoding"), options.get("errors")))
        far = self._far()
        if far is None:
            raise FileNotFoundError(2, os.strerror(2), str(self))
        return io.BufferedReader(_Raw(far), _BUFFER)


class _Raw(io.RawIOBase):
    """An object for Python's buffered reader."""

    def __init__(self, far: FarFile) -> None:
        self._far, self._at = far, 0

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def seek(self, offset: int, whence: int = os.SEEK_SET) -> int:
        self._at = offset + {os.SEEK_SET: 0, os.SEEK_CUR: self._at, os.SEEK_END: self._far.nbytes}[whence]
        return self._at

    def tell(self) -> int:
        return self._at

    def readinto(self, memory: Any) -> int:
        got = self._far.fill(self._at, memoryview(memory).cast("B"))
        self._at += got
        return got


def _text(tree: Tree, key: str) -> str:
    address = tree.store.address
    return f"{address.scheme}:/{address.bucket}" + (f"/{key}" if key else "")


def _again(address: str) -> Path:
    """The same place for another process, which lists it anew."""
    from ckptconv.storage.open import located

    return located(address)
