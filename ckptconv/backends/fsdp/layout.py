"""Recognises verl's FSDP rank files: model_world_size_W_rank_R.pt; `read` reads them."""

from __future__ import annotations

import re
from pathlib import Path

from ckptconv.backends.base import imported_later
from ckptconv.tensors.look import names_in

NAME = "fsdp"
SIGN = "model_world_size_W_rank_R.pt (verl FSDP)"
IS_SHARDED = True
read, saved_by = imported_later("fsdp.read")
RANK_FILE = re.compile(r"^model_world_size_(\d+)_rank_(\d+)\.pt$")


def is_mine(folder: Path) -> bool:
    """True for a folder with at least one rank file."""
    return any(map(RANK_FILE.match, names_in(folder)))
