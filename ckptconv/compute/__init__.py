"""Computes tensors that are not copies: casts, LoRA updates, dequantised weights, block by block in bounded memory."""

from ckptconv.compute.block import CAST_BLOCK, Block
from ckptconv.compute.sources import (
    Added,
    Computed,
    Decomposed,
    Dequantised,
    Fuse,
    Rewritten,
    Scales,
    Shift,
    Source,
    views_of,
)
from ckptconv.compute.tiles import Filler, Tile, tiles_of

__all__ = [
    "CAST_BLOCK",
    "Added",
    "Block",
    "Computed",
    "Decomposed",
    "Dequantised",
    "Filler",
    "Fuse",
    "Rewritten",
    "Scales",
    "Shift",
    "Source",
    "Tile",
    "tiles_of",
    "views_of",
]
