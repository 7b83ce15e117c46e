"""Checkpoints that exist as metadata only, for the tests of planning."""

from __future__ import annotations

from collections.abc import Mapping
from itertools import count
from pathlib import Path

from ckptconv.tensors.checkpoint import Checkpoint, StoredTensor
from ckptconv.tensors.view import View, stored

_FILES = count()


def view(shape: tuple[int, ...], dtype: str = "float32") -> View:
    """A tensor in a file of its own, which is not there."""
    return stored(f"file{next(_FILES)}", 0, shape, dtype)


def checkpoint(
    tensors: Mapping[str, tuple[int, ...]],
    dtype: str = "float32",
    naming: str = "transformers",
    copies: int = 0,
) -> Checkpoint:
    """Tensors by name and shape. copies: replicas of each on other ranks."""
    made = {
        name: StoredTensor(
            view(shape, dtype),
            replicas=tuple(((0,) * len(shape), view(shape, dtype)) for _ in range(copies)),
        )
        for name, shape in tensors.items()
    }
    return Checkpoint("fsdp", "made up", Path("nowhere"), 1, (), made, naming=naming)
