"""Fixtures as archives: small files of a checkpoint are mostly headers, and pack six-fold. The same folder, the same bytes.

python tests/make/pack.py FOLDER... TO     # TO/<name>.tar.xz of each
"""

from __future__ import annotations

import lzma
import os
import sys
import tarfile
from pathlib import Path


def pack(folder: Path, to: Path) -> Path:
    """The folder as `to/<its name>.tar.xz`, without owners and times."""
    to.mkdir(parents=True, exist_ok=True)
    archive = to / f"{folder.name}.tar.xz"
    building = archive.with_suffix(f".{os.getpid()}")
    with lzma.open(building, "wb", preset=9) as file, tarfile.open(fileobj=file, mode="w") as tar:
        for path in [folder, *sorted(folder.rglob("*"))]:
            entry = tar.gettarinfo(str(path), str(Path(folder.name) / path.relative_to(folder)))
            entry.uid = entry.gid = 0
            entry.uname = entry.gname = ""
            entry.mtime, entry.mode = 0, 0o755 if path.is_dir() else 0o644
            if path.is_file():
                with path.open("rb") as data:
                    tar.addfile(entry, data)
            else:
                tar.addfile(entry)
    building.rename(archive)
    return archive


def unpack(archive: Path, to: Path) -> Path:
    """The folder that an archive holds, under `to`."""
    with tarfile.open(archive) as tar:
        tar.extractall(to, filter="data")
    return to / archive.name.removesuffix(".tar.xz")


def main() -> None:
    *folders, to = map(Path, sys.argv[1:])
    for folder in folders:
        print(pack(folder, to))


if __name__ == "__main__":
    main()
