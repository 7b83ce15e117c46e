"""merge: converts a checkpoint into a model folder, which appears completely or not at all."""

from __future__ import annotations

import contextlib
import os
import resource
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

from ckptconv.backends import open_checkpoint
from ckptconv.commands.display import Displayed
from ckptconv.commands.merge import in_place, small_files
from ckptconv.commands.merge.beside_copy import Asked
from ckptconv.commands.merge.notes import notes_of
from ckptconv.commands.merge.sources import fingerprint, require_honest_receipts, sources_of, states_of
from ckptconv.commands.merge.zero_updates import zero_updates
from ckptconv.commands.planning import plan_and_assets, require_base
from ckptconv.commands.progress import Meter, OnProgress, teller
from ckptconv.copy.run import Copied, buffer_memory, copy, workers_for
from ckptconv.errors import CkptconvError, Kind, cannot_write
from ckptconv.hub.source import fetched, local_or_hub
from ckptconv.plan import Dtype, Layout, LoraMode, Mtp, Options, Plan, options_of
from ckptconv.publish.target import check_room, check_target, publish
from ckptconv.publish.work import work_folder
from ckptconv.read.low_precision import require_casts
from ckptconv.read.replicas import require_equal
from ckptconv.storage import on_disk
from ckptconv.tensors.file_state import require_unchanged
from ckptconv.tensors.look import exists, is_dir, is_far
from ckptconv.tensors.source_spec import SourceSpec, Step, Where, as_path, spec_of
from ckptconv.tensors.stored_file import far_of

MAX_MEMORY = 256 << 20
_OF_AHEAD = 4  # a quarter of the memory is for what is fetched from stores before it is read
OnBytes = Callable[[int, str], None]  # bytes written, the file's name


@dataclass(frozen=True, slots=True, repr=False)
class Merged(Displayed):
    """The result of a merge, or with `dry_run` what it would do.

    Args:
        plan: every tensor that was written, and where it came from. `plan.nbytes` are the bytes of the weights.
        target: the model folder.
        workers: threads, or tasks at a time.
        dry_run: True if nothing was written; the fields below are then empty.
        seconds: the time from the call to the end.
        read: bytes read.
        resumed: files that a killed run had written already.
        assets: files that were copied next to the weights.
        peak_memory: the process's largest resident size, in bytes.
        checked: tensors that were read again and were equal to the source.
        left: files next to the weights that were not copied, since they are not known to belong to a model.
        notes: findings of the copy that only a person can judge: NaN, files that a killed run lost.
        ahead: memory for what was fetched from stores before it was read, in bytes.
    """

    plan: Plan
    target: Path
    workers: int
    dry_run: bool
    seconds: float = 0.0
    read: int = 0
    resumed: tuple[str, ...] = ()
    assets: tuple[str, ...] = ()
    peak_memory: int = 0
    checked: int = 0
    left: tuple[str, ...] = ()
    notes: tuple[str, ...] = ()
    ahead: int = 0

    @property
    def summary(self) -> str:
        """What was written in one line."""
        word = "would write" if self.dry_run else "wrote"
        tensors, files = len(self.plan.outputs), len(self.plan.files)
        return f"{word} {self.target}: {tensors:,} tensors, {self.plan.nbytes:,} bytes in {files} files"

    @property
    def buffers(self) -> int:
        return buffer_memory(self.workers) + self.ahead


