"""Read the files of torch.distributed.checkpoint: `.metadata` records where each chunk is in the `__R_T.distcp` files.

torch/distributed/checkpoint/filesystem.py writes them. Every chunk is a separate torch.save archive at an offset in the file
of its rank. The metadata is checked against one archive of each kind, and against every archive once its elements are read.
"""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Iterator, Sequence
from itertools import islice
from pathlib import Path
from typing import Any, NamedTuple

from ckptconv.backends.dcp.archive_file import Piece
from ckptconv.backends.dcp.archives import read_archives
from ckptconv.backends.dcp.layout import METADATA
from ckptconv.backends.dcp.places import Info, Infos, check_places
from ckptconv.errors import CkptconvError, Kind, brief
from ckptconv.formats.bounds import check_name, is_file_name, is_range, whole_numbers
from ckptconv.formats.inert import Inert, fields_of, items
from ckptconv.formats.stand_ins import Dtype
from ckptconv.formats.torch_zip import torch_zip_at
from ckptconv.formats.unpickle import safe_load
from ckptconv.tensors.boxes import Chunk
from ckptconv.tensors.checkpoint import RankFile, Skipped, StoredTensor
from ckptconv.tensors.look import is_file, opened, read_bytes, size_of
from ckptconv.tensors.stored_file import path_of
from ckptconv.tensors.tiling import check_tiling
from ckptconv.tensors.view import View

_FILE = re.compile(r"^__(\d+)_(\d+)\.distcp$")


class DcpFiles(NamedTuple):
    """The requested tensors, the files that hold them, and the size of everything else."""

    tensors: dict[str, StoredTensor]
    files: tuple[RankFile, ...]
    skipped: tuple[Skipped, ...]

    @property
    def paths(self) -> list[Path]:
        """Return the files that hold the tensors."""
        return [path_of(file.path) for file in self.files]

    @property
    def world_size(self) -> int:
        """Return the number of ranks that wrote a file; DCP does not record how many took part."""
        return len({file.rank for file in self.files})


class DcpMetadata(NamedTuple):
    """The contents of `.metadata`.

    table: name -> the record of the stored entry.
    paths: name -> the keys of the state dict that lead to the entry.
    infos: name and offsets -> the place of the archive.
    notes: on entries that have one place.
    """

    folder: Path
    table: dict[str, Any]
    paths: dict[str, tuple[str | int, ...]]
    infos: Infos
    notes: tuple[str, ...]

    def shape(self, name: str) -> tuple[int, ...] | None:
        """Return the shape of a stored tensor, or None if the entry is not a tensor."""
        entry = self.table[name]
        return _shape(name, entry, self.folder) if _is_tensor(entry) else None


def read_metadata(folder: Path) -> DcpMetadata:
    """Read only `.metadata`.

    Raises:
        CkptconvError: the file is not DCP's metadata, or `check_places` refuses it.
    """
    root = safe_load(read_bytes(folder / METADATA), str(folder / METADATA))
    table = root.get("state_dict_metadata") if isinstance(root, Inert) else None
    places = root.get("storage_data") if isinstance(root, Inert) else None
    if not isinstance(table, dict) or not isinstance(places, dict):
        raise CkptconvError("not the metadata of a distributed checkpoint", where=folder / METADATA)
    path = folder / METADATA
    for name in table:
        check_name(name, path)
    paths, infos = _paths(table, root.get("planner_data")), dict(_infos(places, folder))
    return DcpMetadata(folder, table, paths, infos, check_places(infos, table, path))


