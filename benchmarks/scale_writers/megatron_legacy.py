"""Megatron-LM's rank files of a DeepSeek-V3-like model: mp_rank_TT_PPP_EEE/model_optim_rng.pt, saved with `skip_data`.

Keys and names are those of tests/fixtures/megatron/deepseek_v3_mtp_mlm_legacy. Experts are not cut over TP, so a stage has
as many ranks as the mesh has EP ranks, and the folders are no cross product of TP and EP.
"""

from __future__ import annotations

import json
import re
from argparse import Namespace
from collections import defaultdict
from pathlib import Path
from typing import Any

import torch

from benchmarks.megatron_shapes import Cut, Mesh, Shape, tensors

_LAYER = re.compile(r"^decoder\.layers\.(\d+)\.")


def write(shape: Shape, mesh: Mesh, run: Path) -> None:
    """RUN/iter_0000010 with one file a rank: pp × ep of them."""
    folder = run / "iter_0000010"
    folder.mkdir(parents=True)
    (run / "latest_checkpointed_iteration.txt").write_text("10")
    (folder / "config.json").write_text(json.dumps(shape.config()))
    stages: dict[int, list[Cut]] = defaultdict(list)
    for cut in tensors(shape, mesh):
        if "/shard_" not in cut.name:
            stages[cut.stage].append(cut)
    args = Namespace(
        tensor_model_parallel_size=mesh.tp,
        pipeline_model_parallel_size=mesh.pp,
        expert_model_parallel_size=mesh.ep,
        expert_tensor_parallel_size=1,
        sequence_parallel=True,
        context_parallel_size=1,
    )
    for stage, cuts in stages.items():
        first = min((int(m[1]) for cut in cuts if (m := _LAYER.match(cut.name))), default=0)
        if (
            stage and stage == mesh.pp - 1 and shape.mtp
        ):  # the last stage has the embedding again, for its MTP layer
            cuts = [stages[0][0], *cuts]
        for rank in range(mesh.ep):
            where = folder / f"mp_rank_{rank % mesh.tp:02}_{stage:03}_{rank:03}"
            where.mkdir()
            model = {
                name: torch.empty(size, dtype=dtype)
                for cut in cuts
                for name, size, dtype in _held(cut, rank, first, mesh)
            }
            state = {"args": args, "checkpoint_version": 3.0, "iteration": 10, "model": model}
            with torch.serialization.skip_data():
                torch.save(state, where / "model_optim_rng.pt")


def _held(cut: Cut, rank: int, first: int, mesh: Mesh) -> list[tuple[str, tuple[int, ...], Any]]:
    """What a rank holds of a tensor, under the names that it has there."""
    name = _LAYER.sub(lambda m: f"decoder.layers.{int(m[1]) - first}.", cut.name)
    dtype = getattr(torch, cut.dtype)
    if cut.by == "ep":  # a number for each of the rank's experts; gate and up are two chunks of one
        assert cut.shape is not None
        each = cut.shape[0] // mesh.ep
        block = name.replace(".experts.experts.", ".experts.")
        return [(f"{block}{number}", cut.shape[1:], dtype) for number in range(each)]
    mine = [offsets for offsets, owner in cut.chunks if owner == rank % mesh.tp]
    if len(cut.chunks) == 1:
        return [(name, cut.size, dtype)]
    return [(name, (cut.size[0] * len(mine), *cut.size[1:]), dtype)]
