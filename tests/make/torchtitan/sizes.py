"""Sizes of the tiny models, and the config.json that says the same. No two dims are equal, and few are even."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class Sizes:
    """hidden: of the MLP, or of one expert."""

    layers: int
    vocab: int
    dim: int
    heads: int
    kv_heads: int
    head_dim: int
    hidden: int
    experts: int = 0

    def config(self, model_type: str, architecture: str, **more: Any) -> dict[str, Any]:
        return {
            "model_type": model_type,
            "architectures": [architecture],
            "vocab_size": self.vocab,
            "hidden_size": self.dim,
            "intermediate_size": self.hidden,
            "num_hidden_layers": self.layers,
            "num_attention_heads": self.heads,
            "num_key_value_heads": self.kv_heads,
            "head_dim": self.head_dim,
            "rms_norm_eps": 1e-5,
            "max_position_embeddings": 64,
            "tie_word_embeddings": False,
            **more,
        }


@dataclass(frozen=True)
class DeepSeek:
    """Latent attention; the first layer is dense."""

    layers: int = 3
    vocab: int = 37
    dim: int = 20
    heads: int = 3
    q_lora: int = 13
    kv_lora: int = 15
    nope: int = 5
    rope: int = 4
    value: int = 7
    dense: int = 23
    hidden: int = 11
    experts: int = 6
    shared: int = 2

    def config(self, **more: Any) -> dict[str, Any]:
        return {
            "model_type": "deepseek_v3",
            "architectures": ["DeepseekV3ForCausalLM"],
            "vocab_size": self.vocab,
            "hidden_size": self.dim,
            "intermediate_size": self.dense,
            "moe_intermediate_size": self.hidden,
            "num_hidden_layers": self.layers,
            "num_attention_heads": self.heads,
            "num_key_value_heads": self.heads,
            "q_lora_rank": self.q_lora or None,
            "kv_lora_rank": self.kv_lora,
            "qk_nope_head_dim": self.nope,
            "qk_rope_head_dim": self.rope,
            "v_head_dim": self.value,
            "n_routed_experts": self.experts,
            "n_shared_experts": self.shared,
            "num_experts_per_tok": 2,
            "n_group": 1,
            "topk_group": 1,
            "first_k_dense_replace": 1,
            "tie_word_embeddings": False,
            **more,
        }


# Llama has no head size but dim / heads here. 33: what 0.2.2 makes of its multiple_of.
# A head of 6: in one of 4, halves and pairs change places by the same swap either way.
LLAMA = Sizes(layers=2, vocab=37, dim=24, heads=4, kv_heads=2, head_dim=6, hidden=33)
QWEN3 = Sizes(layers=2, vocab=41, dim=18, heads=4, kv_heads=2, head_dim=6, hidden=25)
QWEN3_MOE = Sizes(layers=2, vocab=41, dim=18, heads=4, kv_heads=2, head_dim=6, hidden=11, experts=5)
GPT_OSS = Sizes(layers=2, vocab=37, dim=18, heads=4, kv_heads=2, head_dim=6, hidden=11, experts=5)
LLAMA4 = Sizes(layers=2, vocab=37, dim=24, heads=4, kv_heads=2, head_dim=6, hidden=64, experts=3)
DEEPSEEK = DeepSeek()
# Queries without the low-rank step. 0.2.2's forward pass wants even sizes before what rotates.
DEEPSEEK_PLAIN = DeepSeek(layers=2, q_lora=0, kv_lora=16, nope=6)

CONFIGS: dict[str, dict[str, Any]] = {
    "llama": LLAMA.config("llama", "LlamaForCausalLM"),
    "qwen3_tied": QWEN3.config("qwen3", "Qwen3ForCausalLM", tie_word_embeddings=True),
    "qwen3_moe": QWEN3_MOE.config(
        "qwen3_moe", "Qwen3MoeForCausalLM", num_experts=5, moe_intermediate_size=11, num_experts_per_tok=2
    ),
    "deepseek_v3": DEEPSEEK.config(num_nextn_predict_layers=1),
    "deepseek_v3_plain": DEEPSEEK_PLAIN.config(),
    "gpt_oss": GPT_OSS.config("gpt_oss", "GptOssForCausalLM", num_local_experts=5, num_experts_per_tok=2),
    "llama4": {
        "model_type": "llama4",
        "architectures": ["Llama4ForConditionalGeneration"],
        "text_config": LLAMA4.config(
            "llama4_text", "Llama4ForCausalLM", num_local_experts=3, intermediate_size_mlp=64
        ),
    },
}
