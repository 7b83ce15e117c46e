"""Mixtures of experts with ordinary attention.

Sources besides the real checkpoints: Megatron-Bridge (src/megatron/bridge/models), mcore-bridge (model/gpts).
"""

from __future__ import annotations

from ckptconv.models.family import Changed, Family, Same
from ckptconv.models.megatron.listed import by_source, proven
from ckptconv.models.megatron.tables.dense import LLAMA, QWEN3
from ckptconv.models.megatron.tables.parts import (
    ATTENTION,
    ENDS,
    LATENT,
    MLP,
    MLP_NORM,
    QK_NORM,
    WIDE_QK_NORM,
    L,
    M,
    experts,
    joined_attention,
    mtp_ends,
    mtp_layers,
    renamed,
    shared_experts,
    stacked_experts,
    with_mtp,
)
from ckptconv.models.rules import Swap, Turned, Unstack

QWEN2_MOE = Family("Qwen2-MoE", LLAMA.rules + experts("mlp") + shared_experts("shared_expert"))
QWEN3_MOE = Family("Qwen3-MoE", QWEN3.rules + experts("mlp"))
MIXTRAL = Family("Mixtral", ENDS + ATTENTION + MLP_NORM + experts("block_sparse_moe", "w1,w3,w2"))
GLM4_MOE = with_mtp("GLM-4.5", QWEN3.rules + experts("mlp") + shared_experts("shared_experts"))
OLMOE = Family("OLMoE", QWEN3_MOE.rules + WIDE_QK_NORM)
MINIMAX_BIAS = (Same(L + "mlp.router.expert_bias", M + "block_sparse_moe.e_score_correction_bias"),)
MINIMAX_M2 = Family("MiniMax-M2", MINIMAX_BIAS + MIXTRAL.rules + WIDE_QK_NORM)
MINIMAX_M3 = Family(
    "MiniMax-M3",
    MINIMAX_BIAS
    + QWEN3.rules
    + experts("block_sparse_moe", "w1,w3,w2")
    + renamed(shared_experts("shared_experts"), "mlp.", "block_sparse_moe."),
)
# On the Hub the bias has one row per kind of input; text models have one row.
ERNIE_BIAS = (
    Changed(L + "mlp.router.expert_bias", M + "mlp.moe_statics.e_score_correction_bias", Turned(Unstack(0))),
)
ERNIE_MOE = Family(
    "Ernie 4.5 MoE", ERNIE_BIAS + LLAMA.rules + experts("mlp") + shared_experts("shared_experts")
)
DOTS1 = Family("dots.llm1", QWEN3_MOE.rules + shared_experts("shared_experts"))
DEEPSEEK_V1 = Family("DeepSeek v1", LLAMA.rules + experts("mlp") + shared_experts("shared_experts"))
HUNYUAN_LAYER = (
    QWEN3.rules
    + experts("mlp", router="router.gate.weight", bias="expert_bias")
    + shared_experts("shared_mlp")
)
HUNYUAN = Family("Hunyuan 3", mtp_ends("final_layernorm") + mtp_layers(HUNYUAN_LAYER) + HUNYUAN_LAYER)
BAILING_NORMS = (
    Same(L + "self_attention.q_layernorm.weight", M + "attention.query_layernorm.weight"),
    Same(L + "self_attention.k_layernorm.weight", M + "attention.key_layernorm.weight"),
)
BAILING_LAYER = (
    renamed(ENDS, "embed_tokens", "word_embeddings")
    + joined_attention("attention.query_key_value", "attention.dense")
    + BAILING_NORMS
    + MLP_NORM
    + MLP
    + experts("mlp", bias="gate.expert_bias")
    + shared_experts("shared_experts")
)
BAILING = Family("Bailing", mtp_ends("final_layernorm") + mtp_layers(BAILING_LAYER) + BAILING_LAYER)
# Ling 2.5: latent attention every few layers, lightning attention with a gate and a norm of its own in the others.
BAILING_HYBRID_LAYER = (
    Same(L + "self_attention.g_proj.weight", M + "attention.g_proj.weight"),
    Same(L + "self_attention.g_norm.weight", M + "attention.g_norm.weight"),
    *BAILING_LAYER,
    *renamed(renamed(LATENT, "self_attn.o_proj", "attention.dense"), "self_attn.", "attention."),
)
BAILING_HYBRID = Family(
    "Bailing hybrid", mtp_ends("final_layernorm") + mtp_layers(BAILING_HYBRID_LAYER) + BAILING_HYBRID_LAYER
)
EXAONE_MTP = (
    Same("mtp.layers.0.enorm.weight", "mtp.pre_fc_norm_embedding.weight"),
    Same("mtp.layers.0.hnorm.weight", "mtp.pre_fc_norm_hidden.weight"),
    Same("mtp.layers.0.eh_proj.weight", "mtp.fc.weight"),
    Same("mtp.layers.0.final_layernorm.weight", "mtp.norm.weight"),
)
EXAONE_MOE = Family(
    "Exaone MoE",
    QWEN3.rules
    + experts("mlp", bias="e_score_correction_bias")
    + shared_experts("shared_experts")
    + EXAONE_MTP
    + mtp_layers(QWEN3.rules, "mtp.layers.{layer}."),
)
# Queries and keys are normalised without weights. The Hub's experts are (in, out), gate and up one after the other.
LLAMA4 = Family(
    "Llama 4",
    ENDS
    + ATTENTION
    + QK_NORM
    + MLP_NORM
    + renamed(MLP, "mlp.", "feed_forward.")
    + (Same(L + "mlp.router.weight", M + "feed_forward.router.weight"),)
    + stacked_experts("feed_forward", Swap(1, 2))
    + renamed(shared_experts("shared_expert"), "mlp.", "feed_forward."),
)

MOE = {
    "qwen2_moe": proven("Qwen2-MoE", QWEN2_MOE, "mbridge"),
    "qwen3_moe": proven("Qwen3-MoE", QWEN3_MOE, "mbridge"),
    "mixtral": proven("Mixtral", MIXTRAL, "mbridge"),
    "glm4_moe": proven("GLM-4.5", GLM4_MOE, "Megatron-Bridge", "mcore-bridge"),
    "olmoe": proven("OLMoE", OLMOE, "Megatron-Bridge", "mcore-bridge"),
    "minimax_m2": proven("MiniMax-M2", MINIMAX_M2, "mcore-bridge"),
    "ernie4_5_moe": proven("Ernie 4.5 MoE", ERNIE_MOE, "mcore-bridge"),
    "dots1": proven("dots.llm1", DOTS1, "mcore-bridge"),
    "deepseek": proven("DeepSeek v1", DEEPSEEK_V1, "mcore-bridge"),
    "hy_v3": proven("Hunyuan 3", HUNYUAN, "mcore-bridge"),
    "bailing_moe": proven("Bailing (Ling)", BAILING, "mcore-bridge"),
    "bailing_moe_v2": proven("Bailing v2 (Ling 2)", BAILING, "Megatron-Bridge"),
    "sarvam_moe": proven("Sarvam MoE", BAILING, "Megatron-Bridge"),
    "bailing_hybrid": proven("Bailing hybrid (Ling 2.5)", BAILING_HYBRID, "mcore-bridge"),
    "exaone_moe": proven("Exaone MoE", EXAONE_MOE, "Megatron-Bridge"),
    "llama4_text": by_source("Llama 4 (text)", LLAMA4, "mcore-bridge, model/mm_gpts/llama4.py"),
}
