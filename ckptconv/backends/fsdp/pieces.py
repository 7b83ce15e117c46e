"""Read the tensors of an FSDP rank file: DTensors, ShardedTensors and plain tensors.

The files of thousands of ranks repeat the same facts about thousands of tensors, so a fact that does not depend on the rank
is computed once.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping
from typing import Any, NamedTuple

from ckptconv.backends.fsdp.dtensors import Cut, DTensor, Whole, read_dtensor
from ckptconv.backends.fsdp.held import DTensors, Meshes, checksum
from ckptconv.backends.fsdp.piece import Piece, Pieces
from ckptconv.backends.fsdp.shared_pickles import RankPickles
from ckptconv.errors import CkptconvError, Kind
from ckptconv.formats.bounds import check_name, whole_numbers
from ckptconv.formats.inert import Inert, field_of, items
from ckptconv.formats.stand_ins import Dtype, TensorRecord, WrapperRecord
from ckptconv.formats.torch_zip import TorchZip, open_torch_zips
from ckptconv.formats.zip_forms import Forms
from ckptconv.tensors.boxes import Box

_MOST_ROOTS = 8  # cached state dicts
_SHARDED = "ShardedTensor"


class _Root(NamedTuple):
    """A state dict, and what is known of it.

    Attributes:
        root: the dict.
        named: its DTensors, by name.
        dtensors: what ranks hold of these.
        others: the names and values of other kinds, which are read for each rank.
        tensors: where the pieces of its DTensors go, in order; empty until a rank with it was read.
    """

    root: Any
    named: dict[str, DTensor]
    dtensors: DTensors
    others: dict[str, Any]
    tensors: list[Pieces]


class Reader:
    """Read the rank files of one checkpoint, one after another.

    Attributes:
        meshes: the meshes of their tensors.
        tensors: all pieces of every tensor, by name.
        nbytes: the size of all storages in bytes.
    """

    def __init__(self) -> None:
        self.meshes: Meshes = {}
        self.tensors: defaultdict[str, Pieces] = defaultdict(Pieces)
        self.nbytes = 0
        self._pickles = RankPickles()
        self._forms = Forms()
        self._roots: dict[int, _Root] = {}  # by their id

    def read(self, paths: Mapping[int, str]) -> None:
        """Read the metadata of all rank files.

        Args:
            paths: rank -> its file.

        Raises:
            CkptconvError: a file is not a state dict, one of its values is not a tensor, or the ranks disagree on one.
        """
        files = open_torch_zips(list(paths.values()), self._pickles.load, self._forms)
        for rank, file in zip(paths, files, strict=True):
            self.nbytes += file.form.nbytes
            self._add(file, rank)

    def _add(self, file: TorchZip, rank: int) -> None:
        path, root = file.path, file.root
        if not isinstance(root, dict):
            raise CkptconvError(
                "the rank file does not hold a state dict", where=path, found=type(root).__name__
            )
        if id(root) not in self._roots and len(self._roots) == _MOST_ROOTS:
            self._roots.clear()
        known = self._roots.get(id(root)) or self._new(root, path)
        pieces = known.dtensors.of_rank(file, rank, self.meshes)
        if known.tensors:  # the first rank with this state dict was compared with the ranks before it
            for found, piece in zip(known.tensors, pieces, strict=True):
                found.ranks.append(rank)
                found.pieces.append(piece)
        held = {} if known.tensors else dict(zip(known.named, pieces, strict=True))
        for name, value in root.items() if held else known.others.items():
            for piece in [held[name]] if name in held else _others(file, name, value):
                self.tensors[name].add(name, rank, piece)
        if held:
            known.tensors.extend(self.tensors[name] for name in known.named)

    def _new(self, root: dict[Any, Any], path: str) -> _Root:
        """Read what a state dict says that does not depend on the rank."""
        named: dict[str, DTensor] = {}
        cuts: dict[Cut, Cut] = {}
        for name, value in root.items():
            check_name(name, path)
            if isinstance(value, WrapperRecord) and value.kind == "DTensor":
                try:
                    named[name] = read_dtensor(value, cuts)
                except CkptconvError as error:
                    raise error.within(inside=name, where=path) from error
        others = {name: value for name, value in root.items() if name not in named}
        known = self._roots[id(root)] = _Root(root, named, DTensors(named), others, [])
        return known


def _others(file: TorchZip, name: str, value: Any) -> list[Piece]:
    """Return the pieces of a value that is not a DTensor."""
    try:
        return _pieces(file, value)
    except CkptconvError as error:
        raise error.within(inside=name, where=file.path) from error


def _pieces(file: TorchZip, value: Any) -> list[Piece]:
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
