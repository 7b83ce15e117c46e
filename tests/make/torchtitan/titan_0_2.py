"""Tiny models of torchtitan 0.2.2: its own classes and arguments, all dims different."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from sizes import DEEPSEEK_PLAIN, GPT_OSS, LLAMA, LLAMA4, QWEN3_MOE, Sizes
from torch import nn
from torchtitan.models import deepseek_v3, gpt_oss, llama3, llama4, qwen3
from torchtitan.models.gpt_oss.model.args import GptOssModelArgs
from torchtitan.models.llama3.model.args import TransformerModelArgs as Llama3Args
from torchtitan.models.llama4.model.args import TransformerModelArgs as Llama4Args
from torchtitan.models.moe import MoEArgs

Made = tuple[nn.Module, Any]


def llama() -> Made:
    s = LLAMA
    args = Llama3Args(multiple_of=s.hidden, ffn_dim_multiplier=0.5, **_sizes(s))
    return llama3.Transformer(args), llama3.Llama3StateDictAdapter(args, None)


def llama_4() -> Made:
    s = LLAMA4
    moe = MoEArgs(num_experts=s.experts, num_shared_experts=1, top_k=1)
    args = Llama4Args(moe_args=moe, multiple_of=4, auto_scale_hidden_dim=False, **_sizes(s))
    return llama4.Transformer(args), llama4.Llama4StateDictAdapter(args, None)


def qwen3_moe() -> Made:
    s = QWEN3_MOE
    args = qwen3.Qwen3ModelArgs(
        head_dim=s.head_dim,
        hidden_dim=s.hidden,
        moe_enabled=True,
        moe_inter_dim=s.hidden,
        moe_args=MoEArgs(num_experts=s.experts, num_shared_experts=0, top_k=2),
        **_sizes(s),
    )
    return qwen3.Qwen3Model(args), qwen3.Qwen3StateDictAdapter(args, None)


def deepseek_plain() -> Made:
    s = DEEPSEEK_PLAIN
    args = deepseek_v3.DeepSeekV3ModelArgs(
        vocab_size=s.vocab,
        dim=s.dim,
        inter_dim=s.dense,
        moe_inter_dim=s.hidden,
        n_layers=s.layers,
        n_dense_layers=1,
        n_heads=s.heads,
        moe_args=MoEArgs(num_experts=s.experts, num_shared_experts=s.shared, top_k=2),
        q_lora_rank=s.q_lora,
        kv_lora_rank=s.kv_lora,
        qk_nope_head_dim=s.nope,
        qk_rope_head_dim=s.rope,
        v_head_dim=s.value,
        max_seq_len=64,
    )
    args.moe_impl = "standard"  # update_from_config's doing
    return deepseek_v3.DeepSeekV3Model(args), deepseek_v3.DeepSeekV3StateDictAdapter(args, None)


def gptoss() -> Made:
    s = GPT_OSS
    args = GptOssModelArgs(
        head_dim=s.head_dim,
        moe_inter_dim=s.hidden,
        moe_args=MoEArgs(num_experts=s.experts, num_shared_experts=0, gate_bias=True, top_k=2),
        **_sizes(s),
    )
    return gpt_oss.GptOssModel(args), gpt_oss.GptOssStateDictAdapter(args, None)


def _sizes(s: Sizes) -> dict[str, Any]:
    return {
        "dim": s.dim,
        "n_layers": s.layers,
        "n_heads": s.heads,
        "n_kv_heads": s.kv_heads,
        "vocab_size": s.vocab,
        "max_seq_len": 64,
    }


MODELS: dict[str, Callable[[], Made]] = {
    "llama": llama,
    "llama4": llama_4,
    "qwen3_moe": qwen3_moe,
    "deepseek_v3_plain": deepseek_plain,
    "gpt_oss": gptoss,
}
