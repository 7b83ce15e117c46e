"""Read the tensors of an FSDP rank file: DTensors, ShardedTensors and plain tensors.

The files of thousands of ranks repeat the same facts about thousands of tensors, so a fact that does not depend on the rank
is computed once.
"""

from __future__ import annotations

from typing import Any, NamedTuple

from ckptconv.backends.fsdp.dtensors import Cut, DTensor, read_dtensor
from ckptconv.backends.fsdp.mesh import Position, read_mesh, read_root
from ckptconv.backends.fsdp.sharding import local_box
from ckptconv.backends.fsdp.shared_pickles import RankPickles
from ckptconv.errors import CkptconvError, Kind
from ckptconv.formats.bounds import check_name, whole_numbers
from ckptconv.formats.stand_ins import Dtype, Inert, TensorRecord, WrapperRecord, field_of, items
from ckptconv.formats.torch_zip import TorchZip, open_torch_zip
from ckptconv.formats.zip_forms import Form, Forms
from ckptconv.tensors.boxes import Box, Chunk
from ckptconv.tensors.checkpoint import Mesh
from ckptconv.tensors.view import View, stored

Meshes = dict[Mesh, dict[int, tuple[int, ...]]]  # a mesh -> rank -> its coordinate
_MOST_ROOTS = 8  # cached state dicts


class Checksum(NamedTuple):
    """A stored tensor's checksum, as the file's directory records it.

    Attributes:
        crc: the CRC-32 of the tensor's storage; 0 if none was written.
        start: the tensor's first element in the storage.
        stride: the tensor's strides in the storage, in elements.
        slack: the number of bytes in the storage that the tensor does not use.
    """

    crc: int
    start: int
    stride: tuple[int, ...]
    slack: int

    def same(self, other: Checksum) -> bool | None:
        """Compare two tensors of equal shape and dtype; the result is None if only reading the bytes can decide."""
        if not self.crc or not other.crc:
            return None
        if self == other:
            return True
        alike = self._replace(crc=0) == other._replace(crc=0)
        return False if alike and not self.slack else None


class Piece(NamedTuple):
    """The part of a tensor that one rank holds.

    Attributes:
        shape: the shape of the whole tensor.
        dtype: the dtype of the tensor.
        placement: its placements, as text.
        box: the box that the rank holds, in elements; None for a plain tensor, which is whole.
        view: the view of the stored bytes.
        position: the rank's position in the tensor's own mesh; None if there is no mesh, or if it lacks the rank.
        checksum: the checksum of the stored bytes.
    """

    shape: tuple[int, ...]
    dtype: str
    placement: str
    box: Box | None
    view: View
    position: Position | None = None
    checksum: Checksum = Checksum(0, 0, (), 0)


class _Local(NamedTuple):
    """A rank's own tensor as like files store it: all that does not depend on the rank.

    Attributes:
        shape: the shape of the tensor.
        dtype: the dtype of the tensor.
        chunk: the chunk of its elements, with the path of the first of these files; None if it has no elements.
        number: the number of its storage's entry in the directory.
        checksum: the tensor's, without the CRC.
    """

    shape: tuple[int, ...]
    dtype: str
    chunk: Chunk | None
    number: int
    checksum: Checksum


