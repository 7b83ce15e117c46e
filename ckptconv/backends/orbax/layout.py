"""Recognises Orbax's steps, such as MaxText's; `read` reads them."""

from __future__ import annotations

from pathlib import Path

from ckptconv.backends.base import imported_later
from ckptconv.tensors.look import names_in

NAME = "orbax"
SIGN = "_METADATA with manifest.ocdbt or Zarr arrays (Orbax, MaxText)"
IS_SHARDED = True
read, saved_by = imported_later("orbax.read")
METADATA, DATABASE = "_METADATA", "manifest.ocdbt"
# Orbax writes one of them beside _METADATA.
_WRITTEN = frozenset({DATABASE, "array_metadatas", "d", "_sharding"})


def is_mine(folder: Path) -> bool:
    """True for the folder of an item."""
    names = set(names_in(folder))
    return len(names & _WRITTEN) > (METADATA not in names)
