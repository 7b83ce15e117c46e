"""The sources that can fill a tensor: a view, quantised codes with scales, or one of these with an update from training."""

from __future__ import annotations

import threading
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, NamedTuple

from ckptconv.tensors.view import Shape, View

if TYPE_CHECKING:  # a plan needs no numpy
    import numpy as np

    Floats = np.ndarray[Any, np.dtype[np.float32]]


class Scales(NamedTuple):
    """The scales of a weight stored as float8 codes: weight = code * scale, one scale per block.

    Args:
        view: float scales: one element for the whole weight, or (..., ceil(out / rows), ceil(in / columns)) for a
            weight of shape (..., out, in).
        block: (rows, columns) of a block, in elements; (0, 0) if one scale applies to the whole weight.
        dtype: the dtype of the dequantised weight, in which the model computes.

    Source: transformers/integrations/finegrained_fp8.py, FP8Linear and Fp8Dequantize: the scale is a factor, although
    its name ends in `_inv`.
    """

    view: View
    block: tuple[int, int]
    dtype: str


@dataclass(frozen=True, slots=True)
class Computed:
    """A stored tensor with an update that a subclass defines, computed in float32 and rounded once.

    Args:
        base: the stored tensor.
        scales: the scales of `base` if it holds float8 codes.
    """

    base: View
    scales: Scales | None = field(default=None, kw_only=True)

    @property
    def shape(self) -> Shape:
        return self.base.shape

    @property
    def dtype(self) -> str:
        """The dtype of the values: the dtype of `base`, or that of the dequantised weight."""
        return self.base.dtype if self.scales is None else self.scales.dtype

    @property
    def numel(self) -> int:
        return self.base.numel

    @property
    def nbytes(self) -> int:
        return self.base.nbytes

    @property
    def views(self) -> tuple[View, ...]:
        """All stored tensors that it is computed from, the base first."""
        scales = () if self.scales is None else (self.scales.view,)
        return (self.base, *self.added_views, *scales)

    @property
    def added_views(self) -> tuple[View, ...]:
        """The stored tensors of the update."""
        return ()


@dataclass(frozen=True, slots=True)
class Dequantised(Computed):
    """base * scales without an update: a float8 weight that becomes an ordinary one."""


@dataclass(frozen=True, slots=True)
class Rewritten(Computed):
    """base with some of its rows replaced: PEFT's trainable tokens, which are stored as whole rows.

    Args:
        rows: the new rows, (n, width). Their dtype may differ from that of `base`.
        indices: indices[i] is the row of `base` that rows[i] replaces.

    Source: peft/tuners/trainable_tokens/layer.py, TrainableTokensLayer.get_merged_weights (an index_copy).
    """

    rows: View
    indices: tuple[int, ...]

    @property
    def added_views(self) -> tuple[View, ...]:
        return (self.rows,)


@dataclass(frozen=True, slots=True)
class Shift(Computed):
    """base + added, for a norm that is stored as its difference to one."""

    added: float


@dataclass(frozen=True, slots=True)
class Scaled(Computed):
    """base * factor, for queries that are stored divided by the square root of a head's size."""

    factor: float


@dataclass(frozen=True, slots=True)
class Summed(Computed):
    """base + further parts, element by element: a bias of which each tensor parallel rank holds one part of the sum."""

    parts: tuple[View, ...]

    @property
    def added_views(self) -> tuple[View, ...]:
        return self.parts


@dataclass(frozen=True, slots=True)
class Added(Computed):
    """base + scale * left, element by element, for the bias of a LoRA layer."""

    left: View
    scale: float

    @property
    def added_views(self) -> tuple[View, ...]:
        return (self.left,)


@dataclass(frozen=True, slots=True)
class Fuse(Computed):
    """base + scale * left @ right, for the weight of a LoRA layer.

    Args:
        left: read as (rows, r) in C order, like `base` as (rows, columns), whatever shapes the views have.
        right: (r, columns), or (E, r, columns) for a stack of E experts with the same number of rows each.
        scale: LoRA's scale, such as alpha / r.
    """

    left: View
    right: View
    scale: float

    @property
    def added_views(self) -> tuple[View, ...]:
        return (self.left, self.right)


class Lengths:
    """The lengths of a weight's columns. The first worker that needs them computes them, and the others wait for it."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._lengths: Floats | None = None

    def __reduce__(self) -> tuple[type[Lengths], tuple[()]]:
        return Lengths, ()  # a pickled copy is empty: another process computes its own

    def get(self, work_out: Callable[[], Floats]) -> Floats:
        """The lengths, in float32; `work_out` computes them if no worker has done so."""
        with self._lock:
            if self._lengths is None:
                self._lengths = work_out()
            return self._lengths


@dataclass(frozen=True, slots=True)
class Decomposed(Fuse):
    """A DoRA layer's weight: base + scale * left @ right, with its rows scaled to the lengths in `magnitude`.

    Args:
        magnitude: one length per row, or per column with `by_column`.
        by_column: scale the columns and not the rows (embeddings, and weights that are stored as (in, out)).
        lengths: the lengths of the columns before scaling, shared by the workers.
    Source: peft/tuners/lora/variants.py, DoraLinearVariant and DoraEmbeddingVariant.
    """

    magnitude: View
    by_column: bool = False
    lengths: Lengths = field(default_factory=Lengths, compare=False, repr=False)

    @property
    def added_views(self) -> tuple[View, ...]:
        return (self.left, self.right, self.magnitude)


Source = View | Computed
