"""What may fill a tensor: a view, or a view with an update that training kept apart from it."""

from __future__ import annotations

import threading
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from ckptconv.tensors.view import Shape, View

Floats = np.ndarray[Any, np.dtype[np.float32]]


@dataclass(frozen=True, slots=True)
class Computed:
    """A stored tensor and what is added to it, worked out in float32 and rounded once. Its subclasses say what."""

    base: View

    @property
    def shape(self) -> Shape:
        return self.base.shape

    @property
    def dtype(self) -> str:
        return self.base.dtype

    @property
    def numel(self) -> int:
        return self.base.numel

    @property
    def nbytes(self) -> int:
        return self.base.nbytes

    @property
    def views(self) -> tuple[View, ...]:
        """All stored tensors that it is made of, the base first."""
        return (self.base,)


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
    def views(self) -> tuple[View, ...]:
        return (self.base, self.left)


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
    def views(self) -> tuple[View, ...]:
        return (self.base, self.left, self.right)


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
    def views(self) -> tuple[View, ...]:
        return (self.base, self.left, self.right, self.magnitude)


Source = View | Computed


def views_of(source: Source) -> tuple[View, ...]:
    """The stored views that a source is made of; the weight itself first."""
    return (source,) if isinstance(source, View) else source.views
