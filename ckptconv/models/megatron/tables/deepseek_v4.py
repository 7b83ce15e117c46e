"""DeepSeek-V4: hyper-connections, compressed attention, routing by hash, and output projections by group.

The published files have the names of DeepSeek's own code, without `model.`. Sources: Megatron-Bridge,
deepseek/deepseek_v4_bridge.py; mcore-bridge, model/gpts/deepseek_v4.py; Megatron-Core,
core/transformer/experimental_attention_variant/csa.py.
"""

from __future__ import annotations

from ckptconv.models.family import Changed, Family, GateUp, Rule, Same, Vocab
from ckptconv.models.megatron.listed import proven
from ckptconv.models.megatron.tables.parts import L
from ckptconv.models.rules import Cut, Turned

JOINED = Turned(Cut(0, 3))
ENDS = (
    Vocab("embedding.word_embeddings.weight", "embed.weight"),
    Same("decoder.final_layernorm.weight", "norm.weight"),
    Vocab("output_layer.weight", "head.weight", instead="score.weight"),
    Same("decoder.hc_head_{part}", "hc_head_{part}"),
)
MTP_ENDS = (
    *(Same(f"mtp.layers.{{index}}.{n}.weight", f"mtp.{{index}}.{n}.weight") for n in ("enorm", "hnorm")),
    *(Same(f"mtp.layers.{{index}}.{n}.weight", f"mtp.{{index}}.{n}.weight") for n in ("e_proj", "h_proj")),
    Same("mtp.layers.{index}.final_layernorm.weight", "mtp.{index}.norm.weight"),
    Same("mtp.layers.{index}.hc_head_{part}", "mtp.{index}.hc_head_{part}"),
)


def compressor(trained: str, hub: str) -> tuple[Rule, ...]:
    """Return the lines of a compressor. trained, hub: the prefixes of both sides."""
    return (
        Same(trained + "linear_wkv.weight", hub + "wkv.weight"),
        Same(trained + "linear_wgate.weight", hub + "wgate.weight"),
        Same(trained + "ape", hub + "ape"),
        Same(trained + "norm.weight", hub + "norm.weight"),
    )


def hyper_connection(trained: str, hub: str) -> tuple[Rule, ...]:
    """Return the lines of a hyper-connection; its three scalars are one tensor on the Hub."""
    return (
        Same(trained + "mapping_proj.weight", hub + "fn"),
        Same(trained + "bias", hub + "base"),
        Changed(trained + "alpha_{pre,post,res}", hub + "scale", JOINED),
    )


def layer(trained: str, hub: str) -> tuple[Rule, ...]:
    """Return the lines of one layer. trained, hub: the prefixes of both sides."""
    attention, core = trained + "self_attention.", trained + "self_attention.core_attention."
    return (
        Same(trained + "input_layernorm.weight", hub + "attn_norm.weight"),
        Same(trained + "pre_mlp_layernorm.weight", hub + "ffn_norm.weight"),
        Same(attention + "linear_q_down_proj.weight", hub + "attn.wq_a.weight"),
        Same(attention + "q_layernorm.weight", hub + "attn.q_norm.weight"),
        Same(attention + "linear_q_up_proj.weight", hub + "attn.wq_b.weight"),
        Same(attention + "linear_kv_proj.weight", hub + "attn.wkv.weight"),
        Same(attention + "kv_layernorm.weight", hub + "attn.kv_norm.weight"),
        Same(attention + "linear_o_group_proj", hub + "attn.wo_a.weight"),
        Same(attention + "linear_proj.weight", hub + "attn.wo_b.weight"),
        Same(core + "attn_sink", hub + "attn.attn_sink"),
        *compressor(core + "compressor.", hub + "attn.compressor."),
        Same(core + "indexer.linear_wq_b.weight", hub + "attn.indexer.wq_b.weight"),
        Same(core + "indexer.linear_weights_proj.weight", hub + "attn.indexer.weights_proj.weight"),
        *compressor(core + "indexer.compressor.", hub + "attn.indexer.compressor."),
        Same(trained + "mlp.router.weight", hub + "ffn.gate.weight"),
        Same(trained + "mlp.router.expert_bias", hub + "ffn.gate.bias"),
        Same(trained + "mlp.router.tid2eid", hub + "ffn.gate.tid2eid"),
        GateUp(
            trained + "mlp.experts.{expert}.linear_fc1.weight", hub + "ffn.experts.{expert}.{w1,w3}.weight"
        ),
        Same(trained + "mlp.experts.{expert}.linear_fc2.weight", hub + "ffn.experts.{expert}.w2.weight"),
        GateUp(trained + "mlp.shared_experts.linear_fc1.weight", hub + "ffn.shared_experts.{w1,w3}.weight"),
        Same(trained + "mlp.shared_experts.linear_fc2.weight", hub + "ffn.shared_experts.w2.weight"),
        *hyper_connection(trained + "self_attention_hyper_connection.", hub + "hc_attn_"),
        *hyper_connection(trained + "mlp_hyper_connection.", hub + "hc_ffn_"),
    )


TABLE = Family(
    "DeepSeek-V4",
    ENDS
    + MTP_ENDS
    + layer(L, "layers.{layer}.")
    + layer("mtp.layers.{index}.mtp_model_layer.", "mtp.{index}.")
    + layer("mtp.layers.{index}.transformer_layer.", "mtp.{index}."),
)
DEEPSEEK_V4 = {
    "deepseek_v4": proven("DeepSeek-V4", TABLE, "Megatron-Bridge"),
}
