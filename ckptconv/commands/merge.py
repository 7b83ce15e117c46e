"""merge: a checkpoint becomes a model folder, whole or not at all."""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import resource
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ckptconv import assets, layout
from ckptconv.backends import open_checkpoint
from ckptconv.commands.merge_base import needs_no_config, stated_base
from ckptconv.compute import views_of
from ckptconv.copy import Copied, buffer_memory, cannot_write, clean_records, copy, workers_for
from ckptconv.errors import CkptconvError
from ckptconv.plan import Options, Plan, make_plan
from ckptconv.receipt import RECEIPT, receipt
from ckptconv.target import check_room, check_target, publish, work_folder
from ckptconv.version import __version__

MAX_MEMORY = 256 << 20


@dataclass(frozen=True, slots=True)
class Merged:
    """What a merge did, or with `dry_run` would do.

    target: the model folder. nbytes: of weights. peak_memory: the process's largest resident size, in bytes.
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

    @property
    def buffers(self) -> int:
        return buffer_memory(self.workers)


@dataclass(frozen=True, slots=True)
class Events:
    """What a caller may want to hear while a merge runs."""

    on_plan: Callable[[Plan], None] | None = None
    on_bytes: Callable[[int, str], None] | None = None


def merge(
    source: str | Path,
    target: str | Path,
    *,
    options: Options | None = None,
    backend: str | None = None,
    step: int | None = None,
    also: Sequence[str | Path] = (),
    config: str | Path | None = None,
    base: str | Path | None = None,
    overwrite: bool = False,
    dry_run: bool = False,
    max_memory: int = MAX_MEMORY,
    workers: int | None = None,
    check_replicas: bool = False,
    events: Events = Events(),
    **choices: Any,
) -> Merged:
    """Convert the checkpoint in `source` into the model folder `target`.

    The target appears whole or not at all, and an existing one is only replaced with `overwrite`, at the end. A run
    that was killed leaves a work folder beside it, which the same command picks up again.
    choices: fields of `Options`, in place of one: merge(run, out, dtype="keep", lora="adapter").
    Raises CkptconvError for everything that is wrong with the input, before anything is written.
    """
    begun = time.monotonic()
    target = Path(target)
    count = workers_for(max_memory, workers)
    given = [Path(path) for path in (source, *also, config, base) if path is not None]
    check_target(target, given, overwrite)
    checkpoint = open_checkpoint(source, backend=backend, step=step, also=also)
    options = options or Options(**choices)
    base = base if base is not None else stated_base(checkpoint, options)
    check_target(target, [Path(base)] if base is not None else [], overwrite)
    plan, folder = _plan(checkpoint, options, config, base)
    if check_replicas:
        from ckptconv.replicas import require_equal

        require_equal(checkpoint)
    check_target(target, [checkpoint.root], overwrite)
    check_room(target, plan.nbytes + _small_bytes(folder))
    if events.on_plan:
        events.on_plan(plan)
    if dry_run:
        return Merged(plan, target, count, True, time.monotonic() - begun)
    with work_folder(target, _fingerprint(plan)) as work:
        copied = copy(plan, work, count, events.on_bytes)
        try:
            names = _write_small_files(work, plan, copied, folder)
        except OSError as error:
            raise cannot_write(work, error) from error
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
    )


def _peak_memory() -> int:
    """The largest resident size of this process, in bytes. ru_maxrss would count a large parent's before exec."""
    with contextlib.suppress(OSError, IndexError, ValueError):
        status = Path("/proc/self/status").read_text()
        return int(status.split("VmHWM:")[1].split()[0]) * 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)


def plan_for(
    checkpoint: Any, options: Options, config: str | Path | None = None, base: str | Path | None = None
) -> Plan:
    """The plan of an opened checkpoint, as `merge` would run it."""
    return _plan(checkpoint, options, config, base)[0]


def _plan(checkpoint: Any, options: Options, config: Any, base: Any) -> tuple[Plan, Path | None]:
    """The plan, and the folder that the assets come from."""
    based = open_checkpoint(base, backend="huggingface") if base is not None else None
    folder = Path(config) if config is not None else based.root if based is not None else checkpoint.assets
    found = assets.read_config(folder) if folder is not None else None
    if found is None and not needs_no_config(checkpoint):
        raise CkptconvError(
            "no config.json lies beside this checkpoint, so the model is not known",
            where=checkpoint.root,
            hint="name the folder of the base model: --config DIR",
        )
    return make_plan(
        checkpoint, found, options, based
    ), folder if folder is None or folder.is_dir() else folder.parent


def _fingerprint(plan: Plan) -> str:
    """What makes two plans the same: every header, and every source file's size and time of change."""
    digest = hashlib.sha256(__version__.encode())
    for out in plan.files:
        digest.update(out.name.encode() + out.header)
    files = {
        file for output in plan.outputs.values() for view in views_of(output.source) for file in view.files
    }
    for file in sorted(files):
        stat = os.stat(file)
        digest.update(f"{file} {stat.st_size} {stat.st_mtime_ns}".encode())
    for key, output in sorted(plan.outputs.items()):
        for view in views_of(output.source):
            digest.update(repr((key, output.dtype, view.chunks[:1])).encode())
        digest.update(repr(getattr(output.source, "scale", None)).encode())
    return digest.hexdigest()


def _small_bytes(folder: Path | None) -> int:
    """What the files beside the weights will take."""
    return sum(path.stat().st_size for path in assets.assets_of(folder)) if folder else 0


def _write_small_files(work: Path, plan: Plan, copied: Copied, folder: Path | None) -> list[str]:
    clean_records(work)
    names = []
    if folder is not None and not plan.is_adapter:
        names = assets.copy_assets(folder, work)
    elif folder is not None:
        names = [n for n in assets.copy_assets(folder, work) if _keep_for_adapter(work, n)]
    if plan.config is not None:
        assets.write_config(work, plan.config, folder)
    for name, data in plan.texts.items():
        (work / name).write_text(json.dumps(data, indent=2) + "\n", encoding="utf-8")
    main = [file for file in plan.files if "/" not in file.name]
    index = layout.index(main, {key: plan.outputs[key] for file in main for key in file.offsets})
    if index is not None and not plan.is_adapter:
        (work / layout.INDEX).write_bytes(index)
    (work / RECEIPT).write_text(json.dumps(receipt(plan, copied.hashes), indent=1) + "\n", encoding="utf-8")
    return names


def _keep_for_adapter(work: Path, name: str) -> bool:
    """An adapter folder carries the tokenizer, but not the base model's generation settings."""
    if name == "generation_config.json":
        (work / name).unlink()
        return False
    return True
