"""Real OLMo-core checkpoints on CPU ranks over gloo: its model classes under FSDP2, and save_model_and_optim_state.

torchrun --nproc-per-node 3 make.py CASE TO     # TO/CASE/{run/step10, hf}; see README.md

forward.safetensors has an input and what OLMo-core computes with it.
hf/ has the state dict that OLMo-core's own convert_state_to_hf makes, and its own Hugging Face config.
"""

from __future__ import annotations

import json
import shutil
import sys
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from olmo_core.distributed.checkpoint import save_model_and_optim_state
from olmo_core.nn.attention import SlidingWindowAttentionConfig
from olmo_core.nn.hf.config import get_hf_config
from olmo_core.nn.hf.convert import convert_state_to_hf
from olmo_core.nn.moe import MoEType
from olmo_core.nn.rope import YaRNRoPEScalingConfig
from olmo_core.nn.transformer import TransformerBlockType, TransformerConfig
from safetensors.torch import save_file
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard

SIZES = {"d_model": 16, "n_layers": 3, "n_heads": 4, "n_kv_heads": 2, "vocab_size": 35, "rope_theta": 50_000}
NORMS = {"qk_norm": True, "layer_norm_eps": 1e-6, "block_name": TransformerBlockType.reordered_norm}
MOE_NORMS = {key: value for key, value in NORMS.items() if key != "block_name"}
WINDOWS = SlidingWindowAttentionConfig(
    pattern=[8, -1], force_full_attention_on_first_layer=False, force_full_attention_on_last_layer=True
)


def llama_like(**options: Any) -> TransformerConfig:
    config = TransformerConfig.llama_like(**{**SIZES, "hidden_size_multiplier": 1.0, **options})
    config.block.feed_forward.hidden_size = 22  # not rounded up to 256
    return config


def olmo3() -> TransformerConfig:
    config = llama_like(**NORMS, sliding_window=WINDOWS)
    scaling = YaRNRoPEScalingConfig(factor=4.0, beta_fast=24, beta_slow=2, old_context_len=64)
    return config.with_rope_scaling(scaling, full_attn_layers_only=True)


def flex_olmo(name: str) -> TransformerConfig:
    config = TransformerConfig.llama_like_moe(
        **SIZES, num_experts=3, top_k=2, expert_hidden_size=10, dropless=name == "dropless", **MOE_NORMS
    )
    config.block.name = TransformerBlockType.moe_reordered_norm
    config.block.feed_forward_moe.name = MoEType[name]
    return config


CASES = {
    "olmo3": olmo3,
    "olmo2": lambda: llama_like(**NORMS, tie_word_embeddings=True),
    "qwen3": lambda: llama_like(qk_norm=True, use_head_qk_norm=True, head_dim=10),
    "flex_olmo": lambda: flex_olmo("default"),
    "flex_olmo_dropless": lambda: flex_olmo("dropless"),
}


def main() -> None:
    case, to = sys.argv[1], Path(sys.argv[2]) / sys.argv[1]
    dist.init_process_group("gloo")
    torch.manual_seed(0)
    config = CASES[case]()
    model = config.build(init_device="cpu")
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.copy_(
                torch.randn(parameter.shape).mul_(0.3).add_(0.1).bfloat16()
            )  # half the bytes, packed
    ids = torch.arange(3, 33).reshape(1, 30)
    with torch.no_grad():
        logits = None if "flex" in case else model.eval()(ids).float()  # experts need Triton
    mesh = init_device_mesh("cpu", (dist.get_world_size(),))
    for block in model.blocks.values():
        fully_shard(block, mesh=mesh)
    fully_shard(model, mesh=mesh)
    full = {name: value.full_tensor().detach().clone() for name, value in model.state_dict().items()}
    step = to / "run" / "step10"
    if dist.get_rank() == 0:
        shutil.rmtree(to, ignore_errors=True)
        (step / "train").mkdir(parents=True)
    dist.barrier()
    save_model_and_optim_state(str(step / "model_and_optim"), model, flatten_optimizer_state=True)
    if dist.get_rank() == 0:
        beside(case, config, step)
        truth(case, config, full, to / "hf")
        if logits is not None:
            save_file({"ids": ids, "logits": logits.contiguous()}, to / "forward.safetensors")
        about = {"command": f"make.py {case}", "ai2-olmo-core": "3.0.0", "torch": torch.__version__}
        (to / "about.json").write_text(json.dumps(about, indent=1) + "\n")
    dist.barrier()
    dist.destroy_process_group()


def beside(case: str, config: TransformerConfig, step: Path) -> None:
    """What the trainer's Checkpointer and its ConfigSaverCallback write next to the model."""
    torch.save({"global_step": 10}, step / "train" / "rank0.pt")
    (step / ".metadata.json").write_text('{"version": "2.0"}')
    tokenizer = {"vocab_size": 33, "eos_token_id": 1, "pad_token_id": 2, "bos_token_id": None}
    dataset = {"tokenizer": tokenizer, "sequence_length": 128}
    experiment = {"run_name": case, "model": config.as_config_dict(), "dataset": dataset}
    (step / "config.json").write_text(json.dumps(experiment, indent=1))


def truth(case: str, config: TransformerConfig, full: dict[str, Any], to: Path) -> None:
    """OLMo-core's own conversion; where it has none (Qwen3's config, dropless experts), by hand from its forward pass."""
    to.mkdir()
    if case == "qwen3":
        import transformers

        made = transformers.Qwen3Config(
            **{"hidden_size": 16, "num_hidden_layers": 3, "num_attention_heads": 4, "num_key_value_heads": 2},
            **{"vocab_size": 35, "head_dim": 10, "intermediate_size": 22, "rms_norm_eps": 1e-5},
            rope_parameters={"rope_type": "default", "rope_theta": 50_000.0},
        )
    else:
        made = get_hf_config(config.build(init_device="cpu"))
    state = convert_state_to_hf(made, full)
    if case.endswith("dropless"):
        for name in [name for name in state if ".experts." in name and "down_proj" not in name]:
            layer, expert = int(name.split(".")[2]), int(name.split(".")[5])
            key = f"blocks.{layer}.feed_forward_moe.experts.mlp.{'w1' if 'gate' in name else 'w3'}"
            state[name] = full[key].unflatten(0, (3, 10))[expert]  # (out, in), as gmm(trans_b=True) reads it
    save_file({name: value.contiguous().clone() for name, value in state.items()}, to / "model.safetensors")
    made.save_pretrained(to)


if __name__ == "__main__":
    main()
