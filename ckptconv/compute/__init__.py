"""Computes tensors that are not copies: casts, LoRA updates, dequantised weights, block by block in bounded memory.

A plan needs the records of `sources` only, which are here. `block` and `tiles` compute them, and import numpy.
"""

from ckptconv.compute.sources import (
    Added,
    Computed,
    Decomposed,
    Dequantised,
    Fuse,
    Rewritten,
    Scaled,
    Scales,
    Shift,
    Source,
    Summed,
)

__all__ = [
    "Added",
    "Computed",
    "Decomposed",
    "Dequantised",
    "Fuse",
    "Rewritten",
    "Scaled",
    "Scales",
    "Shift",
    "Source",
    "Summed",
]
