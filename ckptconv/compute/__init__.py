"""What is not a copy: casts, and LoRA's updates. Always at the root of a tensor, always by block, always bounded."""

from ckptconv.compute.block import CAST_BLOCK, Block
from ckptconv.compute.sources import Added, Computed, Decomposed, Fuse, Shift, Source, views_of

__all__ = ["CAST_BLOCK", "Added", "Block", "Computed", "Decomposed", "Fuse", "Shift", "Source", "views_of"]
