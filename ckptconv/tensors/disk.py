"""Every mounted file system, as `Storage`. No other module asks the system about the content of an input."""

from __future__ import annotations

import os
import stat
from collections.abc import Callable, Iterator
from pathlib import Path

from ckptconv.errors import CkptconvError, Kind
from ckptconv.tensors.storage import Entry, FileState, OpenFile, Storage


class DiskFile(OpenFile):
    """A file of a disk that is open for reading.

    Args:
        path: its path, for messages.
        descriptor: its file descriptor, which `close` closes.
    """

    def __init__(self, path: str, descriptor: int) -> None:
        self.path, self.descriptor = path, descriptor
        self._stat: os.stat_result | None = None

    def _facts(self) -> os.stat_result:
        if self._stat is None:
            self._stat = os.fstat(self.descriptor)
        return self._stat

    @property
    def nbytes(self) -> int:  # type: ignore[override]
        """See `OpenFile`: the size at the first look."""
        return self._facts().st_size

    @property
    def is_regular(self) -> bool:  # type: ignore[override]
        """See `OpenFile`."""
        return stat.S_ISREG(self._facts().st_mode)

    def read(self, start: int, nbytes: int) -> bytes:
        """See `OpenFile`. One pread may return fewer bytes, so it is repeated."""
        data = b""
        try:
            while len(data) < nbytes:
                more = os.pread(self.descriptor, nbytes - len(data), start + len(data))
                if not more:
                    break
                data = data + more if data else more
        except OSError as error:
            raise self._unreadable(error) from error
        return data

    def fill(self, start: int, memory: memoryview) -> int:
        """See `OpenFile`. One preadv may read fewer bytes, so it is repeated."""
        want, got = len(memory), 0
        try:
            while got < want:
                n = os.preadv(self.descriptor, [memory[got:] if got else memory], start + got)
                if not n:
                    break
                got += n
        except OSError as error:
            raise self._unreadable(error) from error
        return got

    def drop(self, start: int, nbytes: int) -> None:
        """See `OpenFile`: the kernel drops whole pages."""
        if hasattr(os, "posix_fadvise"):
            os.posix_fadvise(self.descriptor, start, nbytes, os.POSIX_FADV_DONTNEED)

    def close(self) -> None:
        """Close the file."""
        os.close(self.descriptor)

    def _unreadable(self, error: OSError) -> CkptconvError:
        return CkptconvError(
            f"cannot be read: {error.strerror or error}", where=self.path, kind=Kind.ENVIRONMENT
        )


class Disk(Storage):
    """The file systems of this machine."""

    def names(self, folder: Path) -> list[str]:
        """See `Storage`."""
        return os.listdir(folder)

    def entries(self, folder: Path) -> Iterator[Entry]:
        """See `Storage`."""
        with os.scandir(folder) as found:
            for entry in found:
                try:
                    is_regular = entry.is_file()
                except OSError:  # a link to itself
                    is_regular = False
                yield Entry(folder, entry.name, entry.is_dir(follow_symlinks=False), is_regular)

    def files_below(self, folder: Path, leave: Callable[[Path], bool]) -> Iterator[str]:
        """See `Storage`."""
        for parent, below, names in os.walk(folder):
            below[:] = [name for name in below if not leave(Path(parent, name))]
            yield from (os.path.join(parent, name) for name in names)

    def is_file(self, path: Path) -> bool:
        """See `Storage`."""
        return path.is_file()

    def is_dir(self, path: Path) -> bool:
        """See `Storage`."""
        return path.is_dir()

    def exists(self, path: Path) -> bool:
        """See `Storage`."""
        return path.exists()

    def state(self, path: str | Path) -> FileState:
        """See `Storage`."""
        found = os.stat(path)
        on_disk = os.major(found.st_dev) != 0  # network and FUSE file systems have no block device
        return FileState(found.st_size, found.st_mtime_ns, found.st_ino if on_disk else 0)

    def open(self, path: str | Path) -> DiskFile:
        """See `Storage`."""
        return DiskFile(str(path), os.open(path, os.O_RDONLY | os.O_NONBLOCK))

    def link_to(self, path: Path) -> Path | None:
        """See `Storage`."""
        return path.readlink() if path.is_symlink() else None

    def resolved(self, path: Path) -> Path:
        """See `Storage`."""
        return path.resolve()

    def are_same(self, one: Path, other: Path) -> bool:
        """See `Storage`."""
        return one.samefile(other)


DISK = Disk()
