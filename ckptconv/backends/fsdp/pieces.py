"""Read the tensors of an FSDP rank file: DTensors, ShardedTensors and plain tensors.

The files of thousands of ranks repeat the same facts about thousands of tensors, so a fact that does not depend on the rank
is computed once.
"""

from __future__ import annotations

from typing import Any, NamedTuple

from ckptconv.backends.fsdp.attributes import require_known
from ckptconv.backends.fsdp.mesh import Position, read_mesh, read_root
from ckptconv.backends.fsdp.sharding import PLACEMENTS, Placement, local_box
from ckptconv.backends.fsdp.shared_pickles import RankPickles
from ckptconv.errors import CkptconvError, Kind, brief
from ckptconv.formats.bounds import check_name, whole_numbers
from ckptconv.formats.stand_ins import Dtype, Inert, TensorRecord, WrapperRecord, field_of, items
from ckptconv.formats.torch_zip import TorchZip, open_torch_zip
from ckptconv.tensors.boxes import Box
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


class _Cut(NamedTuple):
    """How tensors of one shape are cut over a mesh; `text` is the placements as text."""

    shape: tuple[int, ...]
    mesh: Inert
    placements: tuple[Placement, ...]
    order: tuple[tuple[int, tuple[int, ...]], ...]
    text: str


class _DTensor(NamedTuple):
    """A pickled DTensor without the rank's position in the mesh. Tensors with equal cuts share one `cut` object."""

    dtype: str
    cut: _Cut
    local: TensorRecord


class Reader:
    """Read the rank files of one checkpoint, one after another. `meshes` collects their meshes."""

    def __init__(self) -> None:
        self.meshes: Meshes = {}
        self._pickles = RankPickles()
        self._roots: dict[int, tuple[Any, dict[int, _DTensor], dict[_Cut, _Cut]]] = {}  # by their id

    def read(self, path: str, rank: int) -> tuple[int, list[tuple[str, Piece]]]:
        """Read the metadata of one rank file.

        Returns:
            The size of all storages in bytes, and (tensor name, piece) for every piece.

        Raises:
            CkptconvError: the file is not a state dict, or one of its values is not a tensor.
        """
        file = open_torch_zip(path, self._pickles.load)
        root = file.root
        if not isinstance(root, dict):
            raise CkptconvError(
                "the rank file does not hold a state dict", where=path, found=type(root).__name__
            )
        if id(root) not in self._roots and len(self._roots) == _MOST_ROOTS:
            self._roots.clear()
        _, dtensors, cuts = self._roots.setdefault(id(root), (root, {}, {}))
        resolver = _RankResolver(file, rank, self.meshes)
        pieces: list[tuple[str, Piece]] = []
        for name, value in root.items():
            check_name(name, path)
            try:
                if isinstance(value, WrapperRecord) and value.kind == "DTensor":
                    if id(value) not in dtensors:
                        dtensors[id(value)] = _read_dtensor(value, cuts)
                    pieces.append((name, resolver.dtensor(dtensors[id(value)])))
                else:
                    pieces += ((name, piece) for piece in _others(file, value))
            except CkptconvError as error:
                raise error.within(inside=name, where=path) from error
        return sum(entry.nbytes for entry in file.entries.values()), pieces


