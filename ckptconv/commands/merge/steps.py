"""merge --all-steps and --watch: every step of a run that is whole and not converted yet.

A step counts as written when the run's own mark says so (`latest_checkpointed_iteration.txt`, `latest`), or, where a
trainer leaves no mark, when nothing in its folder has changed for a while. The merge itself refuses what is incomplete,
and such a step is tried again when something in it has changed.
"""

from __future__ import annotations

import re
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ckptconv.backends import steps_of
from ckptconv.commands.merge.run import Merged, merge
from ckptconv.errors import CkptconvError, Incomplete
from ckptconv.formats.json import settings_text
from ckptconv.publish.receipt import RECEIPT
from ckptconv.publish.target import tidy

SETTLED = 10.0  # seconds without a change after which a step without a mark counts as written
POLL = 5.0  # seconds between two looks
_MARKS = ("latest_checkpointed_iteration.txt", "latest")


@dataclass(frozen=True, slots=True)
class Step:
    """What became of one step: `merged`, or why not. waiting: it is still being written."""

    number: int
    source: Path
    target: Path
    merged: Merged | None = None
    error: CkptconvError | None = None
    waiting: bool = False


def merge_steps(
    run: str | Path,
    root: str | Path,
    *,
    watch: bool = False,
    overwrite: bool = False,
    sleep: Callable[[float], None] = time.sleep,
    **choices: Any,
) -> Iterator[Step]:
    """Convert each step of `run` into `root`/its folder's name, oldest first; steps that are there already are left.

    watch: go on for ever, with each new step once it is whole. overwrite: also convert what is there already, once.
    choices: as `merge` takes them. A step that fails is told and does not stop the others.
    Raises CkptconvError where the run holds no steps, without `watch`.
    """
    run, root = Path(run), Path(root)
    if not run.is_dir():
        raise CkptconvError("no such folder", where=run)
    if root.resolve() == run.resolve() or run.resolve() in root.resolve().parents:
        raise CkptconvError("OUT lies inside the run", where=root, hint="choose another folder")
    done: set[int] = set()
    failed: dict[int, object] = {}
    while True:
        steps = steps_of(run)
        if not steps and not watch:
            raise CkptconvError("no steps in this folder", where=run, hint="name the run's folder")
        for number, source in sorted(steps.items()):
            target = root / source.name
            if number in done or (number in failed and failed[number] == _state(source)):
                continue
            if (target / RECEIPT).is_file() and not overwrite:
                tidy(target)
                done.add(number)
                continue
            step = _convert(run, number, source, target, choices | {"overwrite": overwrite})
            if step.merged is not None:
                done.add(number)
            elif not step.waiting:
                failed[number] = _state(source)
            elif watch:
                continue
            yield step
        if not watch:
            return
        sleep(POLL)


def _convert(run: Path, number: int, source: Path, target: Path, choices: dict[str, Any]) -> Step:
    why = _unfinished(run, number, source)
    if why is not None:
        return Step(number, source, target, error=Incomplete(why, where=source), waiting=True)
    try:
        return Step(number, source, target, merged=merge(source, target, **choices))
    except CkptconvError as error:
        return Step(number, source, target, error=error)
    except FileNotFoundError as error:
        gone = CkptconvError(f"{error.filename} disappeared while it was read", where=source)
        return Step(number, source, target, error=gone)


def _unfinished(run: Path, number: int, source: Path) -> str | None:
    """Why a step cannot be taken yet, or None."""
    mark = _marked(run)
    if mark is not None:
        return None if number <= mark else f"the run has not marked step {number} as written yet"
    if time.time() - max((when for _, _, when in _state(source)), default=0.0) < SETTLED:
        return f"step {number} changed a moment ago: it may still be being written"
    return None


def _marked(run: Path) -> int | None:
    """The step that the run calls its latest; None where it has no such mark."""
    for name in _MARKS:
        found = re.search(r"(\d{1,18})\s*$", settings_text(run / name).strip()[-100:])
        if found:
            return int(found[1])
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
