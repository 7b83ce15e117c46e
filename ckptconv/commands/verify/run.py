"""verify: checks one target in layers, with or without a reference.

Tensors are read in bounded memory. The model is loaded only if its behaviour is to be checked.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

from ckptconv.commands.packages import missing_of, require_packages
from ckptconv.commands.progress import Meter, OnProgress, teller
from ckptconv.commands.verify import integrity, loads, receipt, structure, trained, values, whole
from ckptconv.commands.verify.configs import config_layer
from ckptconv.commands.verify.diagnose import looks_like
from ckptconv.commands.verify.reads import misread_by, reads_layer
from ckptconv.commands.verify.records import PROMPT, Difference, Layer, Problem, Verified
from ckptconv.commands.verify.sides import (
    Beside,
    Side,
    is_model_folder,
    open_side,
    open_sides,
    under_hub_names,
)
from ckptconv.commands.verify.small import files_layer
from ckptconv.commands.verify.strange import sanity_layer
from ckptconv.errors import CkptconvError, Kind
from ckptconv.hub.source import fetched, local_or_hub
from ckptconv.plan import Dtype, Options
from ckptconv.read.replicas import deviations
from ckptconv.tensors.look import is_far, size_of
from ckptconv.tensors.source_spec import SourceSpec, Step, Where, spec_of


def verify(
    target: Where,
    *,
    against: Where | None = None,
    atol: float = 0.0,
    rtol: float = 0.0,
    base: str | Path | None = None,
    logits: bool = False,
    prompt: str = PROMPT,
    device: str = "cpu",
    python: str | Path | None = None,
    backend: str | None = None,
    step: Step | None = None,
    also: Sequence[str | Path] = (),
    config: str | Path | None = None,
    dtype: Dtype = "auto",
    workers: int | None = None,
    revision: str | None = None,
    on_progress: OnProgress | None = None,
    bars: bool = False,
) -> Verified:
    """Check a model folder or a trainer's checkpoint, on its own or against a reference of either kind.

    Without a reference the target is checked against the class that its config names. A trainer's checkpoint is taken
    as `merge` would write it, in the dtypes of the other side.

    Args:
        target: a model folder, a trainer's folder, a repository ("org/name"), which is downloaded into
            huggingface_hub's cache, or a SourceSpec.
        against: the reference, of the same kinds.
        atol: the allowed absolute difference.
        rtol: the allowed difference relative to the reference. Values may differ by atol + rtol * abs(reference); if both
            are 0, they must be equal bit for bit.
        base: the model that training started from; a target that equals it is untrained. For an adapter that is stored
            without its model, the base model.
        logits: also load the model with transformers and run `prompt`, the two sides one after the other. A trainer's
            checkpoint is merged into a temporary folder for this.
        prompt: the text to run.
        device: where to run it: "cpu", "cuda", "cuda:1" or "mps".
        python: the interpreter of another environment with torch and transformers, in which the target is run as well.
        backend: see `SourceSpec`. Like `step`, `also` and `config` it belongs to the target, or to the reference if the
            target is a model folder.
        step: see `SourceSpec`.
        also: see `SourceSpec`.
        config: a folder or a repository with the model's config.json.
        dtype: the dtype policy for a trainer's checkpoint; see `Options`. "auto" takes the dtypes of the other side.
        workers: threads; the number of cores and one more when omitted.
        revision: the revision of the reference, or of the target if there is no reference.
        on_progress: called with a `Progress` while it runs, from worker threads.
        bars: whether huggingface_hub may draw its own bars on stderr.

    Returns:
        Every layer of checks with its answer, and every tensor that differs.

    Raises:
        CkptconvError: the question cannot be answered: there is nothing to read, or a checkpoint cannot be planned.

    Example:
        >>> found = ckptconv.verify("model", against="checkpoints/run")
        >>> found.ok, found.compared, found.equal
        (True, 290, 290)
    """
    begun = time.monotonic()
    if logits:
        require_packages("verify --logits", "torch", "transformers", "accelerate")
    if python is not None and not logits:
        raise CkptconvError(
            "--python runs the model in another environment, and --logits is not given",
            hint="add --logits, or omit --python",
            kind=Kind.USAGE,
        )
    Options(dtype=dtype)  # an invalid dtype is refused before anything is downloaded
    reference = None if against is None else _spec(against, revision)
    asked = _spec(target, revision if against is None else None)
    say = teller(on_progress, "download")
    here = fetched(asked, say, bars)
    there = None if reference is None else fetched(reference, say, bars)
    asked = _shown(asked, here, logits)
    reference = None if reference is None or there is None else _shown(reference, there, logits)
    if there is not None and is_model_folder(here.path):
        there = _with(there, backend, step, also)
    else:
        here = _with(here, backend, step, also)
    fetch = partial(local_or_hub, say=say, bars=bars)
    beside = Beside(
        None if config is None else fetch(config, weights=False), dtype, None if base is None else fetch(base)
    )
    opened = open_sides(here, there, beside)
    if isinstance(opened, CkptconvError):
        broken = _broken_folder(here.path)
        if broken is None:
            raise opened
        return _result(asked, reference, [broken], begun)
    ours, theirs = opened
    beginning = None if beside.base is None else under_hub_names(open_side(SourceSpec(beside.base)))
    found = None if theirs is None else structure.match(ours, theirs)
    if theirs is None and not ours.is_adapter and not missing_of("torch", "transformers"):
        teller(on_progress, "load")("torch and transformers, to build the class that config.json names")
    if theirs is None or found is None:
        layers = loads.alone(ours)
        layers += whole.beside_the_class(ours, layers)
    else:
        layers = structure.against_reference(ours, theirs, found)
        layers += whole.beside_a_reference(ours, layers)
        layers += config_layer(ours, theirs)
    tasks = values.tasks_for(ours, theirs, found)
    also_read = [] if beginning is None else trained.tasks_for(ours, beginning, tasks)
    meter = Meter(on_progress, "read", _all_bytes(ours, theirs, [*tasks, *also_read]))
    layers += _replicas(ours, theirs, workers, meter)
    layers.append(_integrity(ours, theirs, workers, meter))
    values.read([*tasks, *also_read], atol=atol, rtol=rtol, workers=workers, on_read=meter.add)
    differences = _differences(tasks, workers, meter)
    compared = 0
    if theirs is not None:
        layers.append(values.values_layer(tasks, differences, atol, rtol))
        if layers[-1].ok is not None:
            compared = sum(task.tally.compared for task in tasks)
    shapes_agree = any(layer.name in ("shapes", "model") and layer.ok for layer in layers)
    layers.append(sanity_layer(tasks, ours.ties(()), may_be_empty=shapes_agree and not ours.is_adapter))
    if beginning is not None:
        layers.append(trained.trained_layer(tasks, also_read, ours.is_adapter))
    others = misread_by(ours)
    layers += reads_layer(ours, others)
    files = files_layer(ours)
    layers += files
    if logits and any(layer.ok is False for layer in layers if layer.name in ("loads", "names", "shapes")):
        why = "skipped: the tensors are not those of the model, so that it is not run"
        layers.append(Layer("behaviour", None, "", why))
    elif logits:
        from ckptconv.commands.verify.behaviour import behaviour_layer

        running = teller(on_progress, "run")
        layers += behaviour_layer(ours, theirs, prompt, device, bool(atol or rtol), running, python)
    return _result(
        asked,
        reference,
        layers,
        begun,
        differences=differences,
        tensors=len(ours.tensors),
        compared=compared,
        equal=compared - len(differences),
        read=meter.done,
        misread_by=tuple(
            dict.fromkeys(each.reader for each in others if each.silent and not each.any_folder)
        ),
        is_edited=any(layer.ok is None for layer in files),
    )


def _spec(source: Where, revision: str | None) -> SourceSpec:
    """The record for one side. A SourceSpec keeps its own revision."""
    return (
        source if isinstance(source, SourceSpec) and revision is None else spec_of(source, revision=revision)
    )


def _with(spec: SourceSpec, backend: str | None, step: Step | None, also: Sequence[str | Path]) -> SourceSpec:
    """The record of a side with the user's keywords; a SourceSpec that has its own is refused."""
    if backend is None and step is None and not also:
        return spec
    if spec != SourceSpec(spec.path):
        return spec_of(spec, backend, step, also)  # refuses
    return spec_of(spec.path, backend, step, also)


