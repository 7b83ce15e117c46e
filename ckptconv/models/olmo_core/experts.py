"""Layout changes of OLMo-core's experts, whose first dim is (expert, rows of one expert), flattened.

The default experts keep gate and up as (expert, in, out), the dropless ones as (expert, out, in); down is (expert, in, out)
in both. Source: olmo_core/nn/moe/mlp.py, MoEMLP and DroplessMoEMLP; the router: nn/moe/router.py, MoELinearRouter.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TypeVar

from ckptconv.errors import CkptconvError, Kind
from ckptconv.models.pieces import Piece, Pieces
from ckptconv.models.rules import Swap
from ckptconv.tensors.view import Shape, stack, unbind, unflatten

T = TypeVar("T")  # a View, a numpy array or a torch tensor


@dataclass(frozen=True)
class _Stack:
    """A flat stack of experts.

    Args:
        count: of experts.
        hidden: the model's width.
        width: an expert's.
    """

    count: int
    hidden: int
    width: int

    def _apart(self, piece: Piece[T], rows: int, swapped: bool) -> Pieces[T]:
        experts = [Piece.of(one) for one in unbind(unflatten(piece.plain, 0, (self.count, rows)), 0)]
        return Swap(0, 1).split(experts) if swapped else experts

    def _together(self, pieces: Pieces[T], rows: int) -> Pieces[T]:
        """The stack of experts as OLMo-core's default classes have them: (in, out)."""
        swapped = Swap(0, 1).join(pieces)
        whole = stack([piece.plain for piece in swapped], 0)
        return [Piece(whole, (self.count * rows, swapped[0].shape[1]))]

    def _unknown(self, shape: Shape) -> CkptconvError:
        return CkptconvError(
            f"{list(shape)} is not a stack of {self.count} experts of {self.hidden} × {self.width} elements"
        )


@dataclass(frozen=True)
class GatedProjections(_Stack):
    """Gate or up projections; on the Hub each is (out, in). The shape tells which of the two classes stored them."""

    def split(self, pieces: Pieces[T]) -> Pieces[T]:
        (piece,) = pieces
        default = piece.shape == (self.count * self.hidden, self.width)
        dropless = piece.shape == (self.count * self.width, self.hidden)
        if default and dropless:
            raise CkptconvError(
                "square experts: their shape does not tell whether they are stored as (in, out) or (out, in)",
                kind=Kind.UNSUPPORTED,
            )
        if not (default or dropless):
            raise self._unknown(piece.shape)
        return self._apart(piece, self.hidden if default else self.width, swapped=default)

    def join(self, pieces: Pieces[T]) -> Pieces[T]:
        return self._together(pieces, self.hidden)


@dataclass(frozen=True)
class DownProjections(_Stack):
    """Down projections; on the Hub each is (out, in)."""

    def split(self, pieces: Pieces[T]) -> Pieces[T]:
        (piece,) = pieces
        if piece.shape != (self.count * self.width, self.hidden):
            raise self._unknown(piece.shape)
        return self._apart(piece, self.width, swapped=True)

    def join(self, pieces: Pieces[T]) -> Pieces[T]:
        return self._together(pieces, self.width)


@dataclass(frozen=True)
class RouterRows:
    """The router's rows, one per expert, which OLMo-core keeps in one flat dim."""

    count: int
    hidden: int

    def split(self, pieces: Pieces[T]) -> Pieces[T]:
        (piece,) = pieces
        if piece.shape != (self.count * self.hidden,):
            raise CkptconvError(
                f"{list(piece.shape)} is not a router of {self.count} × {self.hidden} elements"
            )
        return [Piece.of(unflatten(piece.plain, 0, (self.count, self.hidden)))]

    def join(self, pieces: Pieces[T]) -> Pieces[T]:
        (piece,) = pieces
        return [Piece(piece.value, (self.count * self.hidden,))]
