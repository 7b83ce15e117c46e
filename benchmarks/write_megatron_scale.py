"""Writes a very large Megatron checkpoint whose weights are holes; started by `megatron_scale`.

`.metadata` is torch's own Metadata object with every chunk and every rank's write plan, as Megatron-Core leaves it; each
`__R_T.distcp` has its chunks' archives as torch.save writes them, in their places. Nothing can be merged from it.
"""

from __future__ import annotations

import argparse
import json
import pickle
import random
import struct
import tempfile
from functools import lru_cache
from pathlib import Path
from typing import Any

import torch
from torch.distributed.checkpoint.filesystem import _StorageInfo
from torch.distributed.checkpoint.metadata import (
    BytesStorageMetadata,
    ChunkStorageMetadata,
    Metadata,
    MetadataIndex,
    StorageMeta,
    TensorProperties,
    TensorStorageMetadata,
)
from torch.distributed.checkpoint.planner import SavePlan, TensorWriteData, WriteItem, WriteItemType

from benchmarks.megatron_shapes import SHAPES, Cut, Mesh, Shape, nbytes, tensors

_STATE = 1513  # bytes of an extra state's archive
_OPTIMIZER = ("fp32_param", "exp_avg", "exp_avg_sq")


class Files:
    """The `.distcp` files in the making: one a rank or two, filled in turns; chunks lie one after another in each."""

    def __init__(self, folder: Path, turns: int = 2) -> None:
        self._folder, self._each = folder, turns
        self._ends: dict[str, int] = {}
        self._turns: dict[int, int] = {}
        self._parts: dict[str, list[tuple[int, bytes]]] = {}

    def add(self, rank: int, head: bytes, hole: int, tail: bytes) -> _StorageInfo:
        """Lay an archive at the end of one of a rank's files; its data stay a hole."""
        turn = self._turns[rank] = (self._turns.get(rank, -1) + 1) % self._each
        name = f"__{rank}_{turn}.distcp"
        at, length = self._ends.get(name, 0), len(head) + hole + len(tail)
        self._parts.setdefault(name, []).extend([(at, head), (at + len(head) + hole, tail)])
        self._ends[name] = at + length
        return _StorageInfo(name, at, length)

    def write(self) -> None:
        for name, parts in self._parts.items():
            with (self._folder / name).open("wb", buffering=0) as file:
                for at, data in parts:
                    file.seek(at)
                    file.write(data)
                file.truncate(self._ends[name])


