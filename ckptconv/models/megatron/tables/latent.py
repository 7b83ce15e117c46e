"""Multi-head latent attention: DeepSeek and what has its architecture."""

from __future__ import annotations

from ckptconv.models.family import Family
from ckptconv.models.megatron.tables.parts import ENDS, LATENT, MLP, MLP_NORM, experts, shared_experts

DEEPSEEK = Family(
    "DeepSeek", ENDS + LATENT + MLP_NORM + MLP + experts("mlp") + shared_experts("shared_experts")
)

LATENT_ATTENTION = {"deepseek_v2": DEEPSEEK, "deepseek_v3": DEEPSEEK}
