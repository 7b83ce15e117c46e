"""The `Backend` protocol: a module that recognises a trainer's folder, reads it, and tells who saved it.

docs/adding-a-backend.md shows a complete backend. `registry.LAYOUTS` lists the modules.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from importlib import import_module
from pathlib import Path
from typing import NamedTuple, Protocol, cast

from ckptconv.backends.registry import LAYOUTS, NAMES
from ckptconv.backends.runs import Place
from ckptconv.errors import CkptconvError, Kind
from ckptconv.tensors.checkpoint import Checkpoint


class Fact(NamedTuple):
    """A fact about who saved a checkpoint.

    Args:
        what: what it is about, such as "torch" or "trainer".
        value: the fact, such as "2.6".
        file: the file that states it.
    """

    what: str
    value: str
    file: str


class Read(Protocol):
    """The type of `Backend.read`."""

    def __call__(self, place: Place, also: Sequence[Path] = ()) -> Checkpoint: ...


class SavedBy(Protocol):
    """The type of `Backend.saved_by`."""

    def __call__(self, checkpoint: Checkpoint) -> Iterable[Fact]: ...


class Backend(Protocol):
    """A module of a backend's package."""

    NAME: str
    """The layout's name, which becomes `Checkpoint.backend`."""
    SIGN: str
    """The files that it looks for, for an error message: "model_world_size_W_rank_R.pt (verl FSDP)"."""
    IS_SHARDED: bool
    """False for whole models. If a step has both, shards are preferred."""

    def is_mine(self, folder: Path) -> bool:
        """True for a folder that holds this layout, complete or not, itself or in a subfolder that its trainers use."""
        ...

    def read(self, place: Place, also: Sequence[Path] = ()) -> Checkpoint:
        """Read the metadata of every file, and no weights.

        Args:
            place: the folder for which `is_mine` is true, with its step and role.
            also: further folders with rank files of the same checkpoint, from other nodes' disks.

        Returns:
            The checkpoint.

        Raises:
            Incomplete: a file is missing.
            CkptconvError: the files contradict each other or break their format.
        """
        ...

    def saved_by(self, checkpoint: Checkpoint) -> Iterable[Fact]:
        """Facts about the trainer from files next to the weights, the nearest file first. It never raises."""
        ...


def backends(name: str | None = None) -> tuple[Backend, ...]:
    """The backends in the order in which a folder is offered to them.

    Args:
        name: a package ("megatron"), or one layout of a package ("megatron_fsdp", as in `Checkpoint.backend`); None for all.

    Raises:
        CkptconvError: there is no backend of that name.
    """
    loaded = {layout: _load(*layout) for layout in LAYOUTS}
    if name is None:
        return tuple(loaded.values())
    package = tuple(backend for (package, _), backend in loaded.items() if package == name)
    layouts = {backend.NAME: backend for backend in loaded.values()}
    found = package or ((layouts[name],) if name in layouts else ())
    if not found:
        raise CkptconvError(f"unknown backend {name!r}", wanted=", ".join(NAMES), kind=Kind.USAGE)
    return found


def backend_of(checkpoint: Checkpoint) -> Backend:
    """The backend that read a checkpoint."""
    return next(backend for backend in backends() if checkpoint.backend == backend.NAME)


def imported_later(module: str) -> tuple[Read, SavedBy]:
    """The `read` and `saved_by` of a module that is imported when a folder of its layout is opened.

    Every folder is offered to all backends, and to import all of their readers takes longer than to read a small checkpoint.

    Args:
        module: the module, below `ckptconv.backends`.
    """

    def read(place: Place, also: Sequence[Path] = ()) -> Checkpoint:
        return cast(Backend, import_module(f"ckptconv.backends.{module}")).read(place, also)

    def saved_by(checkpoint: Checkpoint) -> Iterable[Fact]:
        return cast(Backend, import_module(f"ckptconv.backends.{module}")).saved_by(checkpoint)

    return read, saved_by


def unknown_writer(checkpoint: Checkpoint) -> tuple[Fact, ...]:
    """The `saved_by` of a layout whose files do not say who saved them."""
    return ()


def _load(package: str, module: str) -> Backend:
    return cast(Backend, import_module(f"ckptconv.backends.{package}.{module}"))
