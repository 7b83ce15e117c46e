"""XTuner's own engine and saver on CPUs (InternLM/xtuner at b934f4620): `TrainEngine.save_dcp` and `save_hf`.

CUDA's streams and events, and the dispatcher of tokens to experts, are empty objects. `save_hf` is XTuner's own
conversion, and the truth.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any
from unittest.mock import MagicMock

import torch
import torch.distributed as dist
from torch.distributed.tensor import DTensor


def settings(kind: str, ep: int, etp: int) -> Any:
    """A model config of XTuner's: every dimension differs."""
    from xtuner.v1.model.dense.qwen3 import Qwen3DenseConfig
    from xtuner.v1.model.moe.moe import BalancingLossConfig
    from xtuner.v1.model.moe.qwen3 import Qwen3MoEConfig
    from xtuner.v1.module.attention import MHAConfig
    from xtuner.v1.module.rope import RopeParametersConfig
    from xtuner.v1.module.router.greedy import GreedyRouterConfig

    same = {
        **{"vocab_size": 131, "max_position_embeddings": 64, "eos_token_id": 1, "bos_token_id": 2},
        **{"num_hidden_layers": 2, "max_window_layers": 2, "hidden_size": 24, "intermediate_size": 37},
        **{"rms_norm_eps": 1e-6, "hidden_act": "silu", "tie_word_embeddings": False, "model_type": "qwen3"},
        "rope_parameters_cfg": RopeParametersConfig(rope_theta=10000.0),
        "attention": MHAConfig(num_attention_heads=6, num_key_value_heads=2, head_dim=10, qk_norm=True),
        "compile_cfg": False,
    }
    if kind == "dense":
        del same["model_type"]
        return Qwen3DenseConfig(**same)
    router = GreedyRouterConfig(scoring_func="softmax", norm_topk_prob=True, router_scaling_factor=1.0)
    return Qwen3MoEConfig(
        **same | {"model_type": "qwen3_moe"},
        **{"n_routed_experts": 6, "n_shared_experts": 0, "num_experts_per_tok": 2},
        moe_intermediate_size=20,
        router=router,
        balancing_loss_cfg=BalancingLossConfig(),
        ep_size=ep,
        expert_tp_size=etp,
        dispatcher="all2all" if ep > 1 else None,
    )


def part_of(param: Any) -> int:
    """Which part of a parameter this rank holds: the sum of its coordinates in the dims of the mesh that cut it."""
    if not isinstance(param, DTensor):
        return 0
    coordinates = zip(param.device_mesh.get_coordinate() or (), param.placements, strict=True)
    return sum(coordinate for coordinate, placement in coordinates if not placement.is_replicate())


def xtuner(run: Path, kind: str, ep: int = 1, etp: int = 1) -> None:
    """Two saves, RUN/TIME/checkpoints/ckpt-step-{5,10}/weights, and XTuner's conversion of the last to RUN/../hf."""
    torch.cuda.Stream = torch.cuda.Event = MagicMock  # type: ignore[misc,assignment]
    for name in ("reset_peak_memory_stats", "max_memory_allocated", "max_memory_reserved", "empty_cache"):
        setattr(torch.cpu, name, lambda *args: 0)
    from xtuner.v1.module.decoder_layer import moe_decoder_layer

    moe_decoder_layer.build_dispatcher = MagicMock()
    from xtuner.v1.config import AdamWConfig, FSDPConfig
    from xtuner.v1.engine.train_engine import TrainEngine

    engine = TrainEngine(
        model_cfg=settings(kind, ep, etp),
        optim_cfg=AdamWConfig(),
        fsdp_cfg=FSDPConfig(ep_size=ep, recompute_ratio=0.0, torch_compile=False),
    )
    engine.init_model_weights()
    home = run / "20260821101112" / "checkpoints"
    for step in (5, 10):
        with torch.no_grad():
            for at, param in enumerate(engine.model.parameters()):
                local: Any = param.to_local() if isinstance(param, DTensor) else param
                marks = (
                    torch.arange(local.numel()).reshape(local.shape) * 7 + at * 13 + part_of(param) * 3 + step
                )
                local.copy_((marks % 251 - 120).float() / 1024)
        engine.save_dcp(weights_dir=home / f"ckpt-step-{step}" / "weights", save_optimizer=step == 10)
        if dist.get_rank() == 0:
            state = {"cur_step": step, "cur_epoch": 1, "total_consumed_tokens": 9, "train_time_offset": 0.5}
            (home / f"ckpt-step-{step}" / "train_state.json").write_text(json.dumps(state))
    engine.save_hf(str(run.parent / "hf"), save_dtype=torch.bfloat16)
