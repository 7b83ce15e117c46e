"""Shows `merge --all-steps` and `--watch` on the screen."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from ckptconv.commands.merge.steps import Step, merge_steps
from ckptconv.errors import CkptconvError
from ckptconv.show import merge as show
from ckptconv.show.progress import ProgressShown
from ckptconv.show.sink import Sink, plain
from ckptconv.show.units import as_typed


def every_step(
    sink: Sink, shown: ProgressShown, run: Path, root: Path, watch: bool, choices: dict[str, Any]
) -> None:
    """Convert the steps of a run and report each. With JSON, print one list at the end, or with `watch` one line per step.

    Args:
        sink: where results and notes go.
        shown: the bar of a merge.
        run: the folder of the run.
        root: the folder for the models, one subfolder per step.
        watch: wait for new steps until Ctrl-C.
        choices: keywords of `merge`.

    Raises:
        CkptconvError: a step failed; it is raised at the end.
    """
    steps_done: list[Step] = []
    place = as_typed(run)
    if watch:
        sink.phase("Watching", f"{place}, until Ctrl-C")
    steps = merge_steps(run, root, watch=watch, **choices)
    while True:
        with shown:
            step = next(steps, None)
        if step is None:
            break
        steps_done.append(step)
        if step.merged is not None:
            show.notes(sink, step.merged)
        if watch and sink.as_json:
            print(json.dumps(plain(_record(step))), flush=True)
        elif step.merged is not None and not sink.as_json:
            sink.result(show.done(step.merged), None, quiet=str(step.target))
        if step.again:
            sink.note(
                f"{step.name} changed after it was converted: {'converted' if step.merged else 'tried'} again"
            )
        if step.waiting:
            sink.phase("Waiting", f"for {step.name}: {step.reason}")
        elif step.error is not None:
            sink.note(f"skipped {step.name}: {step.error}")
    if not steps_done:
        sink.note("OUT has every step already")
    if sink.as_json:
        sink.result("", {"steps": [_record(step) for step in steps_done]})
    failed = [step for step in steps_done if step.error is not None and not step.waiting]
    if failed:
        raise CkptconvError(
            f"{len(failed)} of {len(steps_done)} steps could not be converted",
            where=place,
            found=", ".join(step.name for step in failed),
            code=max(step.error.code for step in failed if step.error is not None),
        )


def _record(step: Step) -> dict[str, Any]:
    record: dict[str, Any] = {"step": step.number, "source": str(step.source), "target": str(step.target)}
    if step.merged is not None:
        return {**record, "merged": show.record(step.merged)}
    error = step.error
    assert error is not None
    return {**record, "error": {"what": error.what, **dict(error.rows())}, "waiting": step.waiting}
