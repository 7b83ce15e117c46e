"""Mixtures of experts with ordinary attention."""

from __future__ import annotations

from ckptconv.models.family import Changed, Family, Same
from ckptconv.models.megatron.tables.dense import LLAMA, QWEN3
from ckptconv.models.megatron.tables.parts import (
    ATTENTION,
    ENDS,
    MLP_NORM,
    WIDE_QK_NORM,
    L,
    M,
    experts,
    shared_experts,
    with_mtp,
)
from ckptconv.models.rules import Turned, Unstack

QWEN2_MOE = Family("Qwen2-MoE", LLAMA.rules + experts("mlp") + shared_experts("shared_expert"))
QWEN3_MOE = Family("Qwen3-MoE", QWEN3.rules + experts("mlp"))
MIXTRAL = Family("Mixtral", ENDS + ATTENTION + MLP_NORM + experts("block_sparse_moe", "w1,w3,w2"))
GLM4_MOE = with_mtp("GLM-4.5", QWEN3.rules + experts("mlp") + shared_experts("shared_experts"))
OLMOE = Family("OLMoE", QWEN3_MOE.rules + WIDE_QK_NORM)
MINIMAX_BIAS = (Same(L + "mlp.router.expert_bias", M + "block_sparse_moe.e_score_correction_bias"),)
MINIMAX_M2 = Family("MiniMax-M2", MINIMAX_BIAS + MIXTRAL.rules + WIDE_QK_NORM)
# Its bias has a row for each kind of input on the Hub, and text models have one.
ERNIE_BIAS = (
    Changed(L + "mlp.router.expert_bias", M + "mlp.moe_statics.e_score_correction_bias", Turned(Unstack(0))),
)
ERNIE_MOE = Family(
    "Ernie 4.5 MoE", ERNIE_BIAS + LLAMA.rules + experts("mlp") + shared_experts("shared_experts")
)
DOTS1 = Family("dots.llm1", QWEN3_MOE.rules + shared_experts("shared_experts"))

MOE = {
    "qwen2_moe": QWEN2_MOE,
    "qwen3_moe": QWEN3_MOE,
    "mixtral": MIXTRAL,
    "glm4_moe": GLM4_MOE,
    "olmoe": OLMOE,
    "minimax_m2": MINIMAX_M2,
    "ernie4_5_moe": ERNIE_MOE,
    "dots1": DOTS1,
}
