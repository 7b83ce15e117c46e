"""LoRA updates that are zero: a trainer lost them, and the merged model is its base.

PEFT begins with B = 0 (lora_embedding_A of an embedding), so an update that training reached is not zero.
"""

from __future__ import annotations

import numpy as np

from ckptconv.models import lora
from ckptconv.plan.stored import take_stock
from ckptconv.read.reader import Reader, read_numpy
from ckptconv.tensors.checkpoint import Checkpoint
from ckptconv.tensors.view import View

_MOST_NAMED = 3


def zero_updates(checkpoint: Checkpoint) -> tuple[str, ...]:
    """A note that names the modules whose update is zero or mostly zero; it reads both factors of every module.

    Experts that no token reached and embedding columns of unused tokens stay zero in a good training, so only an
    expert or embedding without any value counts, and experts only where all modules are zero.
    """
    if not any(map(lora.may_be_factor, checkpoint.tensors)):
        return ()
    factors = take_stock(checkpoint).parts.factors
    if not factors:
        return ()
    with Reader() as reader:
        shares = [(each, _share_of_zeros(each, reader)) for each in factors]
    zero = [each.module for each, share in shares if share == 1]
    if len(zero) == len(factors):
        return (f"every LoRA update is zero ({len(zero)} modules): the merged model is equal to its base",)
    mostly = [
        each.module
        for each, share in shares
        if share >= (1 if each.embedding else 0.5) and not each.parameters and ".experts." not in each.module
    ]
    if not mostly:
        return ()
    named = ", ".join(mostly[:_MOST_NAMED]) + (
        f" and {len(mostly) - _MOST_NAMED} more" if len(mostly) > _MOST_NAMED else ""
    )
    return (f"the LoRA update is zero or mostly zero in {len(mostly)} of {len(factors)} modules: {named}",)


def _share_of_zeros(factors: lora.Factors, reader: Reader) -> float:
    """The share of zeros in the factor that begins at zero; 1 if the other one is zero, as damage leaves it."""
    first, other = factors.b[1], factors.a[1]
    if factors.embedding:
        first, other = other, first
    return 1 if _zeros(other, reader) == 1 else _zeros(first, reader)


def _zeros(view: View, reader: Reader) -> float:
    values = read_numpy(view, reader)
    return 1 - np.count_nonzero(values) / values.size if values.size else 1.0
