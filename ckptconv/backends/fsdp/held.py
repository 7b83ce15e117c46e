"""What one rank holds of the DTensors of its state dict. Ranks with like files share all but positions and checksums."""

from __future__ import annotations

from collections.abc import Mapping
from typing import NamedTuple

from ckptconv.backends.fsdp.dtensors import Cut, DTensor, Whole
from ckptconv.backends.fsdp.mesh import Position, read_mesh, read_root
from ckptconv.backends.fsdp.piece import Extent, Piece
from ckptconv.backends.fsdp.sharding import local_box
from ckptconv.errors import CkptconvError
from ckptconv.formats.inert import Inert
from ckptconv.formats.stand_ins import TensorRecord
from ckptconv.formats.torch_zip import TorchZip
from ckptconv.formats.zip_forms import Form
from ckptconv.tensors.boxes import Box, Chunk
from ckptconv.tensors.checkpoint import Mesh
from ckptconv.tensors.view import View

Meshes = dict[Mesh, dict[int, tuple[int, ...]]]  # a mesh -> rank -> its coordinate
_MOST = 8  # forms of files, and sizes of parts, that are remembered


class _Local(NamedTuple):
    """A rank's own tensor as like files store it: all that does not depend on the rank.

    Attributes:
        shape: the shape of the tensor.
        start: the byte of the file at which its elements begin.
        strides: bytes from one element to the next along each dim.
        number: the number of its storage's entry in the directory.
        extent: its place in that storage.
    """

    shape: tuple[int, ...]
    start: int
    strides: tuple[int, ...]
    number: int
    extent: Extent


class _Here(NamedTuple):
    """What one rank holds of the tensors with one cut.

    Attributes:
        position: the position of the rank in the mesh; None if the mesh does not contain it.
        box: that it holds, in elements.
        is_empty: True if the box has no elements.
    """

    position: Position | None
    box: Box
    is_empty: bool


_Row = tuple[
    Whole, int, _Local | None
]  # a tensor, the number of its cut, its elements if a rank has some of it


class DTensors:
    """The DTensors of one state dict, which the ranks with equal pickles share.

    Args:
        named: name -> record, in order.
    """

    def __init__(self, named: Mapping[str, DTensor]) -> None:
        self._named = named
        self._cuts: dict[int, tuple[str, Cut]] = {}  # by their ids, each with the first tensor that has it
        for name, tensor in named.items():
            self._cuts.setdefault(id(tensor.cut), (name, tensor.cut))
        self._rows: dict[tuple[object, ...], tuple[Form, list[_Row]]] = {}

    def of_rank(self, file: TorchZip, rank: int, meshes: Meshes) -> list[Piece]:
        """Return what a rank holds of each tensor, after a check of its shape against its placement.

        Args:
            file: the rank's file.
            rank: its number.
            meshes: gets the meshes of the tensors.

        Raises:
            CkptconvError: a shard does not fit its placement.
        """
        here = self._here(file, rank, meshes)
        path, crcs = file.path, file.crcs
        pieces = []
        for whole, cut, local in self._rows_for(file, here):
            position, box, _ = here[cut]
            if local is None:
                pieces.append(Piece(whole, box, None, position))
            else:
                shape, start, strides, number, extent = local
                chunk = Chunk(box.offsets, shape, path, start, strides)
                pieces.append(Piece(whole, box, chunk, position, crcs[number], extent))
        return pieces

    def _here(self, file: TorchZip, rank: int, meshes: Meshes) -> dict[int, _Here]:
        """The rank's part of every cut, by the cut's id."""
        positions: dict[int, tuple[Mesh, Position | None]] = {}  # by the id of a mesh
        found = {}
        for key, (name, cut) in self._cuts.items():
            try:
                if id(cut.mesh) not in positions:
                    positions[id(cut.mesh)] = _position(file, rank, cut.mesh, meshes)
                found[key] = _part(cut, *positions[id(cut.mesh)])
            except CkptconvError as error:
                raise error.within(inside=name, where=file.path) from error
        return found

    def _rows_for(self, file: TorchZip, here: Mapping[int, _Here]) -> list[_Row]:
        """The tensors as this rank and all others store them that have a like file and parts of the same sizes."""
        parts = tuple((part.position is None, part.box.sizes) for part in here.values())
        known = self._rows.get((id(file.form), parts))
        if known is None:
            if len(self._rows) == _MOST:
                self._rows.clear()
            rows = [
                (tensor.whole, id(tensor.cut), _local(file, name, tensor, here))
                for name, tensor in self._named.items()
            ]
            known = self._rows[id(file.form), parts] = file.form, rows
        return known[1]


def _position(file: TorchZip, rank: int, mesh: Inert, meshes: Meshes) -> tuple[Mesh, Position | None]:
    found = read_mesh(file, mesh)
    for each, position in (read_root(file, mesh), found):
        ranks = meshes.setdefault(each, {})
        if position is not None:
            ranks[rank] = position.index
    return found


def _part(cut: Cut, mesh: Mesh, position: Position | None) -> _Here:
    box = Box((0,) * len(cut.shape), (0,) * len(cut.shape))
    if position is not None:
        if len(cut.placements) != len(mesh.shape):
            raise CkptconvError(f"{len(cut.placements)} placements on a mesh of {len(mesh.shape)} dims")
        box = local_box(cut.shape, mesh.shape, position.index, cut.placements, cut.order)
    return _Here(position, box, 0 in box.sizes)


def _local(file: TorchZip, name: str, tensor: DTensor, here: Mapping[int, _Here]) -> _Local | None:
    """The elements that a rank stores of a tensor; None if it has none, as a rank outside the mesh.

    Raises:
        CkptconvError: they do not fit the tensor's placement.
    """
    whole, cut, stored = tensor
    position, box, is_empty = here[id(cut)]
    if position is None:
        return None
    try:
        view = file.view(stored)
        if is_empty and 0 in view.shape:
            return None
        if view.shape != box.sizes or view.dtype != whole.dtype:
            raise CkptconvError(
                "a shard's shape does not match its placement",
                found=f"{view.dtype} {list(view.shape)}",
                wanted=f"{whole.dtype} {list(box.sizes)}, for {cut.text} at mesh coordinate {position.index}",
            )
        number = file.form.places[stored.storage.key].number
        _, extent = checksum(file, stored, view)
    except CkptconvError as error:
        raise error.within(inside=name, where=file.path) from error
    start, strides = (view.chunks[0].start, view.chunks[0].strides) if view.chunks else (0, ())
    return _Local(view.shape, start, strides, number, extent)


def checksum(file: TorchZip, tensor: TensorRecord, view: View) -> tuple[int, Extent]:
    """Return the checksum that the file's directory records for a tensor's storage, and the tensor's place in it.

    Args:
        file: the rank file.
        tensor: its record in the pickle.
        view: the view of the same tensor.
    """
    place = file.form.places.get(tensor.storage.key)
    if place is None or not view.numel:
        return 0, Extent(0, (), 0)
    return file.crcs[place.number], Extent(tensor.offset, tensor.stride, place.nbytes - view.nbytes)
