"""verify: is it right? One target, with or without a reference, in layers.

Read in bounded memory, loaded never.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Sequence
from pathlib import Path

from ckptconv.commands.verify import integrity, loads, receipt, structure, values
from ckptconv.commands.verify.records import Layer, Problem, Verified
from ckptconv.commands.verify.sides import Side, is_model_folder, open_side
from ckptconv.errors import CkptconvError
from ckptconv.replicas import deviations


def verify(
    target: str | Path,
    *,
    against: str | Path | None = None,
    atol: float = 0.0,
    rtol: float = 0.0,
    backend: str | None = None,
    step: int | None = None,
    also: Sequence[str | Path] = (),
    config: str | Path | None = None,
    dtype: str = "auto",
    workers: int | None = None,
    on_bytes: Callable[[int, int], None] | None = None,
) -> Verified:
    """Check a model folder or a trainer's checkpoint, against a reference of either kind or on its own.

    Without a reference the target is held against the class that its config names. Values are compared bit
    for bit, or within atol + rtol * |reference|. A trainer's checkpoint is taken as `merge` would write it,
    in the dtypes of the other side; with `dtype` in those of that policy. backend, step, also and config
    belong to the target, or to the reference where the target is a model folder. on_bytes(done, all): bytes
    read.

    Raises CkptconvError where there is no answer: nothing to read, or a checkpoint that cannot be planned.
    """
    begun = time.monotonic()
    flags = {"backend": backend, "step": step, "also": also, "config": config, "dtype": dtype}
    to_reference = against is not None and is_model_folder(Path(target))
    try:
        ours = open_side(target, **({} if to_reference else flags))  # type: ignore[arg-type]
    except CkptconvError:
        broken = _broken_folder(Path(target))
        if broken is None:
            raise
        layers = (broken,)
        return Verified(
            Path(target), None if against is None else Path(against), layers, seconds=time.monotonic() - begun
        )
    theirs = None if against is None else open_side(against, **(flags if to_reference else {}))  # type: ignore[arg-type]
    found = None if theirs is None else structure.match(ours, theirs)
    layers_ = (
        loads.alone(ours)
        if theirs is None or found is None
        else structure.against_reference(ours, theirs, found)
    )
    tasks = values.tasks_for(ours, theirs, found)
    meter = _Meter(_all_bytes(ours, theirs, tasks), on_bytes)
    layers_ += _replicas(ours, theirs, workers, meter)
    layers_.append(_integrity(ours, theirs, workers, meter))
    values.read(tasks, atol=atol, rtol=rtol, workers=workers, on_read=meter.add)
    tallies = [task.tally for task in tasks]
    differences = tuple(d for d in (tally.difference() for tally in tallies) if d is not None)
    if theirs is not None:
        layers_.append(values.values_layer(tasks, differences, atol, rtol))
    layers_.append(values.sanity_layer(tasks))
    compared = sum(tally.compared for tally in tallies)
    return Verified(
        target=Path(target),
        against=None if against is None else Path(against),
        layers=tuple(layers_),
        differences=differences,
        tensors=len(ours.tensors),
        compared=compared,
        equal=compared - len(differences),
        read=meter.done,
        seconds=time.monotonic() - begun,
    )


class _Meter:
    """Bytes done of all, told to the caller from whichever thread read them."""

    def __init__(self, total: int, on_bytes: Callable[[int, int], None] | None) -> None:
        self.done, self._total, self._on_bytes, self._lock = 0, total, on_bytes, threading.Lock()

    def add(self, nbytes: int) -> None:
        with self._lock:
            self.done += nbytes
            if self._on_bytes:
                self._on_bytes(self.done, max(self._total, self.done))


def _all_bytes(ours: Side, theirs: Side | None, tasks: Sequence[values.Task]) -> int:
    total = sum(task.nbytes for task in tasks)
    for side in (ours, theirs):
        if side is not None and side.planned:
            total += sum(tensor.replica_bytes for tensor in side.checkpoint.tensors.values())
            total += sum(Path(path).stat().st_size for path in integrity.zip_files(side.checkpoint))
        elif side is not None:
            total += sum(path.stat().st_size for path in receipt.receipt_files(side.checkpoint.root))
    return total


def _replicas(ours: Side, theirs: Side | None, workers: int | None, meter: _Meter) -> list[Layer]:
    """Layer replicas, where a side has any."""
    problems, copies, tensors = [], 0, 0
    for side in (ours, theirs):
        if side is None or not side.planned:
            continue
        held = [tensor for tensor in side.checkpoint.tensors.values() if tensor.replicas]
        copies += sum(len(tensor.replicas) for tensor in held)
        tensors += len(held)
        for item in deviations(side.checkpoint, workers=workers, on_read=meter.add) if held else ():
            what = f"rank {item.rank}'s copy differs from rank {item.used}'s in {item.count:,} elements"
            where = f"first at {list(item.index)}, in {item.file}"
            problems.append(Problem(item.name, what, where, f"rank {item.used}'s copy is what merge takes"))
    if not copies:
        return []
    found = f"{copies:,} copies of {tensors:,} tensors" + (f", {len(problems):,} differ" if problems else "")
    proves = "ranks that store the same part of a tensor store the same bytes"
    return [Layer("replicas", not problems, proves, found, tuple(problems))]


def _integrity(ours: Side, theirs: Side | None, workers: int | None, meter: _Meter) -> Layer:
    found = integrity.Found()
    for side, word in ((ours, ""), (theirs, "the reference: ")):
        if side is None:
            continue
        if side.planned:
            part = integrity.check_rank_files(side.checkpoint, workers, meter.add)
        else:
            part, places = integrity.check_folder(side.checkpoint.root)
            if side is ours or receipt.receipt_files(side.checkpoint.root):  # a reference need not have one
                part.add(receipt.check_receipt(side.checkpoint.root, places, workers, meter.add))
        part.seen = [f"{word}{text}" for text in part.seen]
        part.notes = [f"{word}{text}" for text in part.notes]
        found.add(part)
    return integrity.integrity_layer(found)


def _broken_folder(path: Path) -> Layer | None:
    """Layer integrity for a model folder that cannot be opened because its own files are wrong."""
    if not is_model_folder(path):
        return None
    found, _ = integrity.check_folder(path)
    return integrity.integrity_layer(found) if found.problems else None
