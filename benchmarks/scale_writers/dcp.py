"""A DCP folder as dcp.save leaves it of an FSDP2 model: torch's Metadata of every chunk, a `.distcp` file a rank.

The chunks' archives are torch.save's, in their places, with holes for data (write_megatron_scale.Files).
"""

from __future__ import annotations

import json
import pickle
from pathlib import Path

import torch
from torch.distributed.checkpoint.filesystem import _StorageInfo
from torch.distributed.checkpoint.metadata import (
    ChunkStorageMetadata,
    Metadata,
    MetadataIndex,
    StorageMeta,
    TensorProperties,
    TensorStorageMetadata,
)

from benchmarks.scale_writers.model import Model, chunk
from benchmarks.write_megatron_scale import Files, archive


def write(model: Model, ranks: int, run: Path) -> None:
    """RUN/pytorch_model_fsdp_0 of {"model": state dict}, and the config beside it."""
    folder = run / "pytorch_model_fsdp_0"
    folder.mkdir(parents=True)
    (run / "config.json").write_text(json.dumps(model.config))
    files = Files(folder, turns=1)
    table: dict[str, TensorStorageMetadata] = {}
    places: dict[MetadataIndex, _StorageInfo] = {}
    for name, shape in model.shapes.items():
        chunks = []
        for rank in range(ranks):
            begin, length = chunk(shape[0], ranks, rank)
            if not length:
                break
            offsets = torch.Size((begin, *(0 for _ in shape[1:])))
            sizes = (length, *shape[1:])
            head, hole, tail, _ = archive(sizes, "float32")
            places[MetadataIndex(f"model.{name}", offsets, rank)] = files.add(rank, head, hole, tail)
            chunks.append(ChunkStorageMetadata(offsets, torch.Size(sizes)))
        properties = TensorProperties(dtype=torch.float32)
        table[f"model.{name}"] = TensorStorageMetadata(properties, torch.Size(shape), chunks)
    files.write()
    paths = {f"model.{name}": ("model", name) for name in model.shapes}
    with (folder / ".metadata").open("wb") as file:
        pickle.dump(Metadata(table, paths, places, StorageMeta()), file)
