"""Safetensors files with real headers (safetensors README, "Format") and holes for data.

A whole model in shards with their index; and what every rank writes for itself with torch's HuggingFaceStorageWriter
(torch/distributed/checkpoint/hf_storage.py).
"""

from __future__ import annotations

import json
from math import prod
from pathlib import Path

from benchmarks.scale_writers.model import Model, Shape, chunk


def write(model: Model, files: int, run: Path) -> None:
    """A model folder of as many shards, at most one a tensor; bf16."""
    run.mkdir(parents=True)
    (run / "config.json").write_text(json.dumps(model.config))
    names = sorted(model.shapes)
    count = min(files, len(names))
    weights: dict[str, str] = {}
    for number in range(count):
        file = f"model-{number + 1:05}-of-{count:05}.safetensors"
        mine = {name: model.shapes[name] for name in names[number::count]}
        weights |= dict.fromkeys(mine, file)
        _safetensors(run / file, mine, {"format": "pt"})
    index = {"metadata": {}, "weight_map": weights}
    (run / "model.safetensors.index.json").write_text(json.dumps(index))


def write_shards(model: Model, ranks: int, run: Path) -> None:
    """RUN/shard-0000R-model-00001-of-00001.safetensors of every rank, cut along dim 0."""
    run.mkdir(parents=True)
    (run / "config.json").write_text(json.dumps(model.config))
    for rank in range(ranks):
        held: dict[str, Shape] = {}
        offsets: dict[str, dict[str, list[int]]] = {}
        for name, shape in model.shapes.items():
            begin, length = chunk(shape[0], ranks, rank)
            if length:
                held[name] = (length, *shape[1:])
                offsets[name] = {"saved_offsets": [begin, *(0 for _ in shape[1:])]}
        if held:
            told = {"format": "pt", "DCP_SHARDING_INFO": json.dumps(offsets), "DCP_VERSION": "1.0"}
            _safetensors(run / f"shard-{rank + 1:05}-model-00001-of-00001.safetensors", held, told)


def _safetensors(path: Path, tensors: dict[str, Shape], metadata: dict[str, str]) -> None:
    header: dict[str, object] = {"__metadata__": metadata}
    at = 0
    for name, shape in tensors.items():
        end = at + 2 * prod(shape)
        header[name] = {"dtype": "BF16", "shape": list(shape), "data_offsets": [at, end]}
        at = end
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    with path.open("wb") as file:
        file.write(len(text).to_bytes(8, "little") + text)
        file.truncate(8 + len(text) + at)
