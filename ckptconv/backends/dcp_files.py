"""torch.distributed.checkpoint on disk: `.metadata` says which part of which tensor lies where in `__R_T.distcp`.

Written by torch/distributed/checkpoint/filesystem.py: every chunk is an archive of its own, as torch.save makes it, at
an offset of its rank's file. What the metadata says is checked against each archive's own pickle.
"""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ckptconv.backends.stand_ins import Dtype, Inert, TensorRecord, safe_load
from ckptconv.backends.torch_zip import torch_zip_at
from ckptconv.checkpoint import RankFile, Skipped, StoredTensor
from ckptconv.errors import CkptconvError, Incomplete
from ckptconv.view import View, place

METADATA = ".metadata"
_FILE = re.compile(r"^__(\d+)_(\d+)\.distcp$")


@dataclass(frozen=True, slots=True)
class DcpFiles:
    """The tensors that were asked for, the files they lie in, and the size of everything else."""

    tensors: dict[str, StoredTensor]
    files: tuple[RankFile, ...]
    skipped: tuple[Skipped, ...]
    names: tuple[str, ...]
    planner: Any

    @property
    def world_size(self) -> int:
        """Ranks that wrote something; DCP does not say how many took part."""
        return len({file.rank for file in self.files})


@dataclass(frozen=True, slots=True)
class _Piece:
    """One stored chunk of a tensor: its box, and the range that its archive has in a file."""

    offsets: tuple[int, ...]
    sizes: tuple[int, ...]
    file: str
    start: int
    length: int


def is_dcp(folder: Path) -> bool:
    """True for a folder with DCP's metadata."""
    return (folder / METADATA).is_file()


def read_dcp(folder: Path, also: Sequence[Path], why_not: Callable[[str], str | None]) -> DcpFiles:
    """Read the metadata, and the archive header of every tensor that is wanted.

    why_not: for a name, the reason to leave it out ("optimizer"), or None. also: folders with more of the files.
    Raises CkptconvError for a save that never finished, a missing file, and archives that contradict the metadata.
    """
    root = safe_load((folder / METADATA).read_bytes(), str(folder / METADATA))
    table = root.get("state_dict_metadata") if isinstance(root, Inert) else None
    places = root.get("storage_data") if isinstance(root, Inert) else None
    if not isinstance(table, dict) or not isinstance(places, dict):
        raise CkptconvError("not the metadata of a distributed checkpoint", where=folder / METADATA)
    infos = dict(_infos(places, folder))
    left_out: dict[str, list[int]] = {}
    tensors: dict[str, StoredTensor] = {}
    used: dict[str, None] = {}
    with ExitStack() as stack:
        handles: dict[str, int] = {}
        for name, entry in table.items():
            pieces = list(_pieces(name, entry, infos))
            reason = why_not(name) or (None if _is_tensor(entry) else "no tensor")
            if reason is not None:
                count = left_out.setdefault(reason, [0, 0])
                count[0] += 1
                count[1] += sum(piece.length for piece in pieces) or infos.get((name, None), ("", 0, 0))[2]
                continue
            tensors[name] = _tensor(name, entry, pieces, [folder, *also], handles, stack)
            used.update(dict.fromkeys(tensors[name].view.files))
    return DcpFiles(
        tensors=tensors,
        files=tuple(sorted(map(_rank_file, used), key=lambda file: (file.rank, file.path))),
        skipped=tuple(Skipped(f"{n} entries", size, reason) for reason, (n, size) in left_out.items()),
        names=tuple(table),
        planner=root.get("planner_data"),
    )


def dtype_of(entry: Any) -> str | None:
    """The dtype of a TensorStorageMetadata; its TensorProperties pickle as a tuple that begins with it."""
    properties = entry.get("properties") if isinstance(entry, Inert) else None
    state = properties.state if isinstance(properties, Inert) else None
    fields = state.values() if isinstance(state, dict) else state if isinstance(state, tuple) else ()
    return next((field.name for field in fields if isinstance(field, Dtype)), None)


