"""What families share: blocks of lines, each with Megatron's name, the Hub's name and the verb between them.

Layout facts: megatron/core (attention.py, mlp.py, moe/), read off real checkpoints; see docs/megatron.md.
"""

from __future__ import annotations

from dataclasses import replace

from ckptconv.models.family import MTP_COPIES, QKV, Family, GateUp, Rule, Same, Vocab
from ckptconv.models.pattern import Pattern

L, M = "decoder.layers.{layer}.", "model.layers.{layer}."

ENDS = (
    Vocab("embedding.word_embeddings.weight", "model.embed_tokens.weight"),
    Same("decoder.final_layernorm.weight", "model.norm.weight"),
    Vocab("output_layer.weight", "lm_head.weight", instead="score.weight"),
)
ATTENTION = (
    Same(L + "self_attention.linear_qkv.layer_norm_weight", M + "input_layernorm.weight"),
    Same(L + "input_layernorm.weight", M + "input_layernorm.weight"),
    QKV(L + "self_attention.linear_qkv.{what}", M + "self_attn.{q,k,v}_proj.{what}"),
    Same(L + "self_attention.linear_proj.{what}", M + "self_attn.o_proj.{what}"),
)
QK_NORM = (
    Same(L + "self_attention.q_layernorm.weight", M + "self_attn.q_norm.weight"),
    Same(L + "self_attention.k_layernorm.weight", M + "self_attn.k_norm.weight"),
)
# Multi-head latent attention: straight copies; q_proj where there is no q-LoRA.
LATENT = (
    Same(L + "input_layernorm.weight", M + "input_layernorm.weight"),
    Same(L + "self_attention.linear_q_proj.weight", M + "self_attn.q_proj.weight"),
    Same(L + "self_attention.linear_q_down_proj.weight", M + "self_attn.q_a_proj.weight"),
    Same(L + "self_attention.linear_q_up_proj.layer_norm_weight", M + "self_attn.q_a_layernorm.weight"),
    Same(L + "self_attention.linear_q_up_proj.weight", M + "self_attn.q_b_proj.weight"),
    Same(L + "self_attention.linear_kv_down_proj.weight", M + "self_attn.kv_a_proj_with_mqa.weight"),
    Same(L + "self_attention.linear_kv_up_proj.layer_norm_weight", M + "self_attn.kv_a_layernorm.weight"),
    Same(L + "self_attention.linear_kv_up_proj.weight", M + "self_attn.kv_b_proj.weight"),
    Same(L + "self_attention.q_layernorm.weight", M + "self_attn.q_a_layernorm.weight"),  # without TE
    Same(L + "self_attention.kv_layernorm.weight", M + "self_attn.kv_a_layernorm.weight"),
    Same(L + "self_attention.linear_proj.weight", M + "self_attn.o_proj.weight"),
)
MLP_NORM = (
    Same(L + "mlp.linear_fc1.layer_norm_weight", M + "post_attention_layernorm.weight"),
    Same(L + "pre_mlp_layernorm.weight", M + "post_attention_layernorm.weight"),
)
MLP = (
    GateUp(L + "mlp.linear_fc1.weight", M + "mlp.{gate,up}_proj.weight"),
    Same(L + "mlp.linear_fc2.weight", M + "mlp.down_proj.weight"),
)


def experts(block: str, names: str = "gate_proj,up_proj,down_proj") -> tuple[Rule, ...]:
    """Router and routed experts under the Hub's name of the MoE block, with its names of gate, up and down."""
    gate, up, down = names.split(",")
    one = f"{M}{block}.experts.{{expert}}."
    return (
        Same(L + "mlp.router.weight", f"{M}{block}.gate.weight"),
        Same(L + "mlp.router.expert_bias", f"{M}{block}.gate.e_score_correction_bias"),
        GateUp(L + "mlp.experts.{expert}.linear_fc1.weight", f"{one}{{{gate},{up}}}.weight"),
        Same(L + "mlp.experts.{expert}.linear_fc2.weight", f"{one}{down}.weight"),
    )


def shared_experts(block: str) -> tuple[Rule, ...]:
    """The experts that every token goes through."""
    return (
        GateUp(L + "mlp.shared_experts.linear_fc1.weight", f"{M}mlp.{block}.{{gate,up}}_proj.weight"),
        Same(L + "mlp.shared_experts.linear_fc2.weight", f"{M}mlp.{block}.down_proj.weight"),
        Same(L + "mlp.shared_experts.gate_weight", f"{M}mlp.{block}_gate.weight"),
    )


# Norms on both sides of a block, Gemma's and GLM-4's names for them.
GEMMA_NORMS = (
    Same(L + "self_attention.linear_proj.post_layernorm.weight", M + "post_attention_layernorm.weight"),
    Same(L + "mlp.linear_fc1.layer_norm_weight", M + "pre_feedforward_layernorm.weight"),
    Same(L + "mlp.linear_fc2.post_layernorm.weight", M + "post_feedforward_layernorm.weight"),
)
GLM4_NORMS = (
    Same(L + "self_attention.post_self_attn_layernorm.weight", M + "post_self_attn_layernorm.weight"),
    Same(L + "mlp.post_mlp_layernorm.weight", M + "post_mlp_layernorm.weight"),
)
FUSED_MLP = (
    Same(L + "mlp.linear_fc1.weight", M + "mlp.gate_up_proj.weight"),
    Same(L + "mlp.linear_fc2.weight", M + "mlp.down_proj.weight"),
)
# Full-width norms of queries and keys, as mcore-bridge calls them.
WIDE_QK_NORM = (
    Same(L + "self_attention.q_norm.weight", M + "self_attn.q_norm.weight"),
    Same(L + "self_attention.k_norm.weight", M + "self_attn.k_norm.weight"),
)


def mtp_layers(layer: tuple[Rule, ...], hub: str = "model.layers.{mtp}.") -> tuple[Rule, ...]:
    """A family's own decoder layer inside its MTP layers. hub: their prefix on the Hub, with the number's hole.

    `transformer_layer` is its name in the files; newer cores call the module `mtp_model_layer`, which rank files show.
    Source: megatron/core/transformer/multi_token_prediction.py, MultiTokenPredictionLayer.sharded_state_dict.
    """
    (number,) = Pattern(hub).holes
    return tuple(
        replace(
            rule,
            trained=Pattern(rule.trained.text.replace(L, f"mtp.layers.{{{number}}}.{block}.")),
            hub=Pattern(rule.hub.text.replace(M, hub)),
        )
        for block in ("transformer_layer", "mtp_model_layer")
        for rule in layer
        if rule.trained.text.startswith(L)
    )


# What DeepSeek's and GLM-4.5's MTP layers have besides; embedding and head are the model's own, and repeated on the Hub.
MTP, NEXT = "mtp.layers.{mtp}.", "model.layers.{mtp}."
MTP_ENDS = (
    Same(MTP + "enorm.weight", NEXT + "enorm.weight"),
    Same(MTP + "hnorm.weight", NEXT + "hnorm.weight"),
    Same(MTP + "eh_proj.weight", NEXT + "eh_proj.weight"),
    Same(MTP + "final_layernorm.weight", NEXT + "shared_head.norm.weight"),
)


def with_mtp(name: str, rules: tuple[Rule, ...]) -> Family:
    """A family whose MTP layers go on after its last layer on the Hub, under the same names."""
    return Family(name, MTP_ENDS + mtp_layers(rules) + rules, copies=MTP_COPIES)