class _RankResolver:
    """Resolve the DTensor specs, which all ranks share, to the boxes of one rank."""

    def __init__(self, file: TorchZip, rank: int, meshes: Meshes) -> None:
        self._file, self._rank, self._meshes = file, rank, meshes
        self._positions: dict[int, tuple[Mesh, Position | None]] = {}  # by the id of a mesh
        self._boxes: dict[int, Box] = {}  # by the id of a cut

    def dtensor(self, tensor: _DTensor) -> Piece:
        """Return the piece that this rank holds, after a check of its shape against its placement."""
        dtype, cut, local = tensor
        mesh, position = self._positions.get(id(cut.mesh)) or self._position(cut.mesh)
        if position is None:  # a rank outside the mesh holds nothing
            nothing = Box((0,) * len(cut.shape), (0,) * len(cut.shape))
            return Piece(cut.shape, dtype, cut.text, nothing, stored(self._file.path, 0, (0,), dtype))
        box = self._boxes.get(id(cut))
        if box is None:
            if len(cut.placements) != len(mesh.shape):
                raise CkptconvError(f"{len(cut.placements)} placements on a mesh of {len(mesh.shape)} dims")
            box = local_box(cut.shape, mesh.shape, position.index, cut.placements, cut.order)
            self._boxes[id(cut)] = box
        view = self._file.view(local)
        if 0 in box.sizes and 0 in view.shape:
            view = stored(self._file.path, 0, box.sizes, dtype)
        if view.shape != box.sizes or view.dtype != dtype:
            raise CkptconvError(
                "a shard's shape does not match its placement",
                found=f"{view.dtype} {list(view.shape)}",
                wanted=f"{dtype} {list(box.sizes)}, for {cut.text} at mesh coordinate {position.index}",
            )
        return Piece(cut.shape, dtype, cut.text, box, view, position, checksum(self._file, local, view))

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
    entry = file.entries.get(tensor.storage.key)
    if entry is None or not view.numel:
        return Checksum(0, 0, (), 0)
    return Checksum(entry.crc, tensor.offset, tensor.stride, entry.nbytes - view.nbytes)


def _read_dtensor(value: WrapperRecord, cuts: dict[_Cut, _Cut]) -> _DTensor:
    spec, local = value.state.get("_spec"), value.state.get("_local_tensor")
    meta = spec.get("tensor_meta") if isinstance(spec, Inert) else None
    if not isinstance(spec, Inert) or not isinstance(local, TensorRecord) or not isinstance(meta, Inert):
        raise CkptconvError("a DTensor without its local tensor or its spec")
    require_known(spec, "DTensorSpec")
    mesh = spec.get("mesh")
    if not isinstance(mesh, Inert):
        raise CkptconvError("a DTensor without a mesh")
    # TensorMeta(shape, stride, dtype): a NamedTuple, so its fields are the constructor's arguments.
    if len(meta.args) != 3:
        raise CkptconvError("a DTensor without its shape and dtype")
    shape = whole_numbers(meta.args[0], "a DTensor's shape")
    dtype = meta.args[2].name if isinstance(meta.args[2], Dtype) else "?"
    placements = tuple(map(_placement, items(spec.get("placements"))))
    order = tuple(_order(entry) for entry in items(spec.get("shard_order")))
    if spec.get("use_strided_shard_as_shard_order") is False and any(
        p.kind == "_StridedShard" for p in placements
    ):
        raise CkptconvError(
            "a _StridedShard that comes from a view: its rank holds rows that do not lie together",
            found=f"{', '.join(map(str, placements))}, use_strided_shard_as_shard_order=False",
            hint="redistribute the tensor to plain Shard placements before it is saved",
            kind=Kind.UNSUPPORTED,
        )
    if any(mesh_dim >= len(placements) for _, dims in order for mesh_dim in dims):
        raise CkptconvError("a DTensor's shard order names a mesh dimension that does not exist")
    cut = _Cut(shape, mesh, placements, order, f"({', '.join(map(str, placements))})")
    return _DTensor(dtype, cuts.setdefault(cut, cut), local)


def _placement(placement: Any) -> Placement:
    kind = placement.kind if isinstance(placement, Inert) else type(placement).__name__
    if kind in PLACEMENTS:
        require_known(placement, kind)
    dim, factor = field_of(placement, "dim"), field_of(placement, "split_factor")
    numbers = (0 if dim is None else dim, 1 if factor is None else factor)
    if not all(type(number) is int for number in numbers):
        raise CkptconvError(
            f"a {kind} placement has parameters that are not integers",
            found=brief(numbers),
            kind=Kind.UNSUPPORTED,
        )
    return Placement(kind, *numbers)


def _order(entry: Any) -> tuple[int, tuple[int, ...]]:
    """Return (tensor_dim, mesh_dims) of a ShardOrderEntry, which is a NamedTuple."""
    if not isinstance(entry, Inert) or len(entry.args) != 2:
        raise CkptconvError("a DTensor has a shard order of an unknown form", kind=Kind.UNSUPPORTED)
    (dim,), dims = whole_numbers(entry.args[:1], "a dim"), whole_numbers(entry.args[1], "an order of dims")
    return dim, dims


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
