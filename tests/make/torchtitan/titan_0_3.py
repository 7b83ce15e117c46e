"""Tiny models of torchtitan 0.3.0: its own classes and configs, all dims different."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from sizes import DEEPSEEK, GPT_OSS, LLAMA, QWEN3, QWEN3_MOE, DeepSeek, Sizes
from torch import nn
from torchtitan.models import deepseek_v3, gpt_oss, llama3, qwen3
from torchtitan.models.common import ComplexRoPE, CosSinRoPE, Embedding, Linear, RMSNorm

Made = tuple[nn.Module, Any]  # the model, and the adapter that is its truth


def llama() -> Made:
    s = LLAMA
    layers = llama3._build_llama3_layers(
        n_layers=s.layers,
        dim=s.dim,
        n_heads=s.heads,
        n_kv_heads=s.kv_heads,
        hidden_dim=s.hidden,
        attn_backend="flex",
        rope=ComplexRoPE.Config(dim=s.head_dim, max_seq_len=64, theta=10000.0),
    )
    config = llama3.Llama3Model.Config(layers=layers, **_ends(s))
    return config.build(), llama3.Llama3StateDictAdapter(config, None)


def qwen3_tied() -> Made:
    s = QWEN3
    layers = qwen3._build_qwen3_layers(hidden_dim=s.hidden, fuse_qkv=False, **_gqa(s))
    config = qwen3.Qwen3Model.Config(layers=layers, enable_weight_tying=True, **_ends(s))
    return config.build(), qwen3.Qwen3StateDictAdapter(config, None)


def qwen3_moe() -> Made:
    s = QWEN3_MOE
    layers = qwen3._build_qwen3_moe_layers(
        moe_hidden_dim=s.hidden, num_experts=s.experts, top_k=2, moe_comm_backend="standard", **_gqa(s)
    )
    config = qwen3.Qwen3Model.Config(layers=layers, **_ends(s))
    return config.build(), qwen3.Qwen3StateDictAdapter(config, None)


def deepseek(sizes: DeepSeek = DEEPSEEK, mtp: int = 1) -> Made:
    s = sizes
    layers = deepseek_v3._build_dsv3_layers(
        n_layers=s.layers,
        n_dense_layers=1,
        dim=s.dim,
        n_heads=s.heads,
        q_lora_rank=s.q_lora,
        kv_lora_rank=s.kv_lora,
        qk_nope_head_dim=s.nope,
        qk_rope_head_dim=s.rope,
        v_head_dim=s.value,
        mscale=0.7,
        dense_hidden_dim=s.dense,
        moe_hidden_dim=s.hidden,
        num_experts=s.experts,
        num_shared_experts=s.shared,
        router_top_k=2,
        router_score_func="sigmoid",
        attn_backend="flex",
        moe_comm_backend="standard",
        non_blocking_capacity_factor=None,
        rope=ComplexRoPE.Config(dim=s.rope, max_seq_len=64, theta=10000.0),
    )
    extra = deepseek_v3._build_mtp_layers(layers[-1], dim=s.dim, num_mtp_layers=mtp)
    config = deepseek_v3.DeepSeekV3Model.Config(layers=layers, mtp_layers=extra, **_ends(s))
    return config.build(), deepseek_v3.DeepSeekV3StateDictAdapter(config, None)


def gptoss() -> Made:
    s = GPT_OSS
    # The builder has no argument for the heads' sizes: they are its helper's defaults.
    defaults = gpt_oss._make_gptoss_attn_config.__kwdefaults__
    defaults |= {"n_heads": s.heads, "n_kv_heads": s.kv_heads, "head_dim": s.head_dim}
    layers = gpt_oss._build_gptoss_layers(
        dim=s.dim,
        n_layers=s.layers,
        hidden_dim=s.hidden,
        num_experts=s.experts,
        top_k=2,
        load_balance_coeff=1e-3,
        attn_backend="flex",
        moe_comm_backend="standard",
        rope=CosSinRoPE.Config(dim=s.head_dim, max_seq_len=64, theta=150000.0),
    )
    config = gpt_oss.GptOssModel.Config(layers=layers, **_ends(s))
    return config.build(), gpt_oss.GptOssStateDictAdapter(config, None)


def _gqa(s: Sizes) -> dict[str, Any]:
    return {
        "n_layers": s.layers,
        "dim": s.dim,
        "n_heads": s.heads,
        "n_kv_heads": s.kv_heads,
        "head_dim": s.head_dim,
        "attn_backend": "flex",
        "rope": CosSinRoPE.Config(dim=s.head_dim, max_seq_len=64, theta=1000000.0),
    }


def _ends(s: Sizes | DeepSeek) -> dict[str, Any]:
    return {
        "dim": s.dim,
        "vocab_size": s.vocab,
        "tok_embeddings": Embedding.Config(num_embeddings=s.vocab, embedding_dim=s.dim),
        "norm": RMSNorm.Config(normalized_shape=s.dim),
        "lm_head": Linear.Config(in_features=s.dim, out_features=s.vocab),
    }


MODELS: dict[str, Callable[[], Made]] = {
    "llama": llama,
    "qwen3_tied": qwen3_tied,
    "qwen3_moe": qwen3_moe,
    "deepseek_v3": deepseek,
    "gpt_oss": gptoss,
}
