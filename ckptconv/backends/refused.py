"""The errors for a folder that no backend reads, and what may help."""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from pathlib import Path

from ckptconv.backends.base import Backend, backends
from ckptconv.backends.locate import locate
from ckptconv.backends.runs import run_of, steps_of
from ckptconv.errors import CkptconvError, Kind, listed
from ckptconv.tensors.look import names_in
from ckptconv.tensors.source_spec import Step

# Files of an optimizer, by verl, accelerate and transformers, DeepSpeed, torchtitan.
_OPTIMIZER = re.compile(
    r"^(?:optim\w*_|optim(?:izer)?[\w.-]*(?:\.(?:pt|bin|pth|safetensors))?$|\w*zero_pp_rank\w*optim_states)"
)
_TRIED = 8  # earlier steps that are opened to find a whole one


def nothing(root: Path, known: Sequence[Backend], name: str | None, step: Step | None) -> CkptconvError:
    """The error for a folder that no backend reads.

    Args:
        root: the folder.
        known: the backends that were tried.
        name: the value of --backend.
        step: the value of --step.
    """
    names = sorted(names_in(root))
    if not names:
        return CkptconvError("the folder is empty", where=root, kind=Kind.NOT_A_CHECKPOINT)
    if name is not None and (other := locate(root, backends(None), step)) is not None:
        return CkptconvError(
            f"no {name} checkpoint here; these are files of another format",
            where=other[1].folder,
            found=other[0].SIGN,
            hint="omit --backend: the format is found from the files",
            kind=Kind.USAGE,
        )
    if not isinstance(step, int) and (steps := steps_of(run_of(root))):
        return _unfinished(steps, known)
    if any(_OPTIMIZER.match(each) for each in names) and not any("model" in each for each in names):
        return CkptconvError(
            "only files of an optimizer are here, and no weights",
            where=root,
            found=listed(names, 3),
            hint="look for the weights in the folder above and on other nodes, or take an earlier step",
            kind=Kind.INCOMPLETE,
        )
    return CkptconvError(
        f"no {name} checkpoint here" if name else "no checkpoint found here",
        where=root,
        found=listed(names, 6),
        wanted=", ".join(dict.fromkeys(backend.SIGN for backend in known)),
        hint="pass the folder of the run, or of a step or role in it",
        kind=Kind.NOT_A_CHECKPOINT,
    )


def with_whole_step(
    error: CkptconvError, root: Path, step: Step | None, opens: Callable[[Path], object]
) -> CkptconvError:
    """The error of an incomplete or damaged newest step, with the newest step before it that can be opened.

    Args:
        error: the error.
        root: the folder that the user named.
        step: the value of --step.
        opens: opens a step's folder, and raises CkptconvError if it is not whole.
    """
    if isinstance(step, int) or error.kind not in (Kind.INCOMPLETE, Kind.DAMAGED):
        return error
    try:
        steps = steps_of(run_of(root))
    except CkptconvError:
        return error
    for number in sorted(steps, reverse=True)[1 : 1 + _TRIED]:
        try:
            opens(steps[number])
        except (CkptconvError, OSError):
            continue
        return error.adding(f"step {number} is whole: --step {number}")
    return error


def _unfinished(steps: dict[int, Path], known: Sequence[Backend]) -> CkptconvError:
    """The error for a run whose newest step has no weights: its save was interrupted, or its files are elsewhere."""
    newest = max(steps)
    whole = next((n for n in sorted(steps, reverse=True) if locate(steps[n], known)), None)
    return CkptconvError(
        f"step {newest} is the newest of the run, but has no weights in a known format",
        where=steps[newest],
        found=", ".join(sorted(names_in(steps[newest]))[:6]) or "an empty folder",
        hint="name another folder" if whole is None else f"take an earlier one: --step {whole}",
        kind=Kind.INCOMPLETE,
    )
