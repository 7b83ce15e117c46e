"""What a target of fuzzing is: a reader of bytes, of one file, or of a folder in which one file is another."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Sequence
from pathlib import Path
from random import Random
from typing import Any, NamedTuple

from .mutate import Mutate


class Input(NamedTuple):
    """label: of which target and file. call: reads it."""

    label: str
    data: bytes
    call: Callable[[], object]


class Target:
    """One reader. share: how many of all inputs are its own, in parts of the sum."""

    name = ""
    share = 1.0

    def make(self, random: Random) -> Input:
        raise NotImplementedError


class Bytes(Target):
    """A reader of bytes, or of one file that is written anew for each input."""

    def __init__(
        self,
        name: str,
        share: float,
        seeds: Sequence[bytes],
        how: Mutate,
        read: Callable[[Any], object],
        file: Path | None,
    ) -> None:
        self.name, self.share = name, share
        self.seeds, self._how, self._read, self._file = list(seeds), how, read, file
        self._weights = [1 / (200 + len(seed)) for seed in seeds]  # small ones cost less, and break as well
        if file is not None:
            file.parent.mkdir(parents=True, exist_ok=True)

    def make(self, random: Random) -> Input:
        return self.of(self._how(random.choices(self.seeds, self._weights)[0], random))

    def of(self, data: bytes) -> Input:
        """The input of just these bytes."""
        if self._file is None:
            return Input(self.name, data, lambda: self._read(data))
        self._file.write_bytes(data)
        return Input(self.name, data, lambda: self._read(self._file))


class Folder(Target):
    """A checkpoint; in each input one of its files is another."""

    def __init__(
        self,
        name: str,
        share: float,
        source: Path,
        home: Path,
        files: dict[str, Mutate],
        read: Callable[[Path], object],
    ) -> None:
        self.name, self.share, self._home, self._read = name, share, home, read
        shutil.copytree(source, home)
        found = [(path, how) for pattern, how in files.items() for path in sorted(home.glob(pattern))]
        assert found, f"{name}: nothing like {list(files)}"
        self._files = [(path, how, path.read_bytes()) for path, how in found]
        self._changed: tuple[Path, bytes] | None = None

    def make(self, random: Random) -> Input:
        if self._changed:
            self._changed[0].write_bytes(self._changed[1])
        path, how, data = random.choice(self._files)
        self._changed = path, data
        changed = how(data, random)
        path.write_bytes(changed)
        return Input(f"{self.name}/{path.name}", changed, lambda: self._read(self._home))
