"""Recognises Megatron's rank files, mp_rank_TT[_PPP][_EEE]/; `read_rank_files` reads them."""

from __future__ import annotations

import re
from pathlib import Path

from ckptconv.backends.base import imported_later
from ckptconv.tensors.look import is_dir, names_in

NAME = "megatron_legacy"
SIGN = "mp_rank_TT_PPP/ (Megatron rank files)"
IS_SHARDED = True
read, saved_by = imported_later("megatron.read_rank_files")
FOLDER = re.compile(r"^mp_rank_(\d+)(?:_(\d+))?(?:_(\d+))?$")


def is_mine(folder: Path) -> bool:
    """True for a folder with mp_rank_* folders, directly or in model/, where verl puts them."""
    return home(folder) is not None


def home(folder: Path) -> Path | None:
    """The folder with the mp_rank_* folders; None if there is none."""
    for path in (folder, folder / "model"):
        if is_dir(path) and any(is_dir(path / name) for name in filter(FOLDER.match, names_in(path))):
            return path
    return None
