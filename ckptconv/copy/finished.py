"""Records which output files are complete, with their hashes. A later run hashes these files again and keeps them."""

from __future__ import annotations

import contextlib
import json
import os
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import NamedTuple

from ckptconv.copy.hashing import Stretch, hash_stretches
from ckptconv.errors import cannot_write
from ckptconv.plan import Plan
from ckptconv.plan.shards import OutFile


@dataclass(frozen=True, slots=True)
class Nonfinite:
    """A written tensor that holds NaN or Inf.

    Args:
        key: the tensor's key in the plan.
        count: the number of elements that are NaN or Inf.
        numel: the number of all its elements.
        files: the rank files that stored the bad elements; () if the tensor was computed.
    """

    key: str
    count: int
    numel: int
    files: tuple[str, ...] = ()


class Finished(NamedTuple):
    """The record of a complete output file.

    Args:
        hashes: tensor -> hash.
        nonfinite: its tensors that hold NaN or Inf.
    """

    hashes: dict[str, str]
    nonfinite: tuple[Nonfinite, ...]


class TakenOver(NamedTuple):
    """The output files of an earlier run of the same plan.

    Args:
        kept: file name -> record, for each file that is complete and has its noted hashes.
        missing: the files to write.
        damaged: names of the missing files that existed, but whose bytes were not those of their record.
    """

    kept: dict[str, Finished]
    missing: tuple[OutFile, ...]
    damaged: tuple[str, ...]


def note(work: Path, out: OutFile, finished: Finished) -> None:
    """Record that a file is complete.

    Args:
        work: the work folder.
        out: the file, as planned.
        finished: its record.

    Raises:
        OSError: the record cannot be written.
    """
    record = _record(work, out.name)
    record.parent.mkdir(parents=True, exist_ok=True)
    strange = [asdict(item) for item in finished.nonfinite]
    record.write_text(json.dumps({"nbytes": out.nbytes, "hashes": finished.hashes, "nonfinite": strange}))


def finished(work: Path, out: OutFile) -> Finished | None:
    """The record of a file; None if there is none, or if the file does not have the plan's size and header.

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
    """Find the complete files of an earlier run. Their bytes are hashed again and compared with the records.

    The machine may have stopped together with that run, and the disk may have lost bytes that were written before the
    record; these would be published otherwise. A file that does not match its record is removed.

    Args:
        plan: the plan, which is that of the earlier run.
        work: the work folder.
        workers: threads that hash.

    Raises:
        CkptconvError: a file cannot be read.
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


def finished_paths(work: Path) -> list[Path]:
    """The complete files in a work folder: those that have a record. Nothing is read."""
    records = _records(work)
    names = [path.relative_to(records).with_suffix("") for path in records.rglob("*.json")]
    return sorted(work / name for name in names if (work / name).is_file())


def hand_over(own: Path, work: Path, out: OutFile) -> None:
    """Move a complete file and its record into another work folder.

    Args:
        own: the work folder that has the file.
        work: the work folder to move it to, which exists on the same disk.
        out: the file.

    Raises:
        CkptconvError: `work` cannot be written, or it was removed.
    """
    record, final = _record(work, out.name), work / out.name
    try:
        for folder in (_records(work), record.parent, final.parent):
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
    """The path of a file's record. It is next to the work folder, which holds only the model."""
    return _records(work) / f"{name}.json"


def _records(work: Path) -> Path:
    return work.with_name(f"{work.name}.done")
