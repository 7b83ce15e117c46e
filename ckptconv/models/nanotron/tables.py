"""The families in nanotron's names.

Facts: nanotron/models/{llama,qwen}.py (what the modules are), examples/llama/convert_weights.py and
convert_nanotron_to_hf.py (what they are on the Hub).
"""

from __future__ import annotations

from ckptconv.models.family import Family, GateUp, Rule, Same
from ckptconv.models.fused import QKVParts

L, M = "model.decoder.{layer}.pp_block.", "model.layers.{layer}."


def decoder(interleaved: bool) -> tuple[Rule, ...]:
    """Every class of nanotron's with RMSNorm, rotary embeddings and a gated MLP."""
    qkv = M + "self_attn.{q_proj,k_proj,v_proj}."
    return (
        Same(
            "model.token_position_embeddings.pp_block.token_embedding.weight",
            "model.embed_tokens.weight",
        ),
        Same(L + "input_layernorm.weight", M + "input_layernorm.weight"),
        QKVParts(L + "attn.qkv_proj.weight", qkv + "weight", interleaved),
        QKVParts(L + "attn.qkv_proj.bias", qkv + "bias", interleaved),
        Same(L + "attn.o_proj.weight", M + "self_attn.o_proj.weight"),
        Same(L + "post_attention_layernorm.weight", M + "post_attention_layernorm.weight"),
        GateUp(L + "mlp.gate_up_proj.weight", M + "mlp.{gate,up}_proj.weight"),
        Same(L + "mlp.down_proj.weight", M + "mlp.down_proj.weight"),
        Same("model.final_layer_norm.pp_block.weight", "model.norm.weight"),
        Same("model.lm_head.pp_block.weight", "lm_head.weight"),
    )


def families(interleaved: bool) -> dict[str, Family]:
    rules = decoder(interleaved)
    return {
        "llama": Family("Llama", rules),
        "qwen2": Family("Qwen2", rules),
        "smollm3": Family("SmolLM3", rules),
    }


# config.json's model_type -> the family
FAMILIES = families(interleaved=False)
INTERLEAVED = families(interleaved=True)
