"""What ranks hold of one tensor: the records between the reading of rank files and the assembly of their tensors."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import NamedTuple

from ckptconv.backends.fsdp.dtensors import Whole
from ckptconv.backends.fsdp.mesh import Position
from ckptconv.errors import CkptconvError
from ckptconv.tensors.boxes import Box, Chunk
from ckptconv.tensors.view import View


class Extent(NamedTuple):
    """Where a tensor lies in its storage.

    Attributes:
        start: the tensor's first element in the storage.
        stride: the tensor's strides in the storage, in elements.
        slack: the number of bytes in the storage that the tensor does not use.
    """

    start: int
    stride: tuple[int, ...]
    slack: int


class Piece(NamedTuple):
    """The part of a tensor that one rank holds.

    Attributes:
        whole: the tensor; the pieces of ranks whose pickles are alike share the record.
        box: the box that the rank holds, in elements; None for a plain tensor, which is whole.
        chunk: the stored elements, at their offsets in the whole tensor; None if there are none.
        position: the rank's position in the tensor's own mesh; None if there is no mesh, or if it lacks the rank.
        crc: the CRC-32 of the storage, as the file's directory records it; 0 if none was written.
        extent: the elements' place in that storage.
    """

    whole: Whole
    box: Box | None
    chunk: Chunk | None
    position: Position | None = None
    crc: int = 0
    extent: Extent = Extent(0, (), 0)

    @property
    def view(self) -> View:
        """The rank's own tensor."""
        sizes = self.whole.shape if self.box is None else self.box.sizes
        if self.chunk is None:
            return View(sizes, self.whole.dtype, ())
        return View(sizes, self.whole.dtype, (self.chunk._replace(offsets=(0,) * len(sizes)),))

    def same(self, other: Piece) -> bool | None:
        """Compare the bytes with those of a piece of equal shape and dtype; None if only reading them can decide."""
        if not self.crc or not other.crc:
            return None
        if self.extent != other.extent:
            return None
        if self.crc == other.crc:
            return True
        return None if self.extent.slack else False


@dataclass(slots=True)
class Pieces:
    """All ranks' pieces of one tensor, in rank order."""

    ranks: list[int] = field(default_factory=list)
    pieces: list[Piece] = field(default_factory=list)

    def add(self, name: str, rank: int, piece: Piece) -> None:
        """Add one more piece.

        Args:
            name: the name of the tensor, for the error message.
            rank: that holds the piece.
            piece: to add.

        Raises:
            CkptconvError: the piece's shape, dtype or kind differs from those of the first piece.
        """
        ranks, pieces = self.ranks, self.pieces
        if pieces:
            first = pieces[0]
            is_like = piece.whole is first.whole or piece.whole[:2] == first.whole[:2]
            if not is_like or (piece.box is None) is not (first.box is None):
                raise CkptconvError(
                    f"ranks disagree on {name}",
                    found=f"rank {rank}: {_brief(piece)}",
                    wanted=f"as rank {ranks[0]}: {_brief(first)}",
                    hint="the rank files are from different saves; copy all of one step again",
                )
        if not ranks or ranks[-1] != rank:
            ranks.append(rank)
        pieces.append(piece)


def _brief(piece: Piece) -> str:
    shape, dtype, placement = piece.whole
    return f"{dtype} {list(shape)} {placement or 'plain'}"
