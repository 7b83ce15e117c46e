"""What may fill a tensor: a view, quantised codes with their scales, or one of these with an update from training."""

from __future__ import annotations

import threading
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from ckptconv.tensors.view import Shape, View

Floats = np.ndarray[Any, np.dtype[np.float32]]


@dataclass(frozen=True, slots=True)
class Scales:
    """The scales of a weight stored as float8 codes: weight = code * scale, one scale per block.

    Args:
        view: float scales: one element for the whole weight, or (..., ceil(out / rows), ceil(in / columns)) for a
            weight of shape (..., out, in).
        block: (rows, columns) of a block; (0, 0) where one scale serves the whole weight.
        dtype: the dtype that the model computes in, which the weight has once it is dequantised.

    Source: transformers/integrations/finegrained_fp8.py, FP8Linear and Fp8Dequantize: the scale is a factor, although
    its name ends in `_inv`.
    """

    view: View
    block: tuple[int, int]
    dtype: str


@dataclass(frozen=True, slots=True)
class Computed:
    """A stored tensor and what is added to it, computed in float32 and rounded once. The subclasses say what.

    Args:
        base: the stored tensor.
        scales: those of `base` where it holds float8 codes.
    """

    base: View
    scales: Scales | None = field(default=None, kw_only=True)

    @property
    def shape(self) -> Shape:
        return self.base.shape

    @property
    def dtype(self) -> str:
        """The dtype of the values: that of `base`, or of the dequantised weight."""
        return self.base.dtype if self.scales is None else self.scales.dtype

    @property
    def numel(self) -> int:
        return self.base.numel

    @property
    def nbytes(self) -> int:
        return self.base.nbytes

    @property
    def views(self) -> tuple[View, ...]:
        """All stored tensors that it is made of, the base first."""
        scales = () if self.scales is None else (self.scales.view,)
        return (self.base, *self.added_views, *scales)

    @property
    def added_views(self) -> tuple[View, ...]:
        """The stored tensors that make up what is added."""
        return ()


@dataclass(frozen=True, slots=True)
class Dequantised(Computed):
    """base * scales, and nothing added: a float8 weight that becomes an ordinary one."""


@dataclass(frozen=True, slots=True)
class Rewritten(Computed):
    """base with some of its rows replaced: PEFT's trainable tokens, which are stored as whole rows.

    Args:
        rows: (n, width), the new rows. The dtype may be another one than that of `base`.
        indices: which rows of `base` they replace, in the order of `rows`.

    Source: peft/tuners/trainable_tokens/layer.py, TrainableTokensLayer.get_merged_weights (an index_copy).
    """

    rows: View
    indices: tuple[int, ...]

    @property
    def added_views(self) -> tuple[View, ...]:
        return (self.rows,)


@dataclass(frozen=True, slots=True)
class Shift(Computed):
    """base + added: a norm that is stored as its difference to one."""

    added: float


@dataclass(frozen=True, slots=True)
class Added(Computed):
    """base + scale * left, element by element: the bias of a LoRA layer."""

    left: View
    scale: float

    @property
    def added_views(self) -> tuple[View, ...]:
        return (self.left,)


@dataclass(frozen=True, slots=True)
class Fuse(Computed):
    """base + scale * left @ right: a LoRA layer's weight.

    Read in C order, base is (rows, columns) and left is (rows, r), whatever shapes the views have; right is (r, columns),
    or (E, r, columns) for a stack of E experts with equally many rows each.
    """

    left: View
    right: View
    scale: float

    @property
    def added_views(self) -> tuple[View, ...]:
        return (self.left, self.right)


class Lengths:
    """The lengths of a weight's columns, worked out by the first worker that needs them; the others wait for it."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._found: Floats | None = None

    def __reduce__(self) -> tuple[type[Lengths], tuple[()]]:
        return Lengths, ()  # another process works them out for itself

    def get(self, work_out: Callable[[], Floats]) -> Floats:
        with self._lock:
            if self._found is None:
                self._found = work_out()
            return self._found


@dataclass(frozen=True, slots=True)
class Decomposed(Fuse):
    """A DoRA layer's weight: base + scale * left @ right, with its rows scaled to the lengths in `magnitude`.

    by_column: its columns instead (embeddings, and weights that are stored as (in, out)).
    Source: peft/tuners/lora/variants.py, DoraLinearVariant and DoraEmbeddingVariant.
    """

    magnitude: View
    by_column: bool = False
    lengths: Lengths = field(default_factory=Lengths, compare=False, repr=False)

    @property
    def added_views(self) -> tuple[View, ...]:
        return (self.left, self.right, self.magnitude)


Source = View | Computed


def views_of(source: Source) -> tuple[View, ...]:
    """The stored views that a source is made of; the weight itself first."""
    return (source,) if isinstance(source, View) else source.views