@lru_cache(maxsize=1024)
def archive(size: tuple[int, ...], kind: str) -> tuple[bytes, int, bytes, int]:
    """What torch.save writes of such a tensor: what stands before its data, their size, what stands after, and where in
    that their checksum is."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "archive.pt"  # the stem is the prefix of every entry, as in a .distcp
        tensor = torch.empty(size, dtype=getattr(torch, kind))
        with torch.serialization.skip_data():
            torch.save(tensor, path)
        with path.open("rb") as file:
            start = _data_start(file.read(4096))
            file.seek(start + tensor.nbytes)
            tail = file.read()
            file.seek(0)
            head = file.read(start)
    entry = tail.index(b"archive/data/0", tail.index(b"PK\x01\x02")) - 46
    return head, tensor.nbytes, tail, entry + 16


def _data_start(head: bytes) -> int:
    at = head.index(b"archive/data/0") - 30
    name, extra = struct.unpack_from("<HH", head, at + 26)
    return int(at + 30 + name + extra)


class Writer:
    """Metadata, write plans and files of one checkpoint."""

    def __init__(self, folder: Path, mesh: Mesh) -> None:
        self._mesh, self._folder = mesh, folder
        self._files = Files(folder)
        self._table: dict[str, Any] = {}
        self._places: dict[MetadataIndex, _StorageInfo] = {}
        self._plans: list[list[WriteItem]] = [[] for _ in range(mesh.world)]
        self._random = random.Random(1)

    def add(self, cut: Cut) -> None:
        for number, (offsets, rank) in enumerate(cut.chunks):
            if cut.by == "tp":  # one of the data-parallel ranks with this TP rank, in turns
                rank += self._mesh.tp * self._random.randrange(self._mesh.ep // self._mesh.tp)
            rank += cut.stage * self._mesh.ep
            if cut.shape is None:
                index = MetadataIndex(cut.name)
                self._places[index] = self._files.add(rank, b"", _STATE, b"")
                self._plans[rank].append(WriteItem(index, WriteItemType.BYTE_IO))
                self._table[cut.name] = BytesStorageMetadata()
                continue
            index = MetadataIndex(cut.name, torch.Size(offsets), number % 2 if len(cut.size) == 3 else None)
            head, hole, tail, crc = archive(cut.size, cut.dtype)
            tail = tail[:crc] + self._random.randbytes(4) + tail[crc + 4 :]
            self._places[index] = self._files.add(rank, head, hole, tail)
            self._plans[rank].append(self._item(index, cut))
        if cut.shape is not None:
            chunks = [ChunkStorageMetadata(torch.Size(at), torch.Size(cut.size)) for at, _ in cut.chunks]
            properties = TensorProperties(dtype=getattr(torch, cut.dtype))
            self._table[cut.name] = TensorStorageMetadata(properties, torch.Size(cut.shape), chunks)

    def _item(self, index: MetadataIndex, cut: Cut) -> WriteItem:
        chunk = ChunkStorageMetadata(index.offset or torch.Size(()), torch.Size(cut.size))
        data = TensorWriteData(
            chunk, TensorProperties(dtype=getattr(torch, cut.dtype)), torch.Size(cut.shape or ())
        )
        return WriteItem(index, WriteItemType.SHARD, tensor_data=data)

    def close(self) -> None:
        self._files.write()
        metadata = Metadata(self._table, None, self._places, StorageMeta())
        metadata.all_local_plans = [SavePlan(items) for items in self._plans]  # type: ignore[attr-defined]
        with (self._folder / ".metadata").open("wb") as file:
            pickle.dump(metadata, file)
        kinds = {"sharded_backend": "torch_dist", "sharded_backend_version": 1}
        common = {"common_backend": "torch", "common_backend_version": 1}
        (self._folder / "metadata.json").write_text(json.dumps(kinds | common))
        torch.save({}, self._folder / "common.pt")


def write(shape: Shape, mesh: Mesh, run: Path, optimizer: bool) -> dict[str, int]:
    """The checkpoint, in RUN/iter_0000010. Returns how many tensors, chunks and bytes it has."""
    folder = run / "iter_0000010"
    folder.mkdir(parents=True)
    (run / "latest_checkpointed_iteration.txt").write_text("10")
    (folder / "config.json").write_text(json.dumps(shape.config(), indent=1))
    writer, count = Writer(folder, mesh), {"tensors": 0, "chunks": 0, "nbytes": 0, "states": 0}
    for cut in tensors(shape, mesh):
        writer.add(cut)
        if cut.shape is None:
            count["states"] += 1
            continue
        count["tensors"] += 1
        count["chunks"] += len(cut.chunks)
        count["nbytes"] += nbytes(cut)
        for state in _OPTIMIZER if optimizer else ():
            name = f"optimizer.state.{state}.{cut.name}"
            writer.add(Cut(name, cut.stage, cut.by, cut.shape, "float32", cut.size, cut.chunks))
    writer.close()
    return count


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("shape", choices=sorted(SHAPES))
    parser.add_argument("run", type=Path)
    parser.add_argument("--optimizer", action="store_true")
    args = parser.parse_args()
    count = write(SHAPES[args.shape], Mesh(), args.run, args.optimizer)
    (args.run / "made.json").write_text(json.dumps(count))


if __name__ == "__main__":
    main()
