"""Multi-head latent attention: DeepSeek, models of its architecture, and those with a sparse-attention indexer.

Megatron-Core's indexer is `core_attention.indexer` (megatron/core/transformer/experimental_attention_variant/dsa.py).
slime has its own attention with other names, in which the rotated half of each indexer head comes first
(slime, slime/backends/megatron_utils/megatron_to_hf/deepseekv3.py). The names tell the two layouts apart.
"""

from __future__ import annotations

from ckptconv.models.family import Config, Rule, Same
from ckptconv.models.megatron.listed import by_source, proven
from ckptconv.models.megatron.tables.parts import (
    ENDS,
    LATENT,
    MLP,
    MLP_NORM,
    L,
    M,
    experts,
    shared_experts,
    with_mtp,
)
from ckptconv.models.nested import text_of
from ckptconv.models.pattern import Pattern
from ckptconv.models.rules import Grouped, Order, Turned

LAYER = ENDS + LATENT + MLP_NORM + MLP + experts("mlp") + shared_experts("shared_experts")
DEEPSEEK = with_mtp("DeepSeek", LAYER)
CORE, SLIME, HUB = (
    L + "self_attention.core_attention.indexer.",
    L + "self_attention.",
    M + "self_attn.indexer.",
)
INDEXER = (
    Same(CORE + "linear_wq_b.weight", HUB + "wq_b.weight"),
    Same(CORE + "linear_wk.weight", HUB + "wk.weight"),
    Same(CORE + "linear_weights_proj.weight", HUB + "weights_proj.weight"),
    Same(CORE + "k_norm.{what}", HUB + "k_norm.{what}"),
)


def swapped_halves(trained: str, hub: str, heads: str = "") -> Rule:
    """A tensor in which the two halves of each indexer head change places.

    Args:
        trained, hub: the name patterns.
        heads: the config's key for the number of heads; "" for one head.
    """

    def layouts(config: Config) -> tuple[Grouped, Order, Turned]:
        text = text_of(config)
        half = int(text["index_head_dim"]) // 2
        both = Grouped(int(text[heads]) if heads else 1, (half, half))
        return both, Order((1, 0)), Turned(both)

    return Rule(Pattern(trained), Pattern(hub), layouts)


SLIME_INDEXER = (
    swapped_halves(SLIME + "wq_b.weight", HUB + "wq_b.weight", "index_n_heads"),
    swapped_halves(SLIME + "wk.weight", HUB + "wk.weight"),
    swapped_halves(SLIME + "k_norm.{what}", HUB + "k_norm.{what}"),
    Same(SLIME + "weights_proj.weight", HUB + "weights_proj.weight"),
)
SPARSE = with_mtp("DeepSeek with an indexer", LAYER + INDEXER + SLIME_INDEXER)

LATENT_ATTENTION = {
    "deepseek_v2": proven("DeepSeek-V2", DEEPSEEK, "Megatron-Bridge"),
    "deepseek_v3": proven("DeepSeek-V3 / Moonlight", DEEPSEEK, "mbridge", "mcore-bridge"),
    "kimi_k2": proven("Kimi-K2", DEEPSEEK, "mcore-bridge"),
    "glm4_moe_lite": proven("GLM-4.7-Flash", DEEPSEEK, "mcore-bridge"),
    "glm_moe_dsa": proven("GLM-5", SPARSE, "mcore-bridge"),
    "deepseek_v32": proven("DeepSeek-V3.2", SPARSE, "mcore-bridge"),
    "sarvam_mla": proven("Sarvam MLA", DEEPSEEK, "Megatron-Bridge"),
    "joyai_llm_flash": by_source("JoyAI-LLM-Flash", DEEPSEEK, "miles, miles_plugins/mbridge"),
}