def read_tensors(
    metadata: DcpMetadata, also: Sequence[Path], why_not: Callable[[str], str | None], elements: bool
) -> DcpFiles:
    """Find the elements of the requested tensors in their archives.

    Args:
        metadata: from `read_metadata`.
        also: other folders that hold some of the files.
        why_not: returns the reason to skip a name ("optimizer"), or None to read it.
        elements: False if no elements will be read; see `read_archives`.

    Raises:
        CkptconvError: the save did not finish, a file is missing, or an archive contradicts the metadata.
    """
    folder, infos = metadata.folder, metadata.infos
    left_out: dict[str, list[int]] = {}
    wanted: dict[str, list[Piece]] = {}
    numbers = _Numbers()
    for name, entry in metadata.table.items():
        pieces = list(_pieces(name, entry, infos, numbers))
        reason = why_not(name) or (None if _is_tensor(entry) else "no tensor")
        if reason is None:
            wanted[name] = [piece for piece in pieces if 0 not in piece.sizes]
            continue
        count = left_out.setdefault(reason, [0, 0])
        count[0] += 1
        count[1] += sum(piece.length for piece in pieces) or infos.get((name, None), ("", 0, 0))[2]
    pieces = [piece for parts in wanted.values() for piece in parts]
    found = read_archives(pieces, [folder, *also], elements)
    used = dict.fromkeys(chunk.file for _, chunk in found)
    left = iter(found)
    return DcpFiles(
        tensors={
            name: _tensor(name, metadata.table[name], [*islice(left, len(pieces))], folder)
            for name, pieces in wanted.items()
        },
        files=tuple(sorted(map(_rank_file, used), key=lambda file: (file.rank, file.path))),
        skipped=tuple(Skipped(f"{n} entries", size, reason) for reason, (n, size) in left_out.items()),
    )


def read_object(metadata: DcpMetadata, name: str, also: Sequence[Path]) -> Any:
    """Read an entry that is not a tensor, as stand-ins.

    Args:
        metadata: from `read_metadata`.
        name: the name of the entry.
        also: further folders that hold some of the files.

    Returns:
        The object, or None if the entry or its file does not exist.
    """
    info = metadata.infos.get((name, None))
    file = info and next((f for d in (metadata.folder, *also) if is_file(f := d / info[0])), None)
    if info is None or file is None or _is_tensor(metadata.table.get(name)):
        return None
    with opened(str(file)) as handle:
        return torch_zip_at(str(file), handle, *info[1:]).root


def read_nested(metadata: DcpMetadata, keys: tuple[str, ...], also: Sequence[Path]) -> dict[str, Any]:
    """Read a dict of plain values, each of which is an entry of its own, as stand-ins.

    Args:
        metadata: from `read_metadata`.
        keys: the keys that lead to the dict.
        also: further folders that hold some of the files.

    Returns:
        The dict; {} if no entry is below the keys. Empty dicts in it have no entry, and are lost.
    """
    found: dict[Any, Any] = {}
    for name, path in metadata.paths.items():
        if path[: len(keys)] == keys and len(path) > len(keys):
            into = found
            *above, last = path[len(keys) :]
            for key in above:
                into = into.setdefault(key, {})
            into[last] = read_object(metadata, name, also)
    return found


def dtype_of(entry: Any) -> str | None:
    """Return the dtype of a TensorStorageMetadata: the first item of the tuple as which its TensorProperties are pickled."""
    properties = entry.get("properties") if isinstance(entry, Inert) else None
    state = properties.state if isinstance(properties, Inert) else None
    fields = state.values() if isinstance(state, dict) else state if isinstance(state, tuple) else ()
    return next((field.name for field in fields if isinstance(field, Dtype)), None)


def _shape(name: str, entry: Inert, folder: Path) -> tuple[int, ...]:
    return whole_numbers(entry.get("size"), f"the shape of {name}", folder)


def _is_tensor(entry: Any) -> bool:
    return isinstance(entry, Inert) and entry.kind.endswith(".TensorStorageMetadata")


def _paths(table: dict[str, Any], planner: Any) -> dict[str, tuple[str | int, ...]]:
    """Return the paths; without paths, because the planner did not flatten, a name is one key (default_planner.py)."""
    known = planner if isinstance(planner, dict) else {}
    found: dict[str, tuple[str | int, ...]] = {}
    for name in table:
        path = known.get(name)
        plain = isinstance(path, tuple) and path and all(type(key) in (str, int) for key in path)
        found[name] = path if plain and isinstance(path, tuple) else (name,)
    return found


