"""merge --all-steps and --watch: converts every step of a run that is complete and was not converted before.

A step counts as written if the run's mark (`latest_checkpointed_iteration.txt`, `latest`) names it or a later one, and no
file of the step is newer than the mark. If the trainer writes no mark, nothing in the step's folder may have changed for a
while. The receipt of a model has a fingerprint of the files that it was made from, so a step that was saved again is
converted again.
"""

from __future__ import annotations

import re
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from ckptconv.backends import state_of
from ckptconv.backends.meant import meant
from ckptconv.backends.registry import trainers
from ckptconv.backends.runs import StepFolder, mark_of, marked_number, run_of, step_folders
from ckptconv.commands.merge.run import Merged, merge
from ckptconv.errors import CkptconvError, Incomplete, Kind
from ckptconv.formats.json import read_table
from ckptconv.hub.source import located
from ckptconv.publish.receipt import RECEIPT
from ckptconv.publish.work import tidy
from ckptconv.storage import on_disk
from ckptconv.tensors.file_state import fingerprint, stamps_under
from ckptconv.tensors.look import exists, is_dir, is_far, is_file, link_to, resolved, stamp
from ckptconv.tensors.storage import FileState

SETTLED = 10.0  # seconds without a change after which a step without a mark counts as written
SAVED_AGAIN = (
    120.0  # the same for a step with files newer than the mark, which may be in the middle of another save
)
POLL = 5.0  # seconds between two searches for new steps
_AHEAD = 60.0  # seconds: a file from further in the future has the time of another machine's clock


@dataclass(frozen=True, slots=True)
class Step:
    """The result for one step.

    Args:
        number: the step; None for a folder whose name has no number, such as "last.ckpt".
        source: the step's folder.
        target: the folder of its model.
        merged: the result of the merge; None if the step was not converted.
        error: why it was not converted.
        waiting: it is still being written; with `watch` it is tried again.
        again: it was converted before, and its files have changed since.
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
        """The step for the user: "step 2", or the folder's name if it has no number."""
        return self.source.name if self.number is None else f"step {self.number}"

    @property
    def reason(self) -> str:
        """Why the step waits, such as "rank 1 of 4 is not there yet"."""
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
    """Convert the steps of a run, oldest first; the model of each gets the name of the step's folder.

    A step that was converted before is skipped, unless its files have changed since. A step that fails does not stop the
    others; with `watch` it is tried again when a file in its folder changes, and at the next look if its store failed.

    Args:
        run: the run's folder.
        root: the folder for the models.
        watch: never stop, and convert each new step when it is complete. A step that waits is reported once per reason.
        overwrite: also convert, once, the steps that were converted before.
        sleep: called with the number of seconds between two searches for new steps.
        choices: the keywords of `merge`.

    Returns:
        An iterator over the results. Each step is converted when the iterator is asked for it.

    Raises:
        CkptconvError: the run has no steps and `watch` is False, or `root` is inside the run.
    """
    top, root = located(run), on_disk(root)
    if not is_dir(top):
        raise CkptconvError("no such folder", where=top, hint=meant(top), kind=Kind.NOT_A_CHECKPOINT)
    if resolved(root) == resolved(top) or resolved(top) in resolved(root).parents:
        raise CkptconvError(
            "OUT is inside the run", where=root, hint="choose another folder", kind=Kind.TARGET
        )
    done: dict[Path, str] = {}  # step -> fingerprint of what was converted
    failed: dict[Path, object] = {}  # step -> its files when it failed
    waiting: dict[Path, str] = {}  # step -> the reason that was reported
    looks = _Looks()
    while True:
        try:
            folders = _steps(run_of(located(run)))  # a store is listed again
        except CkptconvError as error:
            if not (watch and _may_pass(error, top)):
                raise
            if waiting.get(top) != error.what:
                waiting[top] = error.what
                yield Step(None, top, root, error=error, waiting=True)
            sleep(POLL)
            continue
        waiting.pop(top, None)
        if not folders and not watch:
            raise CkptconvError(
                "no steps in this folder", where=top, hint="name the run's folder", kind=Kind.NOT_A_CHECKPOINT
            )
        for folder in folders:
            source, target = folder.path, root / folder.path.name
            if source in failed and failed[source] == _known_state(source):
                continue
            state = _fingerprint(source, choices.get("backend"))
            before = done.get(source) or (None if overwrite else _converted_from(target, state))
            if before is not None and state in ("", before):
                tidy(target)
                done[source] = state
                continue
            step = Step(folder.number, source, target, again=before is not None)
            step = _convert(step, choices | {"overwrite": overwrite or step.again}, watch, looks)
            if step.merged is not None:
                done[source] = state
            elif step.waiting and watch and waiting.get(source) == step.reason:
                continue
            if step.waiting:
                waiting[source] = step.reason
            elif step.error is not None:
                failed[source] = _known_state(source)
            yield step
        if not watch:
            return
        sleep(POLL)


