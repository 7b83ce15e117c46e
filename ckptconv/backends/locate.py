"""Finds the folder of a run that is read, and the backend that reads it."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from ckptconv.backends.base import Backend
from ckptconv.backends.registry import step_named
from ckptconv.backends.runs import (
    Place,
    choose,
    is_output,
    is_role,
    run_of,
    several,
    step_folders,
    step_of,
)
from ckptconv.backends.runs import rank_of as role_rank
from ckptconv.errors import CkptconvError, Kind
from ckptconv.tensors.look import entries, is_dir, names_in
from ckptconv.tensors.source_spec import Step

Located = tuple[Backend, Place]


def locate(path: Path, backends: Sequence[Backend], step: Step | None = None) -> Located | None:
    """Find the folder to read, and the backend that reads it.

    A folder's own model is preferred to those in its subfolders: if no step is wanted, a run's final model is read, and not
    its latest step. Of several roles in a step, the trained model is read (`conventions.Rank`).

    Args:
        path: the folder of a run, a step or a role.
        backends: the backends, in the order in which a folder is offered to them.
        step: the wanted step; None to choose.

    Returns:
        The backend and the folder; None if no backend reads a folder here.

    Raises:
        CkptconvError: the wanted step, or the one that the run's mark names, does not exist; or several models are equally
            likely to be meant.
    """
    own = step_of(path) or step_of(path.parent)
    number = own.number if own else None
    here = _claim(path, backends)
    run = path if own or here else run_of(path)
    steps = step_folders(run)
    is_other = step is not None and step not in ("latest", number)
    if not steps and not here and not own and (found := _role_above(path, backends, step)):
        return found
    if not steps and is_other:
        hint = "remove --step" if here else "name the run's folder"
        raise CkptconvError(f"step {step} is not in this folder", where=path, hint=hint, kind=Kind.USAGE)
    if not steps and step == "latest":
        hint = "omit --step, or name the run's folder"
        raise CkptconvError("no steps in this folder", where=path, hint=hint, kind=Kind.USAGE)
    if here and not (steps and (is_other or step == "latest")):
        below = {s.number for s in steps if s.number is not None and _claim(s.path, backends)}
        role = path.name if is_role(path.name) else None
        return here, Place(path, number, role, steps=tuple(sorted(below)))
    if not steps:
        return _role_in(path, backends, number)
    chosen, remarks = choose(run, step)
    backend, folder = _claim(chosen.path, backends), chosen.path
    if backend is None and step_folders(
        folder
    ):  # transformers' checkpoint-N/ holds DeepSpeed's global_stepN/ and its mark
        inner, more = choose(folder, None)
        folder, remarks = inner.path, (*remarks, *more)
        backend = _claim(folder, backends)
    if backend:
        return backend, Place(folder, chosen.number, None, remarks=remarks)
    return _role_in(folder, backends, chosen.number, remarks) if is_dir(folder) else None


def _role_above(path: Path, backends: Sequence[Backend], step: Step | None) -> Located | None:
    """The trained model in a run whose role folders hold the steps, or one model: RUN/ROLE/STEP/, RUN/ROLE/NAME/.

    Sources: OpenRLHF, openrlhf/trainer/ppo_trainer.py; AReaL, areal/utils/saver.py (`recover_checkpoint`).
    """

    def holds(role: Path) -> bool:
        return bool(step_folders(role)) or (
            not _claim(role, backends) and bool(_role_in(role, backends, None))
        )

    roles = [p for p in map(path.joinpath, filter(is_role, names_in(path))) if is_dir(p) and holds(p)]
    if not roles:
        return None
    first, *others = sorted(roles, key=lambda role: (role_rank(role.name), role.name))
    equal = [role for role in others if role_rank(role.name) == role_rank(first.name)]
    if equal:
        raise several("models", [first, *equal], path)
    found = locate(first, backends, step)
    if found is None:
        return None
    backend, place = found
    names = tuple(role.name for role in others)
    role = place.role if place.role and is_role(place.role) else first.name
    return backend, place._replace(role=role, others=(*place.others, *names))


def _claim(folder: Path, backends: Sequence[Backend]) -> Backend | None:
    """The first backend that reads files of this folder itself, or None."""
    if not is_dir(folder):  # a step in one file, which only the backend of whole models reads
        backends = [backend for backend in backends if not backend.IS_SHARDED]
    return next((backend for backend in backends if backend.is_mine(folder)), None)


def _role_in(
    step: Path, backends: Sequence[Backend], number: int | None, remarks: tuple[str, ...] = ()
) -> Located | None:
    """The trained model among a step's subfolders; of several of the same `Rank`, shards are preferred to whole models."""
    names = sorted(e.name for e in entries(step) if not (e.is_regular or e.name.startswith(".")))
    folders = [path for path in map(step.joinpath, names) if is_dir(path)]
    folders = [path for path in folders if is_role(path.name) or not is_output(path)] or folders
    claimed = [(path, backend) for path in folders if (backend := _claim(path, backends))]
    if not claimed:
        return None

    def order(found: tuple[Path, Backend]) -> tuple[int, bool]:
        path, backend = found
        return role_rank(path.name), not backend.IS_SHARDED

    (role, backend), *others = sorted(claimed, key=order)
    equal = [path for path, other in others if order((path, other)) == order((role, backend))]
    if equal:
        raise several("models", [role, *equal], step)
    name = None if step_named(role.name) else role.name  # verl's torchtitan engine: global_step_N/step-N/
    return backend, Place(role, number, name, tuple(path.name for path, _ in others), remarks=remarks)