def _infos(places: dict[Any, Any], folder: Path) -> Iterator[tuple[tuple[str, tuple[int, ...] | None], Info]]:
    metadata = folder / METADATA
    names, files, numbers = set[str](), set[str](), _Numbers()
    for index, info in places.items():
        of, part = fields_of(info), fields_of(index)
        name: Any = part.get("fqn")
        offset = part.get("offset")
        file: Any = of.get("relative_path")
        start: Any = of.get("offset")
        length: Any = of.get("length")
        if of.get("transform_descriptors"):
            raise CkptconvError(
                f"{brief(name)} is stored compressed",
                where=folder,
                hint="save again without storage extensions",
                kind=Kind.UNSUPPORTED,
            )
        known = type(file) is str and file in files
        if not (known or is_file_name(file)) or not is_range(start, length):
            raise CkptconvError(
                "the metadata refers to a file or range outside the checkpoint",
                where=folder,
                found=f"{brief(file)}, bytes {brief(start)} and {brief(length)}",
            )
        files.add(file)
        if type(name) is not str or name not in names:
            names.add(check_name(name, metadata))
        at = None if offset is None else numbers.of(offset, "the offset of a part", folder)
        yield (name, at), (file, start, length)


class _Numbers:
    """Shapes and offsets that were checked, by identity: the unpickler makes one tuple of equal ones."""

    def __init__(self) -> None:
        self._known: dict[int, tuple[Any, tuple[int, ...]]] = {}

    def of(self, value: Any, what: str, where: object = None) -> tuple[int, ...]:
        """Return a value as a tuple of whole numbers; see `whole_numbers`."""
        known = self._known.get(id(value))
        if known is None:
            known = self._known[id(value)] = value, whole_numbers(value, what, where)
        return known[1]


def _pieces(name: str, entry: Any, infos: Infos, numbers: _Numbers) -> Iterator[Piece]:
    if not _is_tensor(entry):
        return
    dtype, what = dtype_of(entry), f"a part of {name}"
    chunks = items(entry.get("chunks"))
    whole = infos.get((name, None)) if len(chunks) == 1 else None
    for chunk in chunks:
        of = fields_of(chunk)
        offsets, sizes = numbers.of(of.get("offsets"), what), numbers.of(of.get("sizes"), what)
        info = infos.get((name, offsets)) or whole
        if info is None:
            raise CkptconvError(f"the metadata does not locate the part of {name} at {list(offsets)}")
        yield Piece(name, dtype, offsets, sizes, *info)


def _tensor(name: str, entry: Any, parts: list[tuple[str, Chunk]], folder: Path) -> StoredTensor:
    chunks = tuple(chunk for _, chunk in parts)
    try:
        dtype = dtype_of(entry) or next((dtype for dtype, _ in parts), None)
        if dtype is None:
            raise CkptconvError("the metadata has no dtype for it", where=name)
        other = next((other for other, _ in parts if other != dtype), None)
        if other is not None:
            raise CkptconvError("shards of one tensor have different dtypes", found=other, wanted=dtype)
        shape = _shape(name, entry, folder)
        if any(len(chunk.sizes) != len(shape) for chunk in chunks):
            raise CkptconvError("a shard and its tensor have different numbers of dims", wanted=list(shape))
        check_tiling(shape, chunks)
    except CkptconvError as error:
        raise error.within(inside=name, where=folder) from error
    return StoredTensor(View(shape, dtype, chunks), f"{len(parts)} chunks" if len(parts) > 1 else "")


def _rank_file(path: str) -> RankFile:
    match = _FILE.match(os.path.basename(path))
    return RankFile(int(match.group(1)) if match else 0, str(path), size_of(path))
