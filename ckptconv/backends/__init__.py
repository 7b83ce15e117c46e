"""A trainer's folder -> `Checkpoint`: one package per format; `open_checkpoint` finds the one that reads a folder."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from ckptconv.backends.base import Backend, backends
from ckptconv.backends.locate import locate
from ckptconv.backends.meant import meant
from ckptconv.backends.refused import nothing, with_whole_step
from ckptconv.backends.roots import one_model
from ckptconv.backends.runs import Place, is_output, is_step, run_of, steps_of
from ckptconv.errors import CkptconvError, Kind
from ckptconv.storage import located
from ckptconv.tensors.checkpoint import Checkpoint
from ckptconv.tensors.file_state import stamps_under
from ckptconv.tensors.look import exists, is_dir, resolved
from ckptconv.tensors.source_spec import Step, Where, as_path, spec_of
from ckptconv.tensors.storage import FileState


def open_checkpoint(
    source: Where,
    *,
    backend: str | None = None,
    step: Step | None = None,
    also: Sequence[str | Path] = (),
    elements: bool = True,
) -> Checkpoint:
    """Open a checkpoint; only metadata is read.

    Args:
        source: the folder of a run, a step or a role; one file of weights; or a SourceSpec.
        backend: see `SourceSpec`.
        step: see `SourceSpec`.
        also: see `SourceSpec`.
        elements: False if none will be read, which spares some reads; a read of elements may be refused then.

    Returns:
        The checkpoint: its tensors as views, and what was left out.

    Raises:
        Incomplete: a file of the checkpoint is missing.
        CkptconvError: no backend reads the folder, several models in it are equally likely, or its files are wrong.
    """
    spec = spec_of(source, backend, step, also)
    return _open(spec.path, spec.backend, spec.step, spec.also, elements)


def _open(
    root: Path, backend: str | None, step: Step | None, also: Sequence[Path], elements: bool
) -> Checkpoint:
    """Find the backend and the folder, and read it. Errors without a kind of their own are DAMAGED."""
    known = backends(backend)
    root, also = located(root), tuple(map(located, also))
    if not exists(root):
        raise CkptconvError("no such folder", where=root, hint=meant(root), kind=Kind.NOT_A_CHECKPOINT)
    if not is_dir(root):
        from ckptconv.backends.huggingface.read import read_file

        return one_model(read_file(root))
    found = locate(root, known, step)
    if found is None:
        raise nothing(root, known, backend, step)
    reader, place = found[0], found[1]._replace(elements=elements)
    others = _others(also, reader, place)
    before = stamps_under([place.folder, *others], leave=_is_other)
    try:
        return one_model(replace(reader.read(place, others), stamps=before))
    except CkptconvError as error:
        whole = with_whole_step(
            error.within(kind=Kind.DAMAGED),
            root,
            step,
            lambda folder: _open(folder, backend, None, (), elements),
        )
        raise whole from error
    except OSError as error:
        raise CkptconvError(
            f"cannot be read: {error.strerror or error}",
            where=error.filename or place.folder,
            kind=Kind.ENVIRONMENT,
        ) from error


def state_of(path: Path, backend: str | None = None) -> dict[str, FileState]:
    """The state of every file that `open_checkpoint` would read; {} if it would find no checkpoint.

    Args:
        path: the folder of a run, a step or a role.
        backend: see `SourceSpec`.

    Returns:
        File -> its size, time of change and inode.
    """
    found = locate(path, backends(backend))
    return stamps_under([found[1].folder], leave=_is_other) if found else {}


def _others(folders: Sequence[str | Path], backend: Backend, first: Place) -> list[Path]:
    """The further folders, each once and without the first; see `_other`."""
    found = {resolved(folder): folder for folder in (_other(each, backend, first) for each in folders)}
    found.pop(resolved(first.folder), None)
    return list(found.values())


def _other(folder: str | Path, backend: Backend, first: Place) -> Path:
    """The folder with the same step and role on another disk.

    Args:
        folder: what the user named with --also.
        backend: the backend that reads the first folder.
        first: the first folder, with its step and role.

    Raises:
        CkptconvError: the folder has no files of that backend, or only another step.
    """
    root = as_path(folder)
    if not is_dir(root):
        raise CkptconvError(
            "no such folder",
            where=root,
            hint="--also names a folder with rank files",
            kind=Kind.NOT_A_CHECKPOINT,
        )
    if not backend.is_mine(root) and (steps := steps_of(run_of(root))):
        if first.step not in steps:
            raise _another_step(root, first.step)
        root = steps[first.step]
    if first.role and is_dir(root / first.role):
        root = root / first.role
    found = locate(root, [backend])
    if found is None:
        raise CkptconvError(
            "no files of this checkpoint in the folder",
            where=root,
            hint="--also names a folder with rank files",
            kind=Kind.NOT_A_CHECKPOINT,
        )
    place = found[1]
    if place.step is not None and place.step != first.step:
        raise _another_step(root, first.step)
    return place.folder


def _another_step(root: Path, step: int | None) -> CkptconvError:
    """The error for a folder of --also that holds another step."""
    return CkptconvError(
        f"step {step} is not in this folder",
        where=root,
        hint="--also names the same step on another disk",
        kind=Kind.USAGE,
    )


def _is_other(folder: Path) -> bool:
    """True for a folder inside a checkpoint's folder that is not part of it: another step, or the output of a merge."""
    return is_step(folder) or is_output(folder)