class _Here(NamedTuple):
    """What one rank holds of the tensors with one cut.

    Attributes:
        position: the position of the rank in the mesh; None if the mesh does not contain it.
        box: that it holds, in elements.
        is_empty: True if the box has no elements.
        empty: dtype -> the piece without elements.
    """

    position: Position | None
    box: Box
    is_empty: bool
    empty: dict[str, Piece]


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

    def read(self, path: str, rank: int) -> tuple[int, list[tuple[str, Piece]]]:
        """Read the metadata of one rank file.

        Returns:
            The size of all storages in bytes, and (tensor name, piece) for every piece.

        Raises:
            CkptconvError: the file is not a state dict, or one of its values is not a tensor.
        """
        file = open_torch_zip(path, self._pickles.load, self._forms)
        root = file.root
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
        return sum(place.nbytes for place in file.form.places.values()), pieces

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
        self._positions: dict[int, tuple[Mesh, Position | None]] = {}  # by the id of a mesh
        self._here: dict[int, _Here] = {}  # by the id of a cut

    def dtensor(self, tensor: DTensor) -> Piece:
        """Return the piece that this rank holds, after a check of its shape against its placement."""
        dtype, cut, _ = tensor
        position, box, is_empty, empty = self._here.get(id(cut)) or self._cut(cut)
        if position is None:  # a rank outside the mesh holds nothing
            return empty.get(dtype) or self._empty(empty, cut, dtype, box, None)
        shape, stored_dtype, chunk, number, checksum = self._local.get(id(tensor)) or self._stored(tensor)
        if is_empty and 0 in shape:
            return empty.get(dtype) or self._empty(empty, cut, dtype, box, position)
        if shape != box.sizes or stored_dtype != dtype:
            raise CkptconvError(
                "a shard's shape does not match its placement",
                found=f"{stored_dtype} {list(shape)}",
                wanted=f"{dtype} {list(box.sizes)}, for {cut.text} at mesh coordinate {position.index}",
            )
        assert chunk is not None
        view = View(shape, dtype, (Chunk(chunk.offsets, shape, self._file.path, chunk.start, chunk.strides),))
        _, start, stride, slack = checksum
        crc = Checksum(self._file.crcs[number], start, stride, slack)
        return Piece(cut.shape, dtype, cut.text, box, view, position, crc)

    def _stored(self, tensor: DTensor) -> _Local:
        view = self._file.view(tensor.local)
        number = self._file.form.places[tensor.local.storage.key].number
        known = checksum(self._file, tensor.local, view)
        chunk = view.chunks[0] if view.chunks else None
        found = self._local[id(tensor)] = _Local(view.shape, view.dtype, chunk, number, known)
        return found

    def _cut(self, cut: Cut) -> _Here:
        mesh, position = self._positions.get(id(cut.mesh)) or self._position(cut.mesh)
        box = Box((0,) * len(cut.shape), (0,) * len(cut.shape))
        if position is not None:
            if len(cut.placements) != len(mesh.shape):
                raise CkptconvError(f"{len(cut.placements)} placements on a mesh of {len(mesh.shape)} dims")
            box = local_box(cut.shape, mesh.shape, position.index, cut.placements, cut.order)
        found = self._here[id(cut)] = _Here(position, box, 0 in box.sizes, {})
        return found

    def _empty(
        self, empty: dict[str, Piece], cut: Cut, dtype: str, box: Box, position: Position | None
    ) -> Piece:
        sizes = (0,) if position is None else box.sizes
        view = stored(self._file.path, 0, sizes, dtype)
        piece = empty[dtype] = Piece(cut.shape, dtype, cut.text, box, view, position)
        return piece

    def _position(self, mesh: Inert) -> tuple[Mesh, Position | None]:
        found = self._positions[id(mesh)] = read_mesh(self._file, mesh)
        for each, position in (read_root(self._file, mesh), found):
            ranks = self._meshes.setdefault(each, {})
            if position is not None:
                ranks[self._rank] = position.index
        return found


def checksum(file: TorchZip, tensor: TensorRecord, view: View) -> Checksum:
    """Return the checksum that the file's directory records for a tensor.

    Args:
        file: the rank file.
        tensor: its record in the pickle.
        view: the view of the same tensor.
    """
    place = file.form.places.get(tensor.storage.key)
    if place is None or not view.numel:
        return Checksum(0, 0, (), 0)
    return Checksum(file.crcs[place.number], tensor.offset, tensor.stride, place.nbytes - view.nbytes)


def _others(file: TorchZip, value: Any) -> list[Piece]:
    """Return the pieces of a value that is not a DTensor."""
    if isinstance(value, TensorRecord):
        view = file.view(value)
        return [Piece(view.shape, view.dtype, "", None, view, None, checksum(file, value, view))]
    if isinstance(value, WrapperRecord) and value.kind == "ShardedTensor":
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
        crc = checksum(file, tensor, view)
        pieces.append(Piece(shape, dtype or view.dtype, "ShardedTensor", box, view, None, crc))
    if not pieces and dtype:
        empty = Box((0,) * len(shape), (0,) * len(shape))
        pieces.append(Piece(shape, dtype, "ShardedTensor", empty, stored(file.path, 0, (0,), dtype)))
    return pieces
