"""MiMo, which is Qwen2 with MTP layers of its own, and MiMo-V2-Flash, whose layers have different heads.

MiMo's `input_proj` reads [hidden state, embedding], Megatron's `eh_proj` [embedding, hidden state], so the halves of its
columns change places. Source: megatron/core/transformer/multi_token_prediction.py and MiMo's modeling code; mbridge (after
0.15.1, which copied it as it is) and Megatron-Bridge do the same.
"""

from __future__ import annotations

from ckptconv.models.family import Changed, Config, Family, Rule, Same, replace_of_layer
from ckptconv.models.megatron.listed import proven
from ckptconv.models.megatron.tables.dense import LLAMA
from ckptconv.models.megatron.tables.parts import L, M, experts, mtp_layers, renamed
from ckptconv.models.nested import text_of
from ckptconv.models.pattern import Pattern
from ckptconv.models.rules import Grouped, Halves

TRAINED, HUB = "mtp.layers.{index}.", "model.mtp_layers.{index}."
ENDS = (
    Same(TRAINED + "enorm.weight", HUB + "token_layernorm.weight"),
    Same(TRAINED + "hnorm.weight", HUB + "hidden_layernorm.weight"),
    Changed(TRAINED + "eh_proj.weight", HUB + "input_proj.weight", Halves(1)),
    Same(TRAINED + "final_layernorm.weight", HUB + "final_layernorm.weight"),
)


def of_layer(config: Config, layer: int) -> Config:
    """Return MiMo-V2-Flash's config of one layer: those with sliding windows have heads of their own."""
    return sliding(config) if config["hybrid_layer_pattern"][layer] else config


def sliding(config: Config) -> Config:
    """Return MiMo-V2-Flash's config of a layer with a sliding window; its MTP layers have one."""
    keys = ("num_attention_heads", "num_key_value_heads", "head_dim", "v_head_dim")
    return {**config, **{key: config[f"swa_{key}"] for key in keys if f"swa_{key}" in config}}


def other_values(config: Config) -> tuple[Grouped]:
    """Return the layout of QKV whose values have heads of another size than queries and keys."""
    text = text_of(config)
    heads, groups, head_dim = (
        int(text[k]) for k in ("num_attention_heads", "num_key_value_heads", "head_dim")
    )
    return (Grouped(groups, (heads // groups * head_dim, head_dim, int(text["v_head_dim"]))),)


QKV_NAMES = Pattern(L + "self_attention.linear_qkv.{what}"), Pattern(M + "self_attn.{q,k,v}_proj.{what}")
QKV_OF_LAYER = replace_of_layer((Rule(*QKV_NAMES, other_values),), of_layer)
QKV_OF_MTP = (Rule(*QKV_NAMES, lambda config: other_values(sliding(text_of(config)))),)
SINKS = (Same(L + "self_attention.core_attention.softmax_offset", M + "self_attn.attention_sink_bias"),)
TABLE = Family("MiMo", ENDS + mtp_layers(LLAMA.rules, HUB) + LLAMA.rules)
V2_MTP = "model.mtp.layers.{index}."
V2_MTP_LAYER = renamed(QKV_OF_MTP + SINKS + LLAMA.rules, "post_attention_layernorm", "pre_mlp_layernorm")
V2_FLASH = Family(
    "MiMo-V2-Flash",
    tuple(
        Same(f"{TRAINED}{name}.weight", f"{V2_MTP}{name}.weight")
        for name in ("enorm", "hnorm", "eh_proj", "final_layernorm")
    )
    + mtp_layers(V2_MTP_LAYER, V2_MTP)
    + QKV_OF_LAYER
    + SINKS
    + LLAMA.rules
    + experts("mlp"),
)

MIMO = {
    "mimo": proven("MiMo", TABLE, "mbridge"),
    "mimo_v2_flash": proven("MiMo-V2-Flash", V2_FLASH, "Megatron-Bridge"),
}
