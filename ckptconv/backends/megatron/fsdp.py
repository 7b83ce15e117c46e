"""Recognises Megatron-FSDP's checkpoints (`--ckpt-format fsdp_dtensor`); `read_fsdp` reads them."""

from __future__ import annotations

import re
from pathlib import Path

from ckptconv.backends.base import imported_later
from ckptconv.backends.dcp.layout import METADATA, is_dcp
from ckptconv.tensors.look import read_bytes

NAME = "megatron_fsdp"
SIGN = ".metadata and __R_S.distcp (Megatron, torch DCP)"
IS_SHARDED = True
read, saved_by = imported_later("megatron.read_fsdp")
_MARK = re.compile(rb"model\d*\.(?:module\.)+[\w.]*\.(?:linear_qkv|linear_proj|linear_fc[12])\.")


def is_mine(folder: Path) -> bool:
    """True for a DCP folder with Megatron's module names under `model.module.`."""
    return is_dcp(folder) and _MARK.search(read_bytes(folder / METADATA)) is not None
