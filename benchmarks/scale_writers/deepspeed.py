"""DeepSpeed's ZeRO-2 and ZeRO-3 checkpoints with AdamW, saved by torch.save with `skip_data`: storages are holes.

The tables have the keys and forms that DeepSpeed 0.19.8 wrote in tests/fixtures/deepspeed_z2_fp32_w4 and _z3_bf16_w4;
its classes are named in the pickles without DeepSpeed.
"""

from __future__ import annotations

import json
from collections import OrderedDict
from itertools import islice
from math import ceil, prod
from pathlib import Path
from typing import Any

import torch

from benchmarks.scale_writers.model import Model, Shape
from benchmarks.scale_writers.named import importable, named

_FRAGMENT = named("deepspeed.utils.tensor_fragment", "fragment_address")
_SCALER = named("deepspeed.runtime.fp16.loss_scaler", "LossScaler")
_SUB_GROUP = 1_000_000_000  # DeepSpeed's own sub_group_size, in elements
_VERSION = "0.19.8"


def write_stage2(model: Model, ranks: int, run: Path) -> None:
    """RUN/global_step1: the bf16 module in one file, and every rank's part of two flat vectors (with and without decay)."""
    folder = _folder(model, run)
    groups = _groups(model)
    sizes = [sum(map(prod, group.values())) for group in groups]
    each = [2 * ceil(size / (2 * ranks)) for size in sizes]
    module = OrderedDict(
        (name, torch.empty(shape, dtype=torch.bfloat16)) for name, shape in model.shapes.items()
    )
    _save(_common(module, groups, ranks, 2), folder / "mp_rank_00_model_states.pt")
    walks = [_Walk(group) for group in groups]
    for rank in range(ranks):
        lows = [min(rank * step, size) for step, size in zip(each, sizes, strict=True)]
        highs = [min(low + step, size) for low, step, size in zip(lows, each, sizes, strict=True)]
        slices = [walk.slices(low, high) for walk, low, high in zip(walks, lows, highs, strict=True)]
        flat = [
            torch.empty(high - low if rank == ranks - 1 else step)
            for low, high, step in zip(lows, highs, each, strict=True)
        ]
        state = _optimizer(flat, ranks) | {
            "base_optimizer_state": _adam(flat),
            "single_partition_of_fp32_groups": flat,
            "zero_stage": 2,
            "group_paddings": [0, 0],
            "param_alignment_paddings": [[0] * len(group) for group in groups],
            "partition_count": [ranks, ranks],
            "param_slice_mappings": slices,
        }
        name = f"bf16_zero_pp_rank_{rank}_mp_rank_00_optim_states.pt"
        _save(
            {"optimizer_state_dict": state, "ds_config": _settings(2), "ds_version": _VERSION}, folder / name
        )


def write_stage3(model: Model, ranks: int, run: Path) -> None:
    """RUN/global_step1: a model file a rank, without its weights, and vectors of at most sub_group_size elements."""
    folder = _folder(model, run)
    groups = _groups(model, _SUB_GROUP)
    flat = [torch.empty(sum(ceil(prod(shape) / ranks) for shape in group.values())) for group in groups]
    module = OrderedDict((name, torch.empty(0, dtype=torch.bfloat16)) for name in model.shapes)
    for rank in range(ranks):
        common = _common(module, groups, ranks, 3)
        _save(common, folder / f"zero_pp_rank_{rank}_mp_rank_00_model_states.pt")
        state = _optimizer(flat, ranks) | {
            "zero_stage": 3,
            "partition_count": ranks,
            "optimizer_state_dict": _adam(flat),
            "fp32_flat_groups": flat,
        }
        name = f"bf16_zero_pp_rank_{rank}_mp_rank_00_optim_states.pt"
        _save(
            {"optimizer_state_dict": state, "ds_config": _settings(3), "ds_version": _VERSION}, folder / name
        )


class _Walk:
    """The parameters of a group, met once from front to back as the ranks' parts are."""

    def __init__(self, group: dict[str, Shape]) -> None:
        self._left = [(name, prod(shape)) for name, shape in reversed(group.items())]
        self._at = 0  # where the next parameter begins

    def slices(self, low: int, high: int) -> OrderedDict[str, Any]:
        """What a rank writes down of its part: where in it each parameter lies."""
        found: OrderedDict[str, Any] = OrderedDict()
        while self._left and self._at < high:
            name, size = self._left[-1]
            begin, end = max(self._at, low), min(self._at + size, high)
            found[name] = _FRAGMENT(numel=end - begin, start=begin - low)
            if self._at + size > high:
                break
            self._left.pop()
            self._at += size
        return found


def _folder(model: Model, run: Path) -> Path:
    folder = run / "global_step1"
    folder.mkdir(parents=True)
    (run / "latest").write_text("global_step1")
    (run / "config.json").write_text(json.dumps(model.config))
    return folder


def _groups(model: Model, limit: int | None = None) -> list[dict[str, Shape]]:
    """Weights with decay, vectors without; at stage 3 in sub groups."""
    groups: list[dict[str, Shape]] = []
    for vectors in (False, True):
        size = None
        for name, shape in model.shapes.items():
            if (len(shape) == 1) == vectors:
                if size is None or (limit is not None and size >= limit):
                    groups.append({})
                    size = 0
                groups[-1][name] = shape
                size += prod(shape)
    return groups


def _common(
    module: OrderedDict[str, torch.Tensor], groups: list[dict[str, Shape]], ranks: int, stage: int
) -> dict[str, Any]:
    shapes = [OrderedDict((name, torch.Size(shape)) for name, shape in group.items()) for group in groups]
    return {
        "module": module,
        "buffer_names": [],
        "optimizer": None,
        "param_shapes": shapes,
        "frozen_param_shapes": None,
        "shared_params": {},
        "frozen_param_fragments": None,
        "lr_scheduler": None,
        "data_sampler": None,
        "random_ltd": None,
        "skipped_steps": 0,
        "global_steps": 1,
        "global_samples": ranks,
        "dp_world_size": ranks,
        "mp_world_size": 1,
        "checkpoint_parallel_dimensions": {"pp_degree": 1, "tp_degree": 1},
        "ds_config": _settings(stage),
        "ds_version": _VERSION,
    }


def _settings(stage: int) -> dict[str, Any]:
    return {
        "train_micro_batch_size_per_gpu": 1,
        "zero_optimization": {"stage": stage},
        "bf16": {"enabled": True},
    }


def _optimizer(flat: list[torch.Tensor], ranks: int) -> dict[str, Any]:
    return {
        "loss_scaler": _SCALER(cur_scale=1.0, dynamic=False),
        "dynamic_loss_scale": False,
        "overflow": False,
        "clip_grad": 1.0,
        "ds_version": _VERSION,
    }


def _adam(flat: list[torch.Tensor]) -> dict[str, Any]:
    states = {
        number: {
            "step": torch.tensor(1.0),
            "exp_avg": torch.empty_like(part),
            "exp_avg_sq": torch.empty_like(part),
        }
        for number, part in enumerate(flat)
    }
    groups = [
        {"lr": 1e-3, "betas": (0.9, 0.999), "eps": 1e-8, "weight_decay": 0.1, "params": [n]}
        for n in islice(states, 2)
    ]
    return {"state": states, "param_groups": groups}


def _save(value: object, path: Path) -> None:
    with torch.serialization.skip_data(), importable(_FRAGMENT, _SCALER):
        torch.save(value, path)
