"""Blocks of lines that families share; each line has Megatron's name, the Hub's name and the verb between them.

Layout facts: megatron/core/transformer (attention.py, multi_latent_attention.py, mlp.py, moe/), confirmed on real
checkpoints; see docs/megatron.md.
"""

from __future__ import annotations

from dataclasses import replace

from ckptconv.models.family import (
    MTP_COPIES,
    QKV,
    Changed,
    Family,
    GateUp,
    JoinedQKV,
    Rule,
    Same,
    Up,
    Vocab,
)
from ckptconv.models.pattern import Pattern
from ckptconv.models.rules import Swap, Turned, Unstack

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
# Multi-head latent attention. A model without a low-rank query has q_proj.
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


def experts(
    block: str,
    names: str = "gate_proj,up_proj,down_proj",
    router: str = "gate.weight",
    bias: str = "gate.e_score_correction_bias",
) -> tuple[Rule, ...]:
    """Return the lines of the router and the routed experts.

    Args:
        block: the Hub's name of the MoE block.
        names: the Hub's names of gate, up and down.
        router, bias: the Hub's names of the router's weight and bias, inside the block.
    """
    gate, up, down = names.split(",")
    one = f"{M}{block}.experts.{{expert}}."
    return (
        Same(L + "mlp.router.weight", f"{M}{block}.{router}"),
        Same(L + "mlp.router.expert_bias", f"{M}{block}.{bias}"),
        GateUp(L + "mlp.experts.{expert}.linear_fc1.weight", f"{one}{{{gate},{up}}}.weight"),
        Same(L + "mlp.experts.{expert}.linear_fc2.weight", f"{one}{down}.weight"),
    )


def shared_experts(block: str) -> tuple[Rule, ...]:
    """Return the lines of the experts that every token goes through. block: the Hub's name of their module."""
    return (
        GateUp(L + "mlp.shared_experts.linear_fc1.weight", f"{M}mlp.{block}.{{gate,up}}_proj.weight"),
        Same(L + "mlp.shared_experts.linear_fc2.weight", f"{M}mlp.{block}.down_proj.weight"),
        Same(L + "mlp.shared_experts.gate_weight", f"{M}mlp.{block}_gate.weight"),
    )


def stacked_experts(block: str, *changes: Swap) -> tuple[Rule, ...]:
    """Return the lines of routed experts that the Hub keeps in one tensor per projection and layer.

    Args:
        block: the Hub's name of the MoE block.
        changes: none if the Hub's experts are (out, in); Swap(1, 2) if they are (in, out).
    """
    one, stack = L + "mlp.experts.{expert}.", Turned(Unstack(0))
    return (
        Changed(one + "linear_fc1.weight", f"{M}{block}.experts.gate_up_proj", stack, *changes),
        Changed(one + "linear_fc2.weight", f"{M}{block}.experts.down_proj", stack, *changes),
    )


# Norms on both sides of a block, as Gemma and GLM-4 name them. slime's GLM-4 layer has its own names for GLM-4's
# (slime, slime_plugins/models/glm4.py); mcore-bridge puts them into the modules before them.
GEMMA_NORMS = (
    Same(L + "self_attention.linear_proj.post_layernorm.weight", M + "post_attention_layernorm.weight"),
    Same(L + "mlp.linear_fc1.layer_norm_weight", M + "pre_feedforward_layernorm.weight"),
    Same(L + "mlp.linear_fc2.post_layernorm.weight", M + "post_feedforward_layernorm.weight"),
)
GLM4_NORMS = (
    Same(L + "self_attention.post_self_attn_layernorm.weight", M + "post_self_attn_layernorm.weight"),
    Same(L + "mlp.post_mlp_layernorm.weight", M + "post_mlp_layernorm.weight"),
    Same(L + "post_self_attn_layernorm.weight", M + "post_self_attn_layernorm.weight"),
    Same(L + "post_mlp_layernorm.weight", M + "post_mlp_layernorm.weight"),
)
FUSED_MLP = (
    Same(L + "mlp.linear_fc1.weight", M + "mlp.gate_up_proj.weight"),
    Same(L + "mlp.linear_fc2.weight", M + "mlp.down_proj.weight"),
)
# LayerNorm has a bias where RMSNorm has none.
LAYER_NORMS = (
    Same("decoder.final_layernorm.{what}", "model.norm.{what}"),
    Same(L + "self_attention.linear_qkv.layer_norm_{what}", M + "input_layernorm.{what}"),
    Same(L + "input_layernorm.{what}", M + "input_layernorm.{what}"),
    Same(L + "mlp.linear_fc1.layer_norm_{what}", M + "post_attention_layernorm.{what}"),
    Same(L + "pre_mlp_layernorm.{what}", M + "post_attention_layernorm.{what}"),
)
# Full-width norms of queries and keys, as mcore-bridge names them.
WIDE_QK_NORM = (
    Same(L + "self_attention.q_norm.weight", M + "self_attn.q_norm.weight"),
    Same(L + "self_attention.k_norm.weight", M + "self_attn.k_norm.weight"),
)


