"""What torchtitan 0.2.2 itself computes with a checkpoint: the proof that heads, gates and experts are where they belong.

torchrun --nproc-per-node 1 tests/make/torchtitan/forward.py TO     # TO/<name>/{run, hf/config.json, forward.safetensors}

gpt-oss' attention runs on GPUs alone, so of it the MoE block of one layer is computed.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from make import about, manager_of, shard
from safetensors.torch import save_file
from sizes import CONFIGS
from titan_0_2 import MODELS
from torch import Tensor, nn

# The routers' settings, which the models' own configs have in torchtitan, and the same for transformers.
ROUTERS: dict[str, dict[str, Any]] = {
    "qwen3_moe": {"score_func": "softmax", "route_norm": False},
    "gpt_oss": {"score_func": "softmax", "route_norm": True},
}
SAID: dict[str, dict[str, Any]] = {
    "llama": {
        "rope_theta": 10000.0,
        "rope_scaling": {
            "rope_type": "llama3",
            "factor": 8.0,
            "low_freq_factor": 1.0,
            "high_freq_factor": 4.0,
            "original_max_position_embeddings": 8192,
        },
    },
    "qwen3_moe": {"rope_theta": 1000000.0, "rms_norm_eps": 1e-6, "norm_topk_prob": False},
    "deepseek_v3_plain": {
        "rope_theta": 10000.0,
        "rms_norm_eps": 1e-5,
        "max_position_embeddings": 64,
        "norm_topk_prob": False,
        "routed_scaling_factor": 1.0,
    },
    "llama4": {
        "rope_theta": 10000.0,
        "rope_scaling": None,
        "use_qk_norm": False,
        "no_rope_layers": [1, 1],
        "attn_temperature_tuning": False,
        "interleave_moe_layer_step": 2,
        "num_experts_per_tok": 1,
    },
    "gpt_oss": {},
}


def main() -> None:
    to = Path(sys.argv[1])
    dist.init_process_group("gloo")
    count_on_cpu()
    for name, settings in SAID.items():
        torch.manual_seed(0)
        model, adapter = MODELS[name]()
        model.float()
        prepare(name, model)
        found = run(name, model)
        shard(model)
        manager = manager_of(to / name / "run", model, adapter, export_dtype="float32")
        manager.save(3, last_step=True)
        manager.close()
        (to / name / "hf").mkdir()
        config = CONFIGS[name].get("text_config", CONFIGS[name]) | settings
        (to / name / "hf/config.json").write_text(json.dumps(config, indent=1))
        save_file(found, to / name / "forward.safetensors")
    about(to)
    dist.destroy_process_group()


def count_on_cpu() -> None:
    """torch.histc takes no integers on a CPU."""
    histc = torch.histc
    torch.histc = lambda x, *args, **kwargs: histc(x.float(), *args, **kwargs).long()  # type: ignore[assignment]


def prepare(name: str, model: nn.Module) -> None:
    """Weights of few values, which pack well. A bias that chooses experts only where the Hub has one."""
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.copy_(torch.randint(-8, 9, parameter.shape) / 16)
        for key, buffer in model.named_buffers():
            if key.endswith("expert_bias"):
                buffer.copy_(torch.randint(-8, 9, buffer.shape) / 16 * ("deepseek" in name))
            if key.endswith("tokens_per_expert"):
                buffer.zero_()
    for module in model.modules():
        settings = {"use_grouped_mm": False, "score_before_experts": name == "llama4"} | ROUTERS.get(name, {})
        for key, value in settings.items():
            if hasattr(module, key):
                setattr(module, key, value)


@torch.no_grad()
def run(name: str, model: nn.Module) -> dict[str, Tensor]:
    layers: Any = model.layers
    if name == "gpt_oss":
        states = torch.randn(1, 7, 18)
        return {"states": states, "out": layers["0"].moe(states)}
    tokens = torch.randint(0, 37, (2, 23))
    return {"tokens": tokens, "out": model(tokens)}


if __name__ == "__main__":
    main()
