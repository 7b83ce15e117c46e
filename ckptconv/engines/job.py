"""One file of a plan, made by itself: on any machine that sees the same paths, as often as an engine likes.

Every attempt writes in a folder of its own, and the finished file is moved out of it: what was cut off leaves nothing
behind that counts, and two attempts at once each bring the same file.
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

from ckptconv.compute import views_of
from ckptconv.copy.finished import finished, hand_over
from ckptconv.copy.run import Copied, copy
from ckptconv.errors import CkptconvError
from ckptconv.plan import Plan
from ckptconv.plan.shards import OutFile
from ckptconv.publish.target import stamp_of
from ckptconv.tensors.checkpoint import Lora

_MODEL = "model"  # an attempt's own work folder, in the attempt's folder
_SAID = "bytes"  # the file in which an attempt says how far it is
_STOP = "stop"  # the file, beside all attempts, that ends them
_SAY_EVERY = 0.5  # seconds
_LOOK_EVERY = 0.2


@dataclass(frozen=True, slots=True)
class Job:
    """A plan's part for one file, and what has to be the same where it is made.

    work: the merge's work folder. stamp: whose it is. sizes: bytes of each file that is read. workers: threads. patience:
    seconds in which a network's file system may take to show what another machine wrote.
    """

    part: Plan
    work: Path
    stamp: str
    sizes: dict[str, int]
    workers: int
    patience: float

    @property
    def out(self) -> OutFile:
        return self.part.files[0]


def attempts(work: Path) -> Path:
    """Where attempts have their folders: beside the work folder."""
    return work.with_name(f"{work.name}.attempts")


def jobs(plan: Plan, files: Sequence[OutFile], work: Path, workers: int, patience: float) -> Iterator[Job]:
    """A job for each of the plan's files that are asked for."""
    stamp, sizes = stamp_of(work), dict[str, int]()
    bare = replace(plan.checkpoint, tensors={}, files=(), skipped=(), lora=Lora(), extras={}, notes=())
    for out in files:
        outputs = {key: plan.outputs[key] for key in out.offsets}
        read = {file for each in outputs.values() for view in views_of(each.source) for file in view.files}
        if relative := next((file for file in read if not os.path.isabs(file)), None):
            raise CkptconvError("a relative path may mean another file on another machine", where=relative)
        sizes.update({file: os.stat(file).st_size for file in read - sizes.keys()})
        part = Plan(bare, outputs, (out,), dropped=(), config=None)
        yield Job(part, work, stamp, {file: sizes[file] for file in read}, workers, patience)


def run(job: Job, machine: str) -> Copied:
    """Make the job's file, unless it is there already. machine: how an error calls the one that this runs on.

    Raises CkptconvError as `copy` does, and where this machine does not see the same files as the one that planned.
    """
    _require_go(job.work)
    _require_work(job, machine)
    done = finished(job.work, job.out)
    if done is not None:
        return Copied(done.hashes, 0, 0, nonfinite=done.nonfinite)  # by an attempt whose answer was lost
    _require_sources(job, machine)
    own = attempts(job.work) / uuid4().hex
    try:
        own.mkdir()  # not its parents: a merge that is over has none
    except OSError as error:
        raise CkptconvError(f"{machine} cannot write: {error.strerror}", where=own.parent) from error
    try:
        _require_go(job.work)  # after mkdir: who called `stop` sees the folder, or this sees the call
        copied = copy(job.part, own / _MODEL, job.workers, _Said(own, job.work))
        hand_over(own / _MODEL, job.work, job.out)
        return copied
    finally:
        shutil.rmtree(own, ignore_errors=True)


def stop(work: Path) -> None:
    """End all attempts soon, and those that would begin later at once."""
    with contextlib.suppress(OSError):
        (attempts(work) / _STOP).touch()


def under_way(work: Path) -> bool:
    """Whether an attempt has a folder still; one that was killed has it for ever."""
    return any(path.is_dir() for path in attempts(work).iterdir())


def _require_go(work: Path) -> None:
    if (attempts(work) / _STOP).exists():
        raise CkptconvError("the merge was stopped", where=work)


def _require_work(job: Job, machine: str) -> None:
    if not within(job.patience, lambda: stamp_of(job.work) == job.stamp):
        raise CkptconvError(
            f"{machine} does not see the folder that this merge writes to",
            where=job.work,
            hint="OUT must be on a file system that all machines share",
        )


def _require_sources(job: Job, machine: str) -> None:
    for file, nbytes in sorted(job.sizes.items()):
        if not within(job.patience, lambda file=file: os.path.isfile(file)):  # type: ignore[misc]
            raise CkptconvError(
                f"{machine} does not see a file of the checkpoint",
                where=file,
                hint="every machine must see the same files at the same paths",
            )
        if (here := os.path.getsize(file)) != nbytes:
            raise CkptconvError(
                f"{machine} sees a different file than the one in the plan",
                where=file,
                found=f"{here:,} bytes",
                wanted=f"{nbytes:,} bytes",
            )


def within(seconds: float, true: Callable[[], bool]) -> bool:
    """Whether something is, or becomes, true: a network's file system may show late what another machine wrote."""
    end = time.monotonic() + seconds
    while not true():
        if time.monotonic() >= end:
            return False
        time.sleep(_LOOK_EVERY)
    return True


class _Said:
    """Says into an attempt's folder how many bytes are written, now and then; and ends an attempt that is to stop."""

    def __init__(self, own: Path, work: Path) -> None:
        self._path, self._work, self._done, self._last = own / _SAID, work, 0, 0.0

    def __call__(self, nbytes: int, file: str) -> None:
        self._done += nbytes
        now = time.monotonic()
        if now - self._last >= _SAY_EVERY:
            self._last = now
            _require_go(self._work)
            with contextlib.suppress(OSError):  # only for the eye
                self._path.write_text(f"{self._done} {file}")


def how_far(work: Path) -> dict[str, int]:
    """File name -> bytes written, of the attempts that are under way; of several at one file, the one furthest on."""
    found: dict[str, int] = {}
    for path in attempts(work).glob(f"*/{_SAID}"):
        with contextlib.suppress(OSError, ValueError):
            done, _, file = path.read_text().partition(" ")
            if file:
                found[file] = max(int(done), found.get(file, 0))
    return found