class _Looks:
    """When the files of each step were first seen as they are, by this machine's clock."""

    def __init__(self) -> None:
        self._seen: dict[Path, tuple[object, float]] = {}

    def unchanged_for(self, source: Path) -> float:
        """For how many seconds nothing has changed between two looks; 0 at the first look."""
        now, state = time.monotonic(), _state(source)
        if source not in self._seen or self._seen[source][0] != state:
            self._seen[source] = (state, now)
        return now - self._seen[source][1]


def _steps(run: Path) -> list[StepFolder]:
    """The steps, oldest first. A symbolic link to another step ("last.ckpt") is left out."""
    folders = step_folders(run)
    links = {folder.path for folder in folders if link_to(folder.path) is not None}
    paths = {resolved(folder.path) for folder in folders if folder.path not in links}
    return [f for f in folders if not (f.path in links and resolved(f.path) in paths)]


def _converted_from(target: Path, now: str) -> str | None:
    """The fingerprint of the files that a model was made from; None if the model does not exist yet.

    Args:
        target: the model's folder.
        now: the fingerprint of the step's files. It is also the answer for the receipt of an older ckptconv, which has none.
    """
    if not is_file(target / RECEIPT):
        return None
    try:
        source = read_table(target / RECEIPT).get("source")
    except CkptconvError:
        return now
    stated = source.get("fingerprint") if isinstance(source, dict) else None
    return stated if isinstance(stated, str) else now


def _fingerprint(source: Path, backend: str | None) -> str:
    """The fingerprint of a step's files; "" if they cannot be found."""
    try:
        return fingerprint(state_of(source, backend))
    except (CkptconvError, OSError):  # the merge reports what is wrong
        return ""


def _may_pass(error: CkptconvError, source: Path) -> bool:
    """True for an error of a store, such as a network that is down, which another look may not meet."""
    return error.kind is Kind.ENVIRONMENT and is_far(source)


def _convert(step: Step, choices: dict[str, Any], watch: bool, looks: _Looks) -> Step:
    """Convert one step, or say why it was not converted."""
    try:
        why = _unfinished(step, looks)
        if why is not None:
            return replace(step, error=Incomplete(why, where=step.source), waiting=True)
        return replace(step, merged=merge(step.source, step.target, **choices))
    except CkptconvError as error:
        may_pass = isinstance(error, Incomplete) or _may_pass(error, step.source)
        return replace(step, error=error, waiting=watch and may_pass)
    except FileNotFoundError as error:
        gone = CkptconvError(
            f"{error.filename} disappeared while it was read", where=step.source, kind=Kind.ENVIRONMENT
        )
        return replace(step, error=gone)


def _unfinished(step: Step, looks: _Looks) -> str | None:
    """Why a step is not known to be complete; None if it is."""
    source, run = step.source, step.source.parent
    for pattern in (pattern for trainer in trainers() for pattern in trainer.saving):
        sign = run / pattern.format(folder=source.name) if "{" in pattern else source / pattern
        if exists(sign):
            return f"its trainer is still saving {step.name}: {sign.name} is there"
    mark, number = mark_of(run), marked_number(run)
    changed = max((state.changed for _, state in _state(source)), default=0) / 10**9
    settled = time.time() - changed
    if ahead := settled < -_AHEAD:  # how long nothing has changed is seen by looking again
        settled = looks.unchanged_for(source)
    if mark is None or number is None or step.number is None:
        if settled < SETTLED and ahead:
            return f"{step.name} has files from the future (the file server's clock is ahead): --watch looks again"
        if settled < SETTLED:
            return f"{step.name} changed a moment ago: it may still be being written"
    elif step.number > number:
        return f"the run has not marked {step.name} as written yet"
    elif changed > stamp(mark).changed / 10**9 and settled < SAVED_AGAIN:
        return f"files of {step.name} are younger than {mark.name}: it may be being saved again"
    return None


def _state(folder: Path) -> list[tuple[str, FileState]]:
    """Every file below a folder with its state, without files that disappear meanwhile.

    Raises:
        CkptconvError: a store does not list the folder.
    """
    return sorted(stamps_under([folder], leave=lambda below: False).items())


def _known_state(folder: Path) -> object:
    """What `_state` gives; None if a store does not list the folder."""
    try:
        return _state(folder)
    except CkptconvError:
        return None
