"""Bytes on disk -> Checkpoint. One file a layout; `open_checkpoint` finds the one whose signs are there."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from importlib import import_module
from pathlib import Path
from types import ModuleType

from ckptconv.backends.huggingface import read as huggingface
from ckptconv.backends.runs import Place, is_step, latest_step, locate, steps_of
from ckptconv.errors import CkptconvError, Kind
from ckptconv.tensors.checkpoint import Checkpoint
from ckptconv.tensors.file_state import stamps_under
from ckptconv.tensors.source_spec import Step, Where, spec_of

# In the order in which their signs are looked for: a trainer's shards come before the Hugging Face files beside them.
BACKENDS = {
    "fsdp": "fsdp.read",
    "megatron_fsdp": "megatron.fsdp",
    "megatron": "megatron.torch_dist",
    "megatron_legacy": "megatron.rank_files",
    "dcp": "dcp.read",
    "deepspeed": "deepspeed.read",
    "hf_shards": "dcp.hf_shards",
    "huggingface": "huggingface.read",
}


def open_checkpoint(
    source: Where,
    *,
    backend: str | None = None,
    step: Step | None = None,
    also: Sequence[str | Path] = (),
) -> Checkpoint:
    """The checkpoint in a folder (run, step or role folder) or one file of weights, read from metadata alone.

    Args:
        source: the folder or file, or a SourceSpec.
        backend, step, also: see `SourceSpec`.

    Raises:
        CkptconvError: where there is no checkpoint, or only part of one, or one that contradicts itself.
    """
    spec = spec_of(source, backend, step, also)
    return _open(spec.path, spec.backend, spec.step, spec.also)


def _open(root: Path, backend: str | None, step: Step | None, also: Sequence[Path]) -> Checkpoint:
    if not root.exists():
        raise CkptconvError("no such folder", where=root, kind=Kind.NOT_A_CHECKPOINT)
    if backend is not None and backend not in BACKENDS:
        raise CkptconvError(f"unknown backend {backend!r}", wanted=", ".join(BACKENDS), kind=Kind.USAGE)
    if not root.is_dir():
        return huggingface.read_file(root)
    if step == "latest":
        step = latest_step(root)
    elif backend is None and not is_step(root) and steps_of(root) and huggingface.is_mine(root):
        backend = huggingface.NAME  # the run's own model, which it ended with, before the shards of a step
    for module in _modules(backend):
        place = locate(root, module.is_mine, step)
        if place is not None:
            others = [_other(folder, module, place) for folder in also]
            before = stamps_under([place.folder, *others], leave=is_step)
            try:
                return replace(module.read(place, others), stamps=before)
            except CkptconvError as error:
                raise error.within(kind=Kind.DAMAGED) from error
            except OSError as error:
                raise CkptconvError(
                    f"cannot be read: {error.strerror or error}",
                    where=error.filename or place.folder,
                    kind=Kind.ENVIRONMENT,
                ) from error
    raise _nothing(root, backend, step)


def _modules(backend: str | None) -> list[ModuleType]:
    return [
        import_module(f"ckptconv.backends.{BACKENDS[name]}") for name in ([backend] if backend else BACKENDS)
    ]


def _other(folder: str | Path, module: ModuleType, first: Place) -> Path:
    """The same step and role in another folder."""
    root = Path(folder)
    if not root.is_dir():
        raise CkptconvError("no such folder", where=root, hint="--also names a folder with rank files")
    if not module.is_mine(root) and (steps := steps_of(root)):
        if first.step not in steps:
            raise _another_step(root, first.step)
        root = steps[first.step]
    if first.role and (root / first.role).is_dir():
        root = root / first.role
    place = locate(root, module.is_mine)
    if place is None:
        raise CkptconvError("no rank files here", where=root, hint="--also names a folder with rank files")
    if place.step is not None and place.step != first.step:
        raise _another_step(root, first.step)
    return place.folder


def _another_step(root: Path, step: int | None) -> CkptconvError:
    return CkptconvError(
        f"step {step} is not in this folder", where=root, hint="--also names the same step on another disk"
    )


def _unfinished(run: Path, steps: dict[int, Path], backend: str | None) -> CkptconvError:
    """The newest step of a run holds no weights: the save was cut off, or its files are elsewhere."""
    newest = max(steps)
    older = (
        n for n in sorted(steps, reverse=True) if any(locate(steps[n], m.is_mine) for m in _modules(backend))
    )
    whole = next(older, None)
    return CkptconvError(
        f"step {newest} is the newest of the run, but has no weights in a known format",
        where=steps[newest],
        found=", ".join(sorted(path.name for path in steps[newest].iterdir())[:6]) or "an empty folder",
        hint="name another folder" if whole is None else f"take an earlier one: --step {whole}",
        kind=Kind.INCOMPLETE,
    )


def _nothing(root: Path, backend: str | None, step: int | None) -> CkptconvError:
    names = sorted(path.name for path in root.iterdir())
    if not names:
        return CkptconvError("the folder is empty", where=root, kind=Kind.NOT_A_CHECKPOINT)
    if step is None and (steps := steps_of(root)):
        return _unfinished(root, steps, backend)
    shown = ", ".join(names[:6]) + (f" and {len(names) - 6} more" if len(names) > 6 else "")
    what = f"no {backend} checkpoint here" if backend else "no checkpoint found here"
    return CkptconvError(
        what,
        where=root,
        found=shown,
        wanted="model_world_size_W_rank_R.pt (verl FSDP), .metadata or mp_rank_TT_PPP/ (Megatron, torch DCP), "
        "mp_rank_00_model_states.pt (DeepSpeed), *.safetensors or pytorch_model*.bin",
        hint="pass the folder of the run, or of a step or role in it",
        kind=Kind.NOT_A_CHECKPOINT,
    )
