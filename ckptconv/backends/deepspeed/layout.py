"""Recognises DeepSpeed's checkpoints; `read` reads them."""

from __future__ import annotations

from pathlib import Path

from ckptconv.backends.base import imported_later
from ckptconv.backends.deepspeed.files import home

NAME = "deepspeed"
SIGN = "mp_rank_00_model_states.pt (DeepSpeed)"
IS_SHARDED = True
read, saved_by = imported_later("deepspeed.read")


def is_mine(folder: Path) -> bool:
    """True if the folder, or the one that its `latest` names, holds DeepSpeed's files."""
    return home(folder) is not None