def merge(
    source: Where,
    target: str | Path,
    *,
    dtype: Dtype | None = None,
    lora: LoraMode | None = None,
    lora_alpha: float | None = None,
    layout: Layout | None = None,
    max_shard_size: int | str | None = None,
    mtp: Mtp | None = None,
    keep_config: bool | None = None,
    options: Options | None = None,
    backend: str | None = None,
    step: Step | None = None,
    also: Sequence[str | Path] = (),
    revision: str | None = None,
    config: str | Path | None = None,
    base: str | Path | None = None,
    overwrite: bool = False,
    dry_run: bool = False,
    verify: bool = False,
    check_replicas: bool = False,
    resume: bool = True,
    include: Sequence[str] = (),
    max_memory: int = MAX_MEMORY,
    workers: int | None = None,
    ray: str | None = None,
    on_plan: Callable[[Plan], None] | None = None,
    on_progress: OnProgress | None = None,
    bars: bool = False,
) -> Merged:
    """Convert a checkpoint into a Hugging Face model folder.

    The target appears whole or not at all, and an existing one is only replaced with `overwrite`, at the end. A run
    that was stopped (kill, Ctrl-C) leaves its complete files in a folder next to it, and the same call picks them up.

    Args:
        source: a run, step, role or model folder, a repository ("org/name"), or a SourceSpec.
        target: the model folder to write.
        dtype, lora, lora_alpha, layout, max_shard_size, mtp, keep_config: see `Options`, which has the defaults.
        options: these choices as one record, in place of the keywords.
        backend, step, also, revision: see `SourceSpec`.
        config: a folder or a repository with config.json and the tokenizer, where they are not next to the checkpoint.
        base: the base model of LoRA tensors that are stored alone, a folder or a repository.
        overwrite: whether an existing target is replaced.
        dry_run: plan, and write nothing.
        verify: read everything that was written again, with safetensors' own reader, and compare it with the source
            before the folder appears.
        check_replicas: read the other ranks' copies too, and compare their bytes.
        resume: take over the complete files of a run that was stopped, and keep them on Ctrl-C. False begins anew.
        include: globs of further files next to the checkpoint's config.json to copy. Without them only files that are known
            to belong to a model are copied: tokenizer, processor, templates, custom code, licence.
        max_memory: the bound on all buffers together, in bytes.
        workers: threads; the number of cores and one more when omitted.
        ray: a Ray cluster to copy on in place of this machine, "auto" or "HOST:PORT". workers and max_memory are then
            those of one task.
        on_plan: called with the plan, before anything is written; what it raises stops the merge.
        on_progress: called with a `Progress` while it runs, from worker threads.
        bars: whether huggingface_hub may draw its own bars on stderr.

    Returns:
        The plan, and what was written.

    Raises:
        CkptconvError: for everything that is wrong with the input, before anything is written.

    Example:
        >>> merged = ckptconv.merge("checkpoints/run", "model", dtype="bf16")
        >>> merged.target, len(merged.plan.outputs)
        (PosixPath('model'), 290)
    """
    begun = time.monotonic()
    spec = spec_of(source, backend, step, also, revision)
    options = options_of(
        options,
        dtype=dtype,
        lora=lora,
        lora_alpha=lora_alpha,
        layout=layout,
        max_shard_size=max_shard_size,
        mtp=mtp,
        keep_config=keep_config,
    )
    target = on_disk(target)
    count = workers_for(max_memory, workers)
    engine = _engine(ray)
    say = teller(on_progress, "download")
    spec = fetched(spec, say, bars)
    fetch = partial(local_or_hub, say=say, bars=bars)
    config, base = config and fetch(config, weights=False), base and fetch(base)
    if ray is not None and any(is_far(path) for path in (spec.path, *spec.also, config, base)):
        raise CkptconvError(
            "--ray reads from disks that all nodes share, and not from an object store",
            where=spec.path,
            hint="omit --ray; one machine with a fast network is enough to read a store",
            kind=Kind.UNSUPPORTED,
        )
    if ray is not None:  # the nodes have their own working folders
        also = [_absolute(path) for path in spec.also]
        spec = SourceSpec(_absolute(spec.path), spec.backend, spec.step, also)
        base = base and _absolute(base)
    if not exists(spec.path) and is_dir(target):
        raise CkptconvError(
            "no such folder",
            where=spec.path,
            hint=f"are the two swapped? The checkpoint comes first: ckptconv merge {target} {spec.path}",
            kind=Kind.NOT_A_CHECKPOINT,
        )
    given = [as_path(path) for path in (spec.path, *spec.also, config, base) if path is not None]
    fills = config is None and base is None and in_place.may_be_added_to(target, given)
    check_target(target, given, overwrite or fills)
    checkpoint = open_checkpoint(spec)
    own_folder = config is None and base is None and in_place.is_own_folder(target, checkpoint)
    overwrite = overwrite or (fills and own_folder)
    if own_folder:
        options = replace(options, keep_config=True)
    if base is None:
        require_base(checkpoint, options)
    plan, folder = plan_and_assets(checkpoint, options, config, base)
    own = (checkpoint.assets or checkpoint.root) if base is not None and config is None else None
    own = own or checkpoint.tokenizer
    small = (
        in_place.all_files(plan, target)
        if own_folder
        else small_files.choose(plan, folder, own, include, options.keep_config)
    )
    plan = replace(
        plan,
        notes=(*plan.notes, *small.notes, *zero_updates(checkpoint)),
        config_summary="; ".join(filter(None, (plan.config_summary, *small.summaries))),
    )
    require_equal(checkpoint, everything=check_replicas)
    require_casts(checkpoint, workers=count)
    check_target(target, [checkpoint.root], overwrite)
    check_room(target, plan.nbytes + small.nbytes)
    if on_plan:
        on_plan(plan)
    if dry_run:
        return Merged(plan, target, count, True, time.monotonic() - begun, left=small.left)
    sources, beside = sources_of(plan), states_of(small)
    stores = {far.group for file in sources if (far := far_of(file)) is not None}
    ahead = max_memory // _OF_AHEAD if stores else 0
    if stores:
        engine, count = partial(copy, ahead=ahead), min(count, workers_for(max_memory - ahead, workers))
    for store in stores:
        store.budget = ahead // len(stores)
    require_honest_receipts(sources, count, teller(on_progress, "hash"))
    with (
        work_folder(target, fingerprint(plan, sources), resume) as work,
        Asked(plan, checkpoint.root).running() as asked,
    ):
        check_target(
            target, [], overwrite
        )  # another merge may have ended between the first look and the lock
        require_unchanged(sources)
        try:
            copied = engine(plan, work, count, Meter(on_progress, "write", plan.nbytes).add)
        except CkptconvError:
            require_unchanged(sources)  # a file that was replaced meanwhile looks like a damaged one
            raise
        try:
            names = small_files.write(work, plan, copied, small)
        except OSError as error:
            raise cannot_write(work, error) from error
        require_unchanged({**sources, **beside})  # after the last byte, whatever engine read it
        checked = _check(plan, work, count, on_progress) if verify else 0
        told = asked.notes()
        publish(work, target, overwrite)
    return Merged(
        plan=plan,
        target=target,
        workers=count,
        dry_run=False,
        seconds=time.monotonic() - begun,
        read=copied.read,
        resumed=copied.resumed,
        assets=tuple(names),
        peak_memory=_peak_memory(),
        checked=checked,
        left=small.left,
        notes=(*notes_of(copied, plan), *told),
        ahead=ahead,
    )


def _check(plan: Plan, work: Path, workers: int, on_progress: OnProgress | None) -> int:
    from ckptconv.commands.merge.check import check_written

    nbytes = sum(output.nbytes for output in plan.outputs.values())  # without the headers
    return check_written(plan, work, workers, Meter(on_progress, "check", nbytes).add)


def _engine(ray: str | None) -> Callable[[Plan, Path, int, OnBytes | None], Copied]:
    """The engine that runs the plan: threads on this machine, or the Ray cluster at an address."""
    if ray is None:
        return copy
    from ckptconv.engines.on_ray import on

    return on(ray)


def _absolute(path: str | Path) -> Path:
    return Path(os.path.abspath(path))


def _peak_memory() -> int:
    """The largest resident size of this process, in bytes. ru_maxrss would include that of a large parent before exec."""
    with contextlib.suppress(OSError, IndexError, ValueError):
        status = Path("/proc/self/status").read_text()
        return int(status.split("VmHWM:")[1].split()[0]) * 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)
