"""Writes one file of a plan, on any machine that sees the same paths. A job is idempotent, so an engine may repeat it.

Every attempt writes in its own folder, and the complete file is moved out of it. So an attempt that was killed leaves no
partial file behind, and two attempts at once produce the same file.
"""

from __future__ import annotations

import contextlib
import os
import shutil
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from uuid import uuid4

from ckptconv.copy.finished import finished, hand_over
from ckptconv.copy.run import Copied, copy
from ckptconv.errors import CkptconvError, Kind
from ckptconv.plan import Plan
from ckptconv.plan.shards import OutFile
from ckptconv.publish.work import stamp_of
from ckptconv.tensors.checkpoint import Lora

_MODEL = "model"  # the work folder of an attempt, inside the attempt's folder
_PROGRESS = "bytes"  # the file in which an attempt reports its progress
_STOP = "stop"  # the file, next to all attempts, that ends them
_REPORT_EVERY = 0.5  # seconds
_LOOK_EVERY = 0.2  # seconds


@dataclass(frozen=True, slots=True)
class Job:
    """The part of a plan for one file, and the facts that must hold on the machine that writes it.

    Args:
        part: a plan with this one file.
        work: the work folder of the merge.
        stamp: identifies the merge that owns `work`.
        sizes: file -> bytes, for each file that is read.
        workers: threads.
        patience: seconds that a network file system may take to show what another machine wrote.
    """

    part: Plan
    work: Path
    stamp: str
    sizes: dict[str, int]
    workers: int
    patience: float

    @property
    def out(self) -> OutFile:
        """The file that the job writes."""
        return self.part.files[0]


def attempts(work: Path) -> Path:
    """The folder that holds the attempts' folders, next to the work folder."""
    return work.with_name(f"{work.name}.attempts")


def jobs(plan: Plan, files: Sequence[OutFile], work: Path, workers: int, patience: float) -> Iterator[Job]:
    """Make a job for each file.

    Args:
        plan: the whole plan.
        files: the files of the plan to write.
        work: the work folder of the merge.
        workers: threads of each job.
        patience: seconds; see `Job`.

    Raises:
        CkptconvError: a source has a relative path, which may mean another file on another machine.
    """
    stamp, sizes = stamp_of(work), dict[str, int]()
    bare = replace(plan.checkpoint, tensors={}, files=(), skipped=(), lora=Lora(), extras={}, notes=())
    for out in files:
        outputs = {key: plan.outputs[key] for key in out.offsets}
        read = {file for each in outputs.values() for view in each.source.views for file in view.files}
        if relative := next((file for file in read if not os.path.isabs(file)), None):
            raise CkptconvError(
                "a relative path may mean another file on another machine", where=relative, kind=Kind.USAGE
            )
        sizes.update({file: os.stat(file).st_size for file in read - sizes.keys()})
        part = Plan(bare, outputs, (out,), dropped=(), config=None)
        yield Job(part, work, stamp, {file: sizes[file] for file in read}, workers, patience)


def run(job: Job, machine: str) -> Copied:
    """Write the job's file, unless it exists already.

    Args:
        job: the job.
        machine: the name of this machine in errors.

    Raises:
        CkptconvError: as `copy` does, and if this machine does not see the same files as the machine that planned.
    """
    _require_go(job.work)
    _require_work(job, machine)
    done = finished(job.work, job.out)
    if done is not None:
        return Copied(
            done.hashes, 0, 0, nonfinite=done.nonfinite
        )  # an attempt whose result was lost wrote it
    _require_sources(job, machine)
    own = attempts(job.work) / uuid4().hex
    try:
        own.mkdir()  # without its parents, which a merge removes when it ends
    except OSError as error:
        raise CkptconvError(
            f"{machine} cannot write: {error.strerror}", where=own.parent, kind=Kind.TARGET
        ) from error
    try:
        _require_go(
            job.work
        )  # this follows mkdir, so that either the caller of `stop` sees the folder or we see the stop
        copied = copy(job.part, own / _MODEL, job.workers, _Progress(own, job.work))
        hand_over(own / _MODEL, job.work, job.out)
        return copied
    finally:
        shutil.rmtree(own, ignore_errors=True)


def stop(work: Path) -> None:
    """Tell all attempts to end soon, and later ones not to begin."""
    with contextlib.suppress(OSError):
        (attempts(work) / _STOP).touch()


def under_way(work: Path) -> bool:
    """True if an attempt still has a folder. The folder of an attempt that was killed stays."""
    return any(path.is_dir() for path in attempts(work).iterdir())


def _require_go(work: Path) -> None:
    if (attempts(work) / _STOP).exists():
        raise CkptconvError("the merge was stopped", where=work, kind=Kind.ENVIRONMENT)


def _require_work(job: Job, machine: str) -> None:
    if not within(job.patience, lambda: stamp_of(job.work) == job.stamp):
        raise CkptconvError(
            f"{machine} does not see the folder that this merge writes to",
            where=job.work,
            hint="OUT must be on a file system that all machines share",
            kind=Kind.ENVIRONMENT,
        )


def _require_sources(job: Job, machine: str) -> None:
    for file, nbytes in sorted(job.sizes.items()):
        if not within(job.patience, lambda file=file: os.path.isfile(file)):  # type: ignore[misc]
            raise CkptconvError(
                f"{machine} does not see a file of the checkpoint",
                where=file,
                hint="every machine must see the same files at the same paths",
                kind=Kind.ENVIRONMENT,
            )
        if (here := os.path.getsize(file)) != nbytes:
            raise CkptconvError(
                f"{machine} sees a different file than the one in the plan",
                where=file,
                found=f"{here:,} bytes",
                wanted=f"{nbytes:,} bytes",
                kind=Kind.ENVIRONMENT,
            )


def within(seconds: float, true: Callable[[], bool]) -> bool:
    """Wait until a condition is true, since a network file system shows late what another machine wrote.

    Args:
        seconds: how long to wait at most.
        true: the condition.

    Returns:
        False if the time ran out.
    """
    end = time.monotonic() + seconds
    while not true():
        if time.monotonic() >= end:
            return False
        time.sleep(_LOOK_EVERY)
    return True


class _Progress:
    """Writes the number of bytes written into the attempt's folder now and then, and ends the attempt after `stop`."""

    def __init__(self, own: Path, work: Path) -> None:
        self._path, self._work, self._done, self._last = own / _PROGRESS, work, 0, 0.0

    def __call__(self, nbytes: int, file: str) -> None:
        self._done += nbytes
        now = time.monotonic()
        if now - self._last >= _REPORT_EVERY:
            self._last = now
            _require_go(self._work)
            with contextlib.suppress(OSError):  # progress is only for display
                self._path.write_text(f"{self._done} {file}")


def how_far(work: Path) -> dict[str, int]:
    """File name -> bytes written by the attempts in progress. If several write one file, the largest number counts."""
    written: dict[str, int] = {}
    for path in attempts(work).glob(f"*/{_PROGRESS}"):
        with contextlib.suppress(OSError, ValueError):
            done, _, file = path.read_text().partition(" ")
            if file:
                written[file] = max(int(done), written.get(file, 0))
    return written
