"""Recognises nanotron's steps; `read` reads them."""

from __future__ import annotations

from ckptconv.backends.base import imported_later
from ckptconv.backends.nanotron.files import has_files

NAME = "nanotron"
SIGN = "model/…/model_weight_pp-rank-P-of-PP_tp-rank-T-of-TP.safetensors (nanotron)"
IS_SHARDED = True
read, saved_by = imported_later("nanotron.read")
is_mine = has_files
