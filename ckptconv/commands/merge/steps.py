"""merge --all-steps and --watch: every step of a run that is whole and not converted yet, or changed since it was.

A step counts as written when the run's own mark says so (`latest_checkpointed_iteration.txt`, `latest`) and no file of
the step is younger than the mark, or, where a trainer leaves no mark, when nothing in its folder has changed for a while.
The receipt of a model holds a fingerprint of the files that it was made from, so a step that is saved again is converted
again.
"""

from __future__ import annotations

import re
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from ckptconv.backends import state_of
from ckptconv.backends.registry import trainers
from ckptconv.backends.runs import StepFolder, mark_of, marked_number, run_of, step_folders
from ckptconv.commands.merge.run import Merged, merge
from ckptconv.errors import CkptconvError, Incomplete, Kind
from ckptconv.formats.json import read_table
from ckptconv.publish.receipt import RECEIPT
from ckptconv.publish.work import tidy
from ckptconv.tensors.file_state import fingerprint

SETTLED = 10.0  # seconds without a change after which a step without a mark counts as written
SAVED_AGAIN = (
    120.0  # the same for a step with files younger than the mark, which may be in the middle of another save
)
POLL = 5.0  # seconds between two looks


@dataclass(frozen=True, slots=True)
class Step:
    """What became of one step.

    Args:
        number: None for a folder without one, such as "last.ckpt".
        merged: what the merge did, None where there was none.
        error: why the step is not converted.
        waiting: it is still being written; with `watch` it is looked at again.
        again: it had been converted before, and its files changed since.
    """

    number: int | None
    source: Path
    target: Path
    merged: Merged | None = None
    error: CkptconvError | None = None
    waiting: bool = False
    again: bool = False

    @property
    def name(self) -> str:
        """ "step 2", or the folder's name where it has no number."""
        return self.source.name if self.number is None else f"step {self.number}"

    @property
    def reason(self) -> str:
        """Why it waits: "rank 1 of 4 is not there yet"."""
        what = self.error.what if self.error else ""
        return re.sub(r"\b(is|are) missing(?: from the checkpoint)?$", r"\1 not there yet", what)


def merge_steps(
    run: str | Path,
    root: str | Path,
    *,
    watch: bool = False,
    overwrite: bool = False,
    sleep: Callable[[float], None] = time.sleep,
    **choices: Any,
) -> Iterator[Step]:
    """Convert each step of `run` into `root`/its folder's name, oldest first.

    A step that is converted already is skipped, unless its files changed since. A step that fails is reported and does
    not stop the others; it is tried again when something in its folder changes.

    Args:
        run: the run's folder.
        root: the folder in which the models appear.
        watch: go on for ever, with each new step once it is whole. A step that waits is reported once per reason.
        overwrite: also convert, once, what is converted already.
        sleep: called with the seconds between two looks.
        choices: as `merge` takes them.

    Raises:
        CkptconvError: the run holds no steps, without `watch`; or `root` is inside the run.
    """
    top, root = Path(run), Path(root)
    if not top.is_dir():
        raise CkptconvError("no such folder", where=top, kind=Kind.NOT_A_CHECKPOINT)
    if root.resolve() == top.resolve() or top.resolve() in root.resolve().parents:
        raise CkptconvError(
            "OUT lies inside the run", where=root, hint="choose another folder", kind=Kind.TARGET
        )
    done: dict[Path, str] = {}  # step -> fingerprint of what was converted
    failed: dict[Path, object] = {}  # step -> its files when it failed
    waiting: dict[Path, str] = {}  # step -> the reason that was reported
    while True:
        folders = _steps(run_of(top))
        if not folders and not watch:
            raise CkptconvError(
                "no steps in this folder", where=top, hint="name the run's folder", kind=Kind.NOT_A_CHECKPOINT
            )
        for folder in folders:
            source, target = folder.path, root / folder.path.name
            if source in failed and failed[source] == _state(source):
                continue
            state = _fingerprint(source, choices.get("backend"))
            before = done.get(source) or (None if overwrite else _converted_from(target, state))
            if before is not None and state in ("", before):
                tidy(target)
                done[source] = state
                continue
            step = Step(folder.number, source, target, again=before is not None)
            step = _convert(step, choices | {"overwrite": overwrite or step.again}, watch)
            if step.merged is not None:
                done[source] = state
            elif step.waiting and watch and waiting.get(source) == step.reason:
                continue
            if step.waiting:
                waiting[source] = step.reason
            elif step.error is not None:
                failed[source] = _state(source)
            yield step
        if not watch:
            return
        sleep(POLL)


def _steps(run: Path) -> list[StepFolder]:
    """The steps, oldest first. A link to another step ("last.ckpt") is not converted twice."""
    folders = step_folders(run)
    paths = {folder.path.resolve() for folder in folders if not folder.path.is_symlink()}
    return [f for f in folders if not (f.path.is_symlink() and f.path.resolve() in paths)]


def _converted_from(target: Path, now: str) -> str | None:
    """The fingerprint of the files that a model was made from; None without a model.

    A receipt of an older ckptconv has none: the model is taken to be made from what is there now.
    """
    if not (target / RECEIPT).is_file():
        return None
    try:
        source = read_table(target / RECEIPT).get("source")
    except CkptconvError:
        return now
    stated = source.get("fingerprint") if isinstance(source, dict) else None
    return stated if isinstance(stated, str) else now


def _fingerprint(source: Path, backend: str | None) -> str:
    try:
        return fingerprint(state_of(source, backend))
    except (CkptconvError, OSError):  # the merge says what is wrong
        return ""


def _convert(step: Step, choices: dict[str, Any], watch: bool) -> Step:
    why = _unfinished(step)
    if why is not None:
        return replace(step, error=Incomplete(why, where=step.source), waiting=True)
    try:
        return replace(step, merged=merge(step.source, step.target, **choices))
    except CkptconvError as error:
        return replace(step, error=error, waiting=watch and isinstance(error, Incomplete))
    except FileNotFoundError as error:
        gone = CkptconvError(
            f"{error.filename} disappeared while it was read", where=step.source, kind=Kind.ENVIRONMENT
        )
        return replace(step, error=gone)


def _unfinished(step: Step) -> str | None:
    """Why a step cannot be taken yet, or None."""
    source, run = step.source, step.source.parent
    for pattern in (pattern for trainer in trainers() for pattern in trainer.saving):
        sign = run / pattern.format(folder=source.name) if "{" in pattern else source / pattern
        if sign.exists():
            return f"its trainer is still saving {step.name}: {sign.name} is there"
    mark, number = mark_of(run), marked_number(run)
    changed = max((when for _, _, when in _state(source)), default=0.0)
    settled = time.time() - changed
    if mark is None or number is None or step.number is None:
        if settled < SETTLED:
            return f"{step.name} changed a moment ago: it may still be being written"
    elif step.number > number:
        return f"the run has not marked {step.name} as written yet"
    elif changed > mark.stat().st_mtime and settled < SAVED_AGAIN:
        return f"files of {step.name} are younger than {mark.name}: it may be being saved again"
    return None


def _state(folder: Path) -> tuple[tuple[str, int, float], ...]:
    """Every file with its size and time of change; what vanishes meanwhile is left out."""
    found = []
    for path in sorted(folder.rglob("*")):
        try:
            stat = path.stat()
        except OSError:
            continue
        if path.is_file():
            found.append((str(path), stat.st_size, stat.st_mtime))
    return tuple(found)
