"""The target of a merge, which appears completely or not at all: one rename publishes what `work.py` holds."""

from __future__ import annotations

import os
import shutil
from pathlib import Path

from ckptconv.errors import CkptconvError, Kind, listed
from ckptconv.publish.durable import exchange, fsync_folder, fsync_tree
from ckptconv.publish.work import OLD, bytes_begun, note_publishing, tidy
from ckptconv.tensors.look import resolved


def check_target(target: Path, sources: list[Path], overwrite: bool) -> None:
    """Refuse a target that must not be written.

    Args:
        target: the folder that the merge will create.
        sources: the folders that it reads.
        overwrite: True to accept an existing model folder.

    Raises:
        CkptconvError: the target contains a source, cannot be written, or exists and must not be replaced.
    """
    there = resolved(target)
    for source in sources:
        if there == resolved(source) or there in resolved(source).parents:
            raise CkptconvError(
                "OUT contains the checkpoint", where=target, hint="choose another folder", kind=Kind.TARGET
            )
    parent = _existing_parent(target)
    if not os.access(parent, os.W_OK):
        raise CkptconvError("no permission to write here", where=parent, kind=Kind.TARGET)
    tidy(target)
    if not target.exists():
        return
    if not target.is_dir():
        raise CkptconvError("OUT is a file", where=target, kind=Kind.TARGET)
    if os.path.ismount(there):
        raise CkptconvError(
            "OUT is a mount point and cannot be replaced atomically",
            where=target,
            hint=f"use a subfolder: {target / 'model'}",
            kind=Kind.TARGET,
        )
    names = [path.name for path in target.iterdir()]
    if not names:
        return
    is_model = any(
        name == "config.json" or name == "adapter_config.json" or name.endswith(".safetensors")
        for name in names
    )
    if not overwrite:
        raise CkptconvError(
            "OUT already exists",
            where=target,
            found=listed(sorted(names), 5),
            hint="use --overwrite to replace it (the old model is kept until the new one is complete)"
            if is_model
            else "it is not a model folder: choose another one, or did you swap DIR and OUT?",
            kind=Kind.TARGET,
        )
    if not is_model:
        raise CkptconvError(
            "OUT exists and is not a model folder, so it will not be overwritten",
            where=target,
            found=listed(sorted(names), 5),
            hint="did you swap DIR and OUT?",
            kind=Kind.TARGET,
        )


def _existing_parent(target: Path) -> Path:
    parent = resolved(target).parent
    while not parent.exists():
        parent = parent.parent
    if not parent.is_dir():
        raise CkptconvError("part of the path of OUT is a file", where=parent, kind=Kind.TARGET)
    return parent


def check_room(target: Path, wanted: int) -> None:
    """Raise CkptconvError if the target's disk is too small for `wanted` bytes. What a killed run wrote counts as free."""
    parent = _existing_parent(target)
    free = shutil.disk_usage(parent).free
    if wanted > free + bytes_begun(target):
        raise CkptconvError(
            "not enough free space for OUT",
            where=parent,
            found=f"{free:,} bytes free",
            wanted=f"{wanted:,} bytes",
            kind=Kind.TARGET,
        )


def publish(work: Path, target: Path, overwrite: bool) -> None:
    """Rename the work folder to the target. An existing target is exchanged with it and removed last.

    Args:
        work: the folder with the complete model.
        target: the folder to publish.
        overwrite: True to replace an existing target.

    Raises:
        CkptconvError: the target appeared during the merge, or the rename failed.
    """
    target, home = resolved(target), work.parent
    try:
        fsync_tree(work)
        if target.exists() and any(target.iterdir()):
            if not overwrite:
                raise CkptconvError(
                    "OUT already exists: it appeared during the merge", where=target, kind=Kind.TARGET
                )
            note_publishing(home)
            if not exchange(work, target):
                os.replace(target, home / OLD)
                os.replace(
                    work, target
                )  # if the process dies between the two, _bring_back moves the old target back
        else:
            os.replace(work, target)
        fsync_folder(home)
        fsync_folder(target.parent)
    except OSError as error:
        raise CkptconvError(
            f"the finished folder cannot be moved into place: {error.strerror}",
            where=target,
            kind=Kind.TARGET,
        ) from error