def _is_tensor(entry: Any) -> bool:
    return isinstance(entry, Inert) and entry.kind.endswith(".TensorStorageMetadata")


_Info = tuple[str, int, int]  # file, offset, length


def _infos(
    places: dict[Any, Any], folder: Path
) -> Iterator[tuple[tuple[str, tuple[int, ...] | None], _Info]]:
    for index, info in places.items():
        name, offset = index.get("fqn"), index.get("offset")
        file, start, length = info.get("relative_path"), info.get("offset"), info.get("length")
        if info.get("transform_descriptors"):
            raise CkptconvError(
                f"{name} is stored compressed",
                where=folder / str(file),
                hint="save again without storage extensions",
            )
        plain = isinstance(file, str) and "/" not in file and type(start) is int and type(length) is int
        if not plain or start < 0 or length < 0:
            raise CkptconvError("the metadata names a place outside the checkpoint", where=folder, found=file)
        yield (str(name), None if offset is None else tuple(offset)), (file, start, length)


def _pieces(name: str, entry: Any, infos: dict[Any, _Info]) -> Iterator[_Piece]:
    if not _is_tensor(entry):
        return
    for chunk in entry.get("chunks") or ():
        offsets, sizes = tuple(chunk.get("offsets")), tuple(chunk.get("sizes"))
        info = infos.get((name, offsets)) or infos.get((name, None))
        if info is None:
            raise CkptconvError(f"the metadata does not say where the part of {name} at {list(offsets)} lies")
        yield _Piece(offsets, sizes, *info)


def _tensor(
    name: str,
    entry: Any,
    pieces: list[_Piece],
    folders: Sequence[Path],
    handles: dict[str, int],
    stack: ExitStack,
) -> StoredTensor:
    shape, dtype = tuple(entry.get("size")), dtype_of(entry)
    parts: list[tuple[tuple[int, ...], View]] = []
    for piece in pieces:
        if 0 in piece.sizes:
            continue
        path, handle = _open(piece.file, folders, handles, stack)
        size = os.fstat(handle).st_size
        if piece.start + piece.length > size:
            raise CkptconvError(
                "the file ends before its tensors do",
                where=path,
                found=f"{size:,} bytes",
                wanted=f"at least {piece.start + piece.length:,}, for {name}",
                hint="copy it again from the node where it was written",
            )
        archive = torch_zip_at(path, handle, piece.start, piece.length)
        if not isinstance(archive.root, TensorRecord):
            raise CkptconvError(f"{name} is stored as something that is no tensor", where=path)
        view = archive.view(archive.root)
        if view.shape != piece.sizes or (dtype is not None and view.dtype != dtype):
            raise CkptconvError(
                f"the stored part of {name} is not what the metadata says",
                where=path,
                found=f"{view.dtype} {list(view.shape)}",
                wanted=f"{dtype} {list(piece.sizes)}",
            )
        parts.append((piece.offsets, view))
    try:
        view = place(shape, dtype or parts[0][1].dtype, parts)
    except CkptconvError as error:
        error.where = f"{name} in {error.where or folders[0]}"
        raise
    return StoredTensor(view, f"{len(parts)} chunks" if len(parts) > 1 else "")


def _open(file: str, folders: Sequence[Path], handles: dict[str, int], stack: ExitStack) -> tuple[str, int]:
    path = next((folder / file for folder in folders if (folder / file).is_file()), None)
    if path is None:
        raise Incomplete(
            f"{file} is missing from the checkpoint",
            where=folders[0],
            hint="copy it from the node where it was written, or name its folder with --also",
        )
    text = str(path)
    if text not in handles:
        handles[text] = os.open(text, os.O_RDONLY)
        stack.callback(os.close, handles[text])
    return text, handles[text]


def _rank_file(path: str) -> RankFile:
    match = _FILE.match(os.path.basename(path))
    return RankFile(int(match.group(1)) if match else 0, path, os.path.getsize(path))
