"""Multi-head latent attention: DeepSeek and what has its architecture (Kimi-K2, Moonlight)."""

from __future__ import annotations

from ckptconv.models.megatron.tables.parts import (
    ENDS,
    LATENT,
    MLP,
    MLP_NORM,
    experts,
    shared_experts,
    with_mtp,
)

DEEPSEEK = with_mtp(
    "DeepSeek", ENDS + LATENT + MLP_NORM + MLP + experts("mlp") + shared_experts("shared_experts")
)

LATENT_ATTENTION = {
    "deepseek_v2": DEEPSEEK,
    "deepseek_v3": DEEPSEEK,
    "kimi_k2": DEEPSEEK,
    "glm4_moe_lite": DEEPSEEK,
}
