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
        path: a folder (run, step, role or model), a file of weights, either of them in an object store
            ("s3://bucket/run", "gs://…", "az://…", "hf://buckets/…"), or a repository on the Hub: "org/name",
            "org/name@revision", "hf://org/name". A path that exists wins over a repository of that name.
        backend: the checkpoint's format, such as "fsdp"; detected when omitted.
        step: the step of a run; "latest" takes the step that the run marks as its latest, or the highest if none is
            marked. When omitted, the model in the run's own folder comes first, then the latest step.
        also: more folders of the same checkpoint, if its rank files are on several disks.
        revision: a branch, tag or commit of a repository.

    Raises:
        CkptconvError: `step` is not a number, or `also` is a single path and not a list.

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
        values = (as_path(path), backend, step, tuple(map(as_path, also)), revision)
        for field, value in zip(fields(SourceSpec), values, strict=True):
            object.__setattr__(self, field.name, value)

    def at(self, path: Path) -> SourceSpec:
        """The same record with another path, such as the folder to which a repository was downloaded."""
        return replace(self, path=path, revision=None)


def as_path(path: str | Path) -> Path:
    """A path; one in an object store stays what it is, which `Path(path)` would not keep."""
    return path if isinstance(path, Path) else Path(path)


Where = str | Path | SourceSpec  # the type of a source in the public functions


def spec_of(
    source: Where,
    backend: str | None = None,
    step: Step | None = None,
    also: Sequence[str | Path] = (),
    revision: str | None = None,
) -> SourceSpec:
    """The record for a source and keywords.

    Args:
        source: a path, or a SourceSpec, which is returned as it is.
        backend: see `SourceSpec`, as for the other keywords.

    Raises:
        CkptconvError: a SourceSpec is given together with keywords, or a value is not valid.
    """
    if not isinstance(source, SourceSpec):
        return SourceSpec(source, backend, step, also, revision)
    given = {"backend": backend, "step": step, "also": also or None, "revision": revision}
    names = [name for name, value in given.items() if value is not None]
    if names:
        raise CkptconvError(
            f"a SourceSpec is given together with {', '.join(names)}",
            hint="put them into the SourceSpec",
            kind=Kind.USAGE,
        )
    return source


def _wrong(name: str, value: object, wanted: str) -> CkptconvError:
    return CkptconvError(f"{name} does not accept {value!r}", wanted=wanted, kind=Kind.USAGE)
