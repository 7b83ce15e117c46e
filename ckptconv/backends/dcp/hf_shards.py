"""Recognises the ranks' safetensors files of torch's HuggingFaceStorageWriter; `read_hf_shards` reads them."""

from __future__ import annotations

from pathlib import Path

from ckptconv.backends.base import imported_later
from ckptconv.backends.dcp.homes import home_of
from ckptconv.backends.huggingface.weight_files import RANK_SHARD
from ckptconv.tensors.look import matching

NAME = "hf_shards"
SIGN = "shard-R-model-I-of-N.safetensors (HuggingFaceStorageWriter)"
IS_SHARDED = True
read, saved_by = imported_later("dcp.read_hf_shards")
SHARDED = "sharded"  # the writer's folder for shards that it consolidates afterwards


def is_mine(folder: Path) -> bool:
    """True for a folder that holds ranks' shards, itself or where trainers put them."""
    return home_of(folder, has_shards) is not None


def holds_shards(folder: Path) -> bool:
    """True for a folder with a rank's shard in the folder itself."""
    return any(RANK_SHARD.match(path.name) for path in matching(folder, "shard-*.safetensors"))


def has_shards(folder: Path) -> bool:
    """True for a folder with a rank's shard, or with `sharded/` that holds one."""
    return holds_shards(folder) or holds_shards(folder / SHARDED)
