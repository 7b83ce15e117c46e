"""merge: a checkpoint becomes a model folder, whole or not at all."""

from __future__ import annotations

import contextlib
import fcntl
import hashlib
import json
import os
import resource
import shutil
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ckptconv import assets, layout
from ckptconv.backends import open_checkpoint
from ckptconv.copy import HASH, Copied, buffer_memory, cannot_write, clean_records, copy, workers_for
from ckptconv.errors import CkptconvError
from ckptconv.plan import Options, Plan, make_plan
from ckptconv.version import __version__

MAX_MEMORY = 256 << 20
RECEIPT = "ckptconv.json"
_STAMP = ".plan"


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
    _check_target(target, given, overwrite)
    checkpoint = open_checkpoint(source, backend=backend, step=step, also=also)
    plan, folder = _plan(checkpoint, options or Options(**choices), config, base)
    if check_replicas:
        from ckptconv.replicas import require_equal

        require_equal(checkpoint)
    _check_target(target, [checkpoint.root], overwrite)
    _check_room(target, plan, folder)
    if events.on_plan:
        events.on_plan(plan)
    if dry_run:
        return Merged(plan, target, count, True, time.monotonic() - begun)
    with _work_folder(target, plan) as work:
        copied = copy(plan, work, count, events.on_bytes)
        try:
            names = _write_small_files(work, plan, copied, folder)
        except OSError as error:
            raise cannot_write(work, error) from error
        _publish(work, target, overwrite)
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
    if found is None and not _adapter_only(checkpoint):
        raise CkptconvError(
            "no config.json lies beside this checkpoint, so the model is not known",
            where=checkpoint.root,
            hint="name the folder of the base model: --config DIR",
        )
    return make_plan(
        checkpoint, found, options, based
    ), folder if folder is None or folder.is_dir() else folder.parent


def _adapter_only(checkpoint: Any) -> bool:
    return all(".lora_" in name for name in checkpoint.tensors)


def _check_target(target: Path, sources: list[Path], overwrite: bool) -> None:
    resolved = target.resolve()
    for source in sources:
        if resolved == source.resolve() or resolved in source.resolve().parents:
            raise CkptconvError(
                "the target holds the checkpoint itself", where=target, hint="choose another folder"
            )
    parent = _existing_parent(target)
    if not os.access(parent, os.W_OK):
        raise CkptconvError("no permission to write here", where=parent)
    if not target.exists():
        return
    if not target.is_dir():
        raise CkptconvError("the target is a file", where=target)
    names = [path.name for path in target.iterdir()]
    if not names:
        return
    if not overwrite:
        raise CkptconvError(
            "the target is there already",
            where=target,
            found=_listed(names),
            hint="--overwrite replaces it when the new one is whole",
        )
    if not any(
        name == "config.json" or name == "adapter_config.json" or name.endswith(".safetensors")
        for name in names
    ):
        raise CkptconvError(
            "the target is no model folder; it will not be replaced", where=target, found=_listed(names)
        )


def _listed(names: list[str]) -> str:
    return ", ".join(sorted(names)[:5]) + (f" and {len(names) - 5} more" if len(names) > 5 else "")


def _existing_parent(target: Path) -> Path:
    parent = target.resolve().parent
    while not parent.exists():
        parent = parent.parent
    if not parent.is_dir():
        raise CkptconvError("a part of the target's path is a file", where=parent)
    return parent


def _check_room(target: Path, plan: Plan, folder: Path | None) -> None:
    parent = _existing_parent(target)
    free = shutil.disk_usage(parent).free
    work = _work_path(target)
    begun = (
        sum(path.stat().st_blocks * 512 for path in work.rglob("*") if path.is_file()) if work.is_dir() else 0
    )
    small = sum(path.stat().st_size for path in assets.assets_of(folder)) if folder else 0
    wanted = plan.nbytes + small
    if wanted > free + begun:
        raise CkptconvError(
            "not enough room on the target's disk",
            where=parent,
            found=f"{free:,} bytes free",
            wanted=f"{wanted:,} bytes",
        )


def _work_path(target: Path) -> Path:
    resolved = target.resolve()
    return resolved.parent / f".{resolved.name}.ckptconv-partial"