def ungated_mlp(up: str, down: str) -> tuple[Rule, ...]:
    """Return the lines of an MLP without a gate. up, down: the Hub's names of its projections."""
    return (
        Up(L + "mlp.linear_fc1.{what}", f"{M}mlp.{up}.{{what}}"),
        Same(L + "mlp.linear_fc2.{what}", f"{M}mlp.{down}.{{what}}"),
    )


def joined_attention(qkv: str, dense: str) -> tuple[Rule, ...]:
    """Return the lines of attention whose queries, keys and values are one tensor on the Hub.

    Args:
        qkv: the Hub's name of that tensor's module, inside the layer: all queries, all keys, all values.
        dense: the Hub's name of the output projection, inside the layer.
    """
    return (
        Same(L + "self_attention.linear_qkv.layer_norm_weight", M + "input_layernorm.weight"),
        Same(L + "input_layernorm.weight", M + "input_layernorm.weight"),
        JoinedQKV(L + "self_attention.linear_qkv.{what}", f"{M}{qkv}.{{what}}"),
        Same(L + "self_attention.linear_proj.{what}", f"{M}{dense}.{{what}}"),
    )


def renamed(rules: tuple[Rule, ...], old: str, new: str) -> tuple[Rule, ...]:
    """Return the rules with one part of the Hub's names replaced."""
    return tuple(
        replace(
            rule,
            hub=Pattern(rule.hub.text.replace(old, new)),
            instead=rule.instead and rule.instead.replace(old, new),
        )
        for rule in rules
    )


def mtp_layers(layer: tuple[Rule, ...], hub: str = "model.layers.{mtp}.") -> tuple[Rule, ...]:
    """Return the rules of a decoder layer for the same layer inside a multi-token-prediction (MTP) layer.

    torch_dist files name that inner layer `transformer_layer`; rank files of newer Megatron-Core versions name it
    `mtp_model_layer`. Source: megatron/core/transformer/multi_token_prediction.py,
    MultiTokenPredictionLayer.sharded_state_dict.

    Args:
        layer: the family's rules; those outside a decoder layer are ignored.
        hub: the Hub's prefix of an MTP layer, with the hole for its number.
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


MTP, NEXT = "mtp.layers.{mtp}.", "model.layers.{mtp}."


def mtp_ends(norm: str = "shared_head.norm") -> tuple[Rule, ...]:
    """Return the lines that an MTP layer has besides a decoder layer's. norm: the Hub's name of its last norm."""
    return (
        Same(MTP + "enorm.weight", NEXT + "enorm.weight"),
        Same(MTP + "hnorm.weight", NEXT + "hnorm.weight"),
        Same(MTP + "eh_proj.weight", NEXT + "eh_proj.weight"),
        Same(MTP + "final_layernorm.weight", f"{NEXT}{norm}.weight"),
    )


def with_mtp(name: str, rules: tuple[Rule, ...]) -> Family:
    """Return a family whose MTP layers follow its last layer on the Hub, under the same names.

    The Hub repeats the embedding and the head in each of them; Megatron stores both once.
    """
    return Family(name, mtp_ends() + mtp_layers(rules) + rules, copies=MTP_COPIES)
