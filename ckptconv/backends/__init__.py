"""Bytes on disk -> Checkpoint. One file a layout; `open_checkpoint` finds the one whose signs are there."""

from __future__ import annotations

from collections.abc import Sequence
from importlib import import_module
from pathlib import Path
from types import ModuleType

from ckptconv.backends.locate import Place, locate, steps_of
from ckptconv.checkpoint import Checkpoint
from ckptconv.errors import CkptconvError

# In the order in which their signs are looked for: a trainer's shards come before the Hugging Face files beside them.
BACKENDS = ("fsdp", "megatron", "megatron_legacy", "huggingface")


def open_checkpoint(
    path: str | Path, *, backend: str | None = None, step: int | None = None, also: Sequence[str | Path] = ()
) -> Checkpoint:
    """The checkpoint in a folder (run, step or role folder), read from metadata alone.

    backend: take this one instead of looking for signs. step: of a run; its latest when not given.
    also: more folders of the same checkpoint, for rank files that lie on several disks.
    """
    root = Path(path)
    if not root.is_dir():
        raise CkptconvError("no such folder" if not root.exists() else "not a folder", where=root)
    if backend is not None and backend not in BACKENDS:
        raise CkptconvError(f"there is no backend {backend!r}", wanted=", ".join(BACKENDS))
    for module in _modules(backend):
        place = locate(root, module.is_mine, step)
        if place is not None:
            return module.read(place, [_other(folder, module, place) for folder in also])  # type: ignore[no-any-return]
    raise _nothing(root, backend)


def _modules(backend: str | None) -> list[ModuleType]:
    return [import_module(f"ckptconv.backends.{name}") for name in ([backend] if backend else BACKENDS)]


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


def _nothing(root: Path, backend: str | None) -> CkptconvError:
    names = sorted(path.name for path in root.iterdir())
    if not names:
        return CkptconvError("the folder is empty", where=root)
    shown = ", ".join(names[:6]) + (f" and {len(names) - 6} more" if len(names) > 6 else "")
    what = f"no {backend} checkpoint here" if backend else "not a checkpoint that ckptconv knows"
    return CkptconvError(
        what,
        where=root,
        found=shown,
        wanted="model_world_size_W_rank_R.pt (verl FSDP), .metadata or mp_rank_TT_PPP/ (Megatron), or *.safetensors",
        hint="name the run's folder, a step or a role in it",
    )