@contextlib.contextmanager
def _work_folder(target: Path, plan: Plan) -> Iterator[Path]:
    """The folder beside the target in which a merge works. A killed run's is taken up if its plan is the same one.

    On an error or Ctrl-C it is removed; only a run that is killed leaves it behind.
    """
    work, stamp = _work_path(target), _fingerprint(plan)
    made = [parent for parent in (work.parent, *work.parent.parents) if not parent.exists()]
    try:
        work.mkdir(parents=True, exist_ok=True)
        lock = os.open(work / ".lock", os.O_RDWR | os.O_CREAT, 0o644)
    except OSError as error:
        raise CkptconvError(f"cannot be written: {error.strerror}", where=work.parent) from error
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as error:
        os.close(lock)
        raise CkptconvError("another merge is writing this target", where=target) from error
    try:
        if not (work / _STAMP).is_file() or (work / _STAMP).read_text() != stamp:
            _empty(work)
            (work / _STAMP).write_text(stamp)
        yield work
    except BaseException:
        shutil.rmtree(work, ignore_errors=True)
        for parent in made:
            with contextlib.suppress(OSError):
                parent.rmdir()
        raise
    finally:
        os.close(lock)


def _empty(work: Path) -> None:
    for path in work.iterdir():
        if path.name != ".lock":
            shutil.rmtree(path) if path.is_dir() else path.unlink()


def _fingerprint(plan: Plan) -> str:
    """What makes two plans the same: every header, and every source file's size and time of change."""
    digest = hashlib.sha256(__version__.encode())
    for out in plan.files:
        digest.update(out.name.encode() + out.header)
    files = {file for output in plan.outputs.values() for view in _views(output) for file in view.files}
    for file in sorted(files):
        stat = os.stat(file)
        digest.update(f"{file} {stat.st_size} {stat.st_mtime_ns}".encode())
    for key, output in sorted(plan.outputs.items()):
        for view in _views(output):
            digest.update(repr((key, output.dtype, view.chunks[:1])).encode())
        digest.update(repr(getattr(output.source, "scale", None)).encode())
    return digest.hexdigest()


def _views(output: Any) -> tuple[Any, ...]:
    from ckptconv.compute import views_of

    return views_of(output.source)


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


def receipt(plan: Plan, hashes: dict[str, str]) -> dict[str, Any]:
    """ckptconv.json: where every tensor came from, its hash, what was dropped and why. No path of this machine."""
    source = plan.checkpoint
    rank_of = source.rank_of
    tensors = {
        key: {
            "dtype": output.dtype,
            "shape": list(output.shape),
            "hash": hashes.get(key, ""),
            "from": list(output.origins),
            "stored": output.source.dtype,
            "ranks": sorted({rank_of[f] for view in _views(output) for f in view.files if f in rank_of}),
        }
        for key, output in plan.outputs.items()
    }
    return {
        "ckptconv": __version__,
        "hash": HASH,
        "source": {
            "backend": source.backend,
            "layout": source.layout,
            "folder": "/".join(source.root.resolve().parts[-3:]),
            "step": source.step,
            "role": source.role,
            "world_size": source.world_size,
            "mesh": [str(mesh) for mesh in source.meshes],
        },
        "base_model": (plan.config or {}).get("_name_or_path") or None,
        "dtype": {"policy": plan.dtype_said, "casts": [list(cast) for cast in plan.casts]},
        "bytes": plan.nbytes,
        "files": {file.name: file.nbytes for file in plan.files},
        "dropped": [{"name": d.name, "bytes": d.nbytes, "reason": d.reason} for d in plan.dropped],
        "skipped": [{"name": s.what, "bytes": s.nbytes, "reason": s.reason} for s in source.skipped],
        "notes": list(plan.notes),
        "tensors": tensors,
    }


def _publish(work: Path, target: Path, overwrite: bool) -> None:
    """Make the work folder the target by one rename; the old target is moved aside first and removed last."""
    (work / _STAMP).unlink(missing_ok=True)
    target = target.resolve()
    old = None
    try:
        _fsync_tree(work)
        if target.exists() and any(target.iterdir()):
            if not overwrite:
                raise CkptconvError("the target is there already: it appeared during the merge", where=target)
            old = target.parent / f".{target.name}.ckptconv-old-{os.getpid()}"
            os.replace(target, old)
        try:
            os.replace(work, target)
        except OSError:
            if old is not None:
                os.replace(old, target)
            raise
        (target / ".lock").unlink(missing_ok=True)  # only now: until the rename it keeps other merges out
        _fsync_folder(target.parent)
    except OSError as error:
        raise CkptconvError(
            f"the finished folder cannot be moved into place: {error.strerror}", where=target
        ) from error
    if old is not None:
        shutil.rmtree(old, ignore_errors=True)


def _fsync_tree(folder: Path) -> None:
    for path in folder.rglob("*"):
        if path.is_file() and not path.name.endswith(".safetensors"):  # those are synced as they finish
            handle = os.open(path, os.O_RDONLY)
            os.fsync(handle)
            os.close(handle)
    _fsync_folder(folder)


def _fsync_folder(folder: Path) -> None:
    handle = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
