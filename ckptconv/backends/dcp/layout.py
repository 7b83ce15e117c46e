"""Recognises torch.distributed.checkpoint folders (DCP) of any trainer; `read` reads them."""

from __future__ import annotations

from pathlib import Path

from ckptconv.backends.base import imported_later
from ckptconv.backends.dcp.homes import home_of
from ckptconv.tensors.look import is_file, matching

NAME = "dcp"
SIGN = ".metadata and __R_S.distcp (Megatron, torch DCP)"
IS_SHARDED = True
read, saved_by = imported_later("dcp.read")
METADATA = ".metadata"


def is_mine(folder: Path) -> bool:
    """True for a folder that holds a DCP checkpoint, finished or not, itself or where trainers put it."""
    return home(folder) is not None


def home(folder: Path) -> Path | None:
    """The folder with the files: the folder itself or one below it; None if there is none."""
    return home_of(folder, _has_files)


def is_dcp(folder: Path) -> bool:
    """True for a folder with DCP's metadata."""
    return is_file(folder / METADATA)


def _has_files(folder: Path) -> bool:
    return is_dcp(folder) or any(matching(folder, "__*_*.distcp"))
