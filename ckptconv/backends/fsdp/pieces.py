"""Read the tensors of an FSDP rank file: DTensors, ShardedTensors and plain tensors.

The files of thousands of ranks repeat the same facts about thousands of tensors, so a fact that does not depend on the rank
is computed once.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any, NamedTuple

from ckptconv.backends.fsdp.dtensors import Cut, DTensor, Whole, read_dtensor
from ckptconv.backends.fsdp.mesh import Position, read_mesh, read_root
from ckptconv.backends.fsdp.sharding import local_box
from ckptconv.backends.fsdp.shared_pickles import RankPickles
from ckptconv.errors import CkptconvError, Kind
from ckptconv.formats.bounds import check_name, whole_numbers
from ckptconv.formats.inert import Inert, field_of, items
from ckptconv.formats.stand_ins import Dtype, TensorRecord, WrapperRecord
from ckptconv.formats.torch_zip import TorchZip, open_torch_zips
from ckptconv.formats.zip_forms import Form, Forms
from ckptconv.tensors.boxes import Box, Chunk
from ckptconv.tensors.checkpoint import Mesh
from ckptconv.tensors.view import View

Meshes = dict[Mesh, dict[int, tuple[int, ...]]]  # a mesh -> rank -> its coordinate
_MOST_ROOTS = 8  # cached state dicts
_SHARDED = "ShardedTensor"


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


class _Local(NamedTuple):
    """A rank's own tensor as like files store it: all that does not depend on the rank.

    Attributes:
        shape: the shape of the tensor.
        dtype: the dtype of the tensor.
        start: the byte of the file at which its elements begin.
        strides: bytes from one element to the next along each dim.
        number: the number of its storage's entry in the directory.
        extent: its place in that storage.
    """

    shape: tuple[int, ...]
    dtype: str
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


class _Root(NamedTuple):
    """A state dict, what is known of its DTensors, and of their local tensors in each form of file."""

    root: Any
    rows: list[tuple[str, Any]]  # name -> its DTensor, or the pickled value of another kind
    cuts: dict[Cut, Cut]
    locals: dict[int, tuple[Form, dict[int, _Local]]]  # by the id of the form, and of the DTensor


class Reader:
    """Read the rank files of one checkpoint, one after another. `meshes` collects their meshes."""

    def __init__(self) -> None:
        self.meshes: Meshes = {}
        self._pickles = RankPickles()
        self._forms = Forms()
        self._roots: dict[int, _Root] = {}  # by their id

    def read(self, paths: Mapping[int, str]) -> Iterator[tuple[int, int, list[tuple[str, Piece]]]]:
        """Read the metadata of all rank files.

        Args:
            paths: rank -> its file.

        Yields:
            The rank, the size of all its storages in bytes, and (tensor name, piece) for every piece.

        Raises:
            CkptconvError: a file is not a state dict, or one of its values is not a tensor.
        """
        files = open_torch_zips(list(paths.values()), self._pickles.load, self._forms)
        for rank, file in zip(paths, files, strict=True):
            yield rank, sum(place.nbytes for place in file.form.places.values()), self._pieces(file, rank)

    def _pieces(self, file: TorchZip, rank: int) -> list[tuple[str, Piece]]:
        path, root = file.path, file.root
        if not isinstance(root, dict):
            raise CkptconvError(
                "the rank file does not hold a state dict", where=path, found=type(root).__name__
            )
        if id(root) not in self._roots and len(self._roots) == _MOST_ROOTS:
            self._roots.clear()
        known = self._roots.get(id(root)) or self._new(root, path)
        _, local = known.locals.setdefault(id(file.form), (file.form, {}))
        resolver = _RankResolver(file, rank, self.meshes, local)
        pieces: list[tuple[str, Piece]] = []
        for name, value in known.rows:
            try:
                if isinstance(value, DTensor):
                    pieces.append((name, resolver.dtensor(value)))
                else:
                    pieces += ((name, piece) for piece in _others(file, value))
            except CkptconvError as error:
                raise error.within(inside=name, where=path) from error
        return pieces

    def _new(self, root: dict[Any, Any], path: str) -> _Root:
        """Read what a state dict says that does not depend on the rank."""
        known = _Root(root, [], {}, {})
        for name, value in root.items():
            check_name(name, path)
            try:
                is_dtensor = isinstance(value, WrapperRecord) and value.kind == "DTensor"
                known.rows.append((name, read_dtensor(value, known.cuts) if is_dtensor else value))
            except CkptconvError as error:
                raise error.within(inside=name, where=path) from error
        self._roots[id(root)] = known
        return known


class _RankResolver:
    """Resolve the DTensor specs, which all ranks share, to the boxes of one rank."""

    def __init__(self, file: TorchZip, rank: int, meshes: Meshes, local: dict[int, _Local]) -> None:
        self._file, self._rank, self._meshes, self._local = file, rank, meshes, local
        self._path, self._crcs = file.path, file.crcs
        self._positions: dict[int, tuple[Mesh, Position | None]] = {}  # by the id of a mesh
        self._here: dict[int, _Here] = {}  # by the id of a cut

    def dtensor(self, tensor: DTensor) -> Piece:
        """Return the piece that this rank holds, after a check of its shape against its placement."""
        whole, cut, _ = tensor
        position, box, is_empty = self._here.get(id(cut)) or self._cut(cut)
        if position is None:  # a rank outside the mesh holds nothing
            return Piece(whole, box, None)
        shape, dtype, start, strides, number, extent = self._local.get(id(tensor)) or self._stored(tensor)
        if is_empty and 0 in shape:
            return Piece(whole, box, None, position)
        if shape != box.sizes or dtype != whole.dtype:
            raise CkptconvError(
                "a shard's shape does not match its placement",
                found=f"{dtype} {list(shape)}",
                wanted=f"{whole.dtype} {list(box.sizes)}, for {cut.text} at mesh coordinate {position.index}",
            )
        chunk = Chunk(box.offsets, shape, self._path, start, strides)
        return Piece(whole, box, chunk, position, self._crcs[number], extent)

    def _stored(self, tensor: DTensor) -> _Local:
        view = self._file.view(tensor.local)
        number = self._file.form.places[tensor.local.storage.key].number
        start, strides = (view.chunks[0].start, view.chunks[0].strides) if view.chunks else (0, ())
        _, extent = checksum(self._file, tensor.local, view)
        found = self._local[id(tensor)] = _Local(view.shape, view.dtype, start, strides, number, extent)
        return found

    def _cut(self, cut: Cut) -> _Here:
        mesh, position = self._positions.get(id(cut.mesh)) or self._position(cut.mesh)
        box = Box((0,) * len(cut.shape), (0,) * len(cut.shape))
        if position is not None:
            if len(cut.placements) != len(mesh.shape):
                raise CkptconvError(f"{len(cut.placements)} placements on a mesh of {len(mesh.shape)} dims")
            box = local_box(cut.shape, mesh.shape, position.index, cut.placements, cut.order)
        found = self._here[id(cut)] = _Here(position, box, 0 in box.sizes)
        return found

    def _position(self, mesh: Inert) -> tuple[Mesh, Position | None]:
        found = self._positions[id(mesh)] = read_mesh(self._file, mesh)
        for each, position in (read_root(self._file, mesh), found):
            ranks = self._meshes.setdefault(each, {})
            if position is not None:
                ranks[self._rank] = position.index
        return found


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


def _others(file: TorchZip, value: Any) -> list[Piece]:
    """Return the pieces of a value that is not a DTensor."""
    if isinstance(value, TensorRecord):
        view = file.view(value)
        chunk = view.chunks[0] if view.chunks else None
        return [Piece(Whole(view.shape, view.dtype, ""), None, chunk, None, *checksum(file, value, view))]
    if isinstance(value, WrapperRecord) and value.kind == _SHARDED:
        return _sharded_tensor(file, value.raw)
    if isinstance(value, WrapperRecord | Inert):
        raise CkptconvError(
            f"holds an object of {value.kind}, not a tensor",
            hint="only tensors are read, nothing that a pickle names is run",
            kind=Kind.UNSUPPORTED,
        )
    if value is not None:
        raise CkptconvError(f"holds a {type(value).__name__}, not a tensor")
    return []


def _sharded_tensor(file: TorchZip, state: Any) -> list[Piece]:
    """Return a ShardedTensor's pieces. Its state is (local shards, metadata, ...); a rank without data has no shard."""
    if not isinstance(state, tuple) or len(state) < 2 or not isinstance(state[1], Inert):
        raise CkptconvError(
            "a ShardedTensor of an unknown form",
            hint="please report it with the torch version",
            kind=Kind.UNSUPPORTED,
        )
    shards, meta = state[0], state[1]
    shape = whole_numbers(meta.get("size"), "a ShardedTensor's shape")
    properties = meta.get("tensor_properties")
    fields = properties.state if isinstance(properties, Inert) and isinstance(properties.state, tuple) else ()
    dtype = next((field.name for field in fields if isinstance(field, Dtype)), None)
    pieces = []
    for shard in items(shards):
        tensor, where = field_of(shard, "tensor"), field_of(shard, "metadata")
        if not isinstance(tensor, TensorRecord):
            raise CkptconvError("a shard of a ShardedTensor is not a tensor")
        view = file.view(tensor)
        box = Box(
            whole_numbers(field_of(where, "shard_offsets"), "a shard's offsets"),
            whole_numbers(field_of(where, "shard_sizes"), "a shard's shape"),
        )
        if view.shape != box.sizes:
            raise CkptconvError(
                "a shard's shape does not match its metadata", found=view.shape, wanted=box.sizes
            )
        if dtype not in (None, view.dtype):
            raise CkptconvError("shards of one tensor have different dtypes", found=view.dtype, wanted=dtype)
        chunk = view.chunks[0]._replace(offsets=box.offsets) if view.chunks else None
        whole = Whole(shape, view.dtype, _SHARDED)
        pieces.append(Piece(whole, box, chunk, None, *checksum(file, tensor, view)))
    if not pieces and dtype:
        pieces.append(Piece(Whole(shape, dtype, _SHARDED), Box((0,) * len(shape), (0,) * len(shape)), None))
    return pieces
