"""The files that are whole, each with a note of its hashes: what a later run takes over, once it has hashed them again."""

from __future__ import annotations

import contextlib
import json
import os
from dataclasses import asdict, dataclass
from pathlib import Path

from ckptconv.copy.hashing import Stretch, hash_stretches
from ckptconv.errors import cannot_write
from ckptconv.plan import Plan
from ckptconv.plan.shards import OutFile


@dataclass(frozen=True, slots=True)
class Nonfinite:
    """A written tensor that holds NaN or Inf.

    count: such elements, of `numel`. files: the rank files that stored them; () where the tensor was computed.
    """

    key: str
    count: int
    numel: int
    files: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Finished:
    """What is known of a file that is whole: tensor -> hash, and its tensors that hold NaN or Inf."""

    hashes: dict[str, str]
    nonfinite: tuple[Nonfinite, ...]


@dataclass(frozen=True, slots=True)
class TakenOver:
    """What an earlier run of the same plan left.

    kept: file name -> what is known of it. missing: the files to write. damaged: those of them that were there, but not as
    they were noted.
    """

    kept: dict[str, Finished]
    missing: tuple[OutFile, ...]
    damaged: tuple[str, ...]


def note(work: Path, out: OutFile, finished: Finished) -> None:
    """Write down that a file is whole. Raises OSError."""
    record = _record(work, out.name)
    record.parent.mkdir(parents=True, exist_ok=True)
    strange = [asdict(item) for item in finished.nonfinite]
    record.write_text(json.dumps({"nbytes": out.nbytes, "hashes": finished.hashes, "nonfinite": strange}))


def finished(work: Path, out: OutFile) -> Finished | None:
    """What was noted of a file of the same plan, where it has the plan's size and header; else None.

    The tensors' bytes are not read: `take_over` does that.
    """
    path, record = work / out.name, _record(work, out.name)
    if not (path.is_file() and record.is_file() and path.stat().st_size == out.nbytes):
        return None
    try:
        data = json.loads(record.read_text())
        with open(path, "rb") as file:
            if file.read(len(out.header)) != out.header:
                return None
        strange = [Nonfinite(**{**item, "files": tuple(item["files"])}) for item in data["nonfinite"]]
        return Finished(data["hashes"], tuple(strange))
    except (OSError, ValueError, KeyError, TypeError):
        return None


def take_over(plan: Plan, work: Path, workers: int) -> TakenOver:
    """What is left of an earlier run of the same plan, its bytes hashed again and compared with the notes.

    The machine may have stopped with it: what a disk lost after the note was written would be published otherwise.
    A file that is not what was noted is removed. Raises CkptconvError where a file cannot be read.
    """
    kept: dict[str, Finished] = {}
    missing, damaged = [], []
    for out in plan.files:
        known = finished(work, out)
        if known is not None and _hashes(plan, work, out, workers) == known.hashes:
            kept[out.name] = known
            continue
        if (work / out.name).is_file() and _record(work, out.name).is_file():
            damaged.append(out.name)
        missing.append(out)
    for name in damaged:
        for path in (_record(work, name), work / name):
            with contextlib.suppress(OSError):
                path.unlink()
    return TakenOver(kept, tuple(missing), tuple(damaged))


def hand_over(own: Path, work: Path, out: OutFile) -> None:
    """Move a finished file and its note from one work folder into another, which is on the same disk and still there."""
    record, final = _record(work, out.name), work / out.name
    try:
        for folder in (work.with_name(f"{work.name}.done"), record.parent, final.parent):
            folder.mkdir(exist_ok=True)
        os.replace(_record(own, out.name), record)
        os.replace(own / out.name, final)
    except OSError as error:
        raise cannot_write(final, error) from error


def _hashes(plan: Plan, work: Path, out: OutFile, workers: int) -> dict[str, str]:
    path = work / out.name
    places = {key: Stretch(path, start, plan.outputs[key].nbytes) for key, start in out.offsets.items()}
    return hash_stretches(places, workers)


def _record(work: Path, name: str) -> Path:
    """Where it is noted that a file is whole: beside the work folder, which holds the model and nothing else."""
    return work.with_name(f"{work.name}.done") / f"{name}.json"
