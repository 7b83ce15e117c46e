"""The families in torchtune's names.

Facts: torchtune/models/convert_weights.py (Llama, Mistral) and torchtune/models/qwen2/_convert_weights.py, torchtune 0.6.1.
"""

from __future__ import annotations

from ckptconv.models.family import Family, Rule, Same
from ckptconv.models.fused import Rotated

L, M = "layers.{layer}.", "model.layers.{layer}."

BODY = (
    Same("tok_embeddings.weight", "model.embed_tokens.weight"),
    Same("norm.scale", "model.norm.weight"),
    Same("output.weight", "lm_head.weight"),
    Same(L + "sa_norm.scale", M + "input_layernorm.weight"),
    Same(L + "mlp_norm.scale", M + "post_attention_layernorm.weight"),
    Same(L + "attn.v_proj.{what}", M + "self_attn.v_proj.{what}"),
    Same(L + "attn.output_proj.{what}", M + "self_attn.o_proj.{what}"),
    Same(L + "mlp.w1.weight", M + "mlp.gate_proj.weight"),
    Same(L + "mlp.w3.weight", M + "mlp.up_proj.weight"),
    Same(L + "mlp.w2.weight", M + "mlp.down_proj.weight"),
)


def rotated() -> tuple[Rule, ...]:
    """Queries and keys whose neighbouring rows rotate together, as in Meta's Llama."""
    return (
        Rotated(L + "attn.q_proj.weight", M + "self_attn.q_proj.weight", "num_attention_heads"),
        Rotated(L + "attn.k_proj.weight", M + "self_attn.k_proj.weight", "num_key_value_heads"),
    )


# Queries and keys whose halves rotate together, as on the Hub.
PLAIN = (
    Same(L + "attn.q_proj.{what}", M + "self_attn.q_proj.{what}"),
    Same(L + "attn.k_proj.{what}", M + "self_attn.k_proj.{what}"),
)
LLAMA = Family("Llama", BODY + rotated())

# config.json's model_type -> the family
FAMILIES = {"llama": LLAMA, "mistral": LLAMA, "qwen2": Family("Qwen2", BODY + PLAIN)}
