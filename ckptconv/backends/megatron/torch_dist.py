"""Recognises Megatron-Core's distributed checkpoints (torch_dist); `read_torch_dist` reads them and tells where they lie."""

from __future__ import annotations

from pathlib import Path

from ckptconv.backends.base import imported_later
from ckptconv.backends.dcp.layout import is_dcp
from ckptconv.backends.megatron import nemo
from ckptconv.tensors.look import is_file

NAME = "megatron"
SIGN = ".metadata and __R_S.distcp (Megatron, torch DCP)"
IS_SHARDED = True
read, saved_by = imported_later("megatron.read_torch_dist")
_HOMES = ("", "dist_ckpt", "model/dist_ckpt", nemo.WEIGHTS)


def is_mine(folder: Path) -> bool:
    """True for a folder that holds a torch_dist checkpoint, itself or in a subfolder that verl or NeMo uses."""
    return home(folder) is not None


def home(folder: Path) -> str | None:
    """The subfolder that holds the checkpoint; None if there is none. Megatron's common.pt or metadata.json marks it."""
    for name in _HOMES:
        path = folder / name
        if is_dcp(path) and (is_file(path / "common.pt") or is_file(path / "metadata.json")):
            return name
    return None
