"""Writes sparse checkpoints in a process of its own: python -m benchmarks.scale_writers KIND TENSORS RANKS RUN [KIND …].

TENSORS may be a model's name: `deepseek-v3`, or `wide`, Megatron's model of 256 experts a layer.
"""

from __future__ import annotations

import sys
from functools import partial
from pathlib import Path

from benchmarks import write_megatron_scale
from benchmarks.megatron_shapes import SHAPES, Mesh, Shape
from benchmarks.scale_writers import dcp, deepspeed, fsdp, huggingface, megatron_legacy
from benchmarks.scale_writers.model import deepseek_v3, llama

_OF_MODELS = {
    "fsdp": fsdp.write,
    "dcp": dcp.write,
    "deepspeed": deepspeed.write_stage2,
    "deepspeed3": deepspeed.write_stage3,
    "huggingface": huggingface.write,
    "hf_shards": huggingface.write_shards,
}
_OF_MESHES = {
    "megatron": partial(write_megatron_scale.write, optimizer=False),
    "megatron_legacy": megatron_legacy.write,
}
# TP is 8, experts are not cut over it: a stage has as many ranks as expert ranks.
_MESHES = {
    8: Mesh(8, 1, 8),
    16: Mesh(8, 2, 8),
    32: Mesh(8, 4, 8),
    64: Mesh(8, 4, 16),
    512: Mesh(8, 8, 64),
    1024: Mesh(8, 16, 64),
    4096: Mesh(8, 16, 256),
}


def _shape(tensors: str) -> Shape:
    """A small DeepSeek-V3 of so many tensors, experts counted one by one."""
    if tensors == "deepseek-v3":
        return SHAPES[tensors]
    experts = 256 if tensors == "wide" else 8
    layers = 16 if tensors == "wide" else max(4, int(tensors) // (13 + 2 * experts))
    return Shape("scale", "deepseek_v3", 16, experts, 1, 1024, 0, layers, 64, 160, 32, 24, 16, 8, 4, 8)


def main() -> None:
    words = sys.argv[1:]
    for kind, tensors, ranks, run in zip(*(words[start::4] for start in range(4)), strict=True):
        if kind in _OF_MODELS:
            model = deepseek_v3() if tensors == "deepseek-v3" else llama(int(tensors))
            _OF_MODELS[kind](model, int(ranks), Path(run))
        else:
            _OF_MESHES[kind](_shape(tensors), _MESHES[int(ranks)], Path(run))


if __name__ == "__main__":
    main()