def _result(
    target: SourceSpec, against: SourceSpec | None, layers: list[Layer], begun: float, **facts: Any
) -> Verified:
    """The result; `begun` is the monotonic time in seconds at which the verification started."""
    reference = None if against is None else against.path
    return Verified(target.path, reference, tuple(layers), seconds=time.monotonic() - begun, **facts)


def _differences(tasks: Sequence[values.Task], workers: int | None, meter: Meter) -> tuple[Difference, ...]:
    """Every tensor that differs, with the likely cause."""
    if not any(task.tally.count for task in tasks):
        return ()
    forms = looks_like(tasks, workers, meter.add)
    found = [d for d in (task.tally.difference() for task in tasks) if d is not None]
    return tuple(
        replace(d, looks_like=forms[d.name].looks_like, equals=forms[d.name].equals) if d.name in forms else d
        for d in found
    )


def _shown(asked: SourceSpec, found: SourceSpec, logits: bool) -> SourceSpec:
    """The record to show for a side: the place in a store, or what the user wrote.

    Raises:
        CkptconvError: it is a model folder in a store, and the model is to be run.
    """
    if not is_far(found.path):
        return asked
    if logits and is_model_folder(found.path):
        raise CkptconvError(
            "--logits runs the model, and transformers opens the files of a model folder on a disk",
            where=found.path,
            hint="copy it to a disk and name the copy, or omit --logits",
            kind=Kind.UNSUPPORTED,
        )
    return found


def _all_bytes(ours: Side, theirs: Side | None, tasks: Sequence[values.Task]) -> int:
    """The bytes that will be read, for the progress bar."""
    total = sum(task.nbytes for task in tasks)
    for side in (ours, theirs):
        if side is not None and not side.is_folder:
            total += sum(tensor.replica_bytes for tensor in side.checkpoint.tensors.values())
            total += sum(size_of(path) for path in integrity.zip_files(side.checkpoint))
        elif side is not None:
            total += sum(size_of(path) for path in receipt.receipt_files(side.checkpoint.root))
    return total


def _replicas(ours: Side, theirs: Side | None, workers: int | None, meter: Meter) -> list[Layer]:
    """Layer replicas, if a side has any."""
    problems, copies, tensors = [], 0, 0
    for side in (ours, theirs):
        if side is None or not side.of_trainer:
            continue
        held = [tensor for tensor in side.checkpoint.tensors.values() if tensor.replica_bytes]
        copies += sum(bool(copy.numel) for tensor in held for _, copy in tensor.replicas)
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


def _integrity(ours: Side, theirs: Side | None, workers: int | None, meter: Meter) -> Layer:
    """Layer integrity of both sides."""
    found = integrity.Found()
    for side, word in ((ours, ""), (theirs, "the reference: ")):
        if side is None:
            continue
        if not side.is_folder:
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
    """Layer integrity of a model folder that cannot be opened because its files are wrong; None if they are sound."""
    if not is_model_folder(path):
        return None
    found, _ = integrity.check_folder(path)
    return integrity.integrity_layer(found) if found.problems else None
