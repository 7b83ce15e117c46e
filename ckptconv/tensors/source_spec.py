"""Where a checkpoint is, and how it is to be read: one record through open, inspect, merge and verify."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import Literal

from ckptconv.errors import CkptconvError, Kind

Step = int | Literal["latest"]


@dataclass(frozen=True, slots=True)
class SourceSpec:
    """Where a checkpoint is.

    Args:
        path: a folder (run, step, role or model), a file of weights, or a repository on the Hub: "org/name",
            "org/name@revision", "hf://org/name". A path that exists wins over a repository of that name.
        backend: the checkpoint's format, such as "fsdp"; detected when omitted.
        step: of a run; "latest" for the one that the run marks as its latest, else its highest. When omitted, the
            model in the run's own folder comes first, then the latest step.
        also: more folders of the same checkpoint, for rank files that are on several disks.
        revision: a branch, tag or commit of a repository.

    Raises:
        CkptconvError: for a step that is not a number, and a single path in place of a list.

    Example:
        >>> spec = SourceSpec("checkpoints/run", step="latest")
        >>> ckptconv.inspect(spec).step
        400
    """

    path: Path
    backend: str | None = None
    step: Step | None = None
    also: tuple[Path, ...] = ()
    revision: str | None = None

    def __init__(
        self,
        path: str | Path,
        backend: str | None = None,
        step: Step | None = None,
        also: Sequence[str | Path] = (),
        revision: str | None = None,
    ) -> None:
        if not isinstance(path, str | Path):
            raise _wrong("path", path, "a folder or a repository")
        if isinstance(also, str | Path):
            raise _wrong("also", also, "a list of folders")
        if step is not None and step != "latest" and (not isinstance(step, int) or isinstance(step, bool)):
            raise _wrong("step", step, "a number, or latest")
        values = (Path(path), backend, step, tuple(map(Path, also)), revision)
        for field, value in zip(fields(SourceSpec), values, strict=True):
            object.__setattr__(self, field.name, value)

    def at(self, path: Path) -> SourceSpec:
        """The same in a folder: where a repository was downloaded to, for example."""
        return replace(self, path=path, revision=None)


Where = str | Path | SourceSpec  # what the public functions take


def spec_of(
    source: Where,
    backend: str | None = None,
    step: Step | None = None,
    also: Sequence[str | Path] = (),
    revision: str | None = None,
) -> SourceSpec:
    """The record for a path and keywords. Raises CkptconvError where a record is given together with keywords."""
    if not isinstance(source, SourceSpec):
        return SourceSpec(source, backend, step, also, revision)
    given = {"backend": backend, "step": step, "also": also or None, "revision": revision}
    names = [name for name, value in given.items() if value is not None]
    if names:
        raise CkptconvError(
            f"a SourceSpec is given, and {', '.join(names)} beside it",
            hint="put them into the SourceSpec",
            kind=Kind.USAGE,
        )
    return source


def _wrong(name: str, value: object, wanted: str) -> CkptconvError:
    return CkptconvError(f"{name} does not accept {value!r}", wanted=wanted, kind=Kind.USAGE)
