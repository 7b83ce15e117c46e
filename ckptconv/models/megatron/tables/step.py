"""Step-3.5: layers with two numbers of heads, a gate for each head, and experts in one tensor per projection.

Megatron-Core's head-wise gate is the last rows of `linear_qkv`, which torch_dist stores apart (`_qkv` and `_gate`). Older
releases have no such gate, and Megatron-Bridge repeats its row over the whole head instead: that is a layout which trains to
values that the Hub's model cannot hold, so there is no line for it. Sources: megatron/core/transformer/attention.py,
apply_head_wise_attn_gate_sharded_factory; Megatron-Bridge, stepfun/step35_bridge.py.
"""

from __future__ import annotations

from ckptconv.models.family import QKV, Changed, Config, Family, Same, replace_of_layer
from ckptconv.models.megatron.listed import proven
from ckptconv.models.megatron.tables.parts import (
    ATTENTION,
    ENDS,
    MLP,
    MLP_NORM,
    QK_NORM,
    L,
    M,
    mtp_ends,
    mtp_layers,
    renamed,
    shared_experts,
)
from ckptconv.models.rules import Cut, Turned, Unstack


def of_layer(config: Config, layer: int) -> Config:
    """Return the config of one layer: those with a sliding window have heads of their own. MTP layers follow the last."""
    kinds, other = config.get("layer_types") or (), config.get("attention_other_setting") or {}
    own = other if layer < len(kinds) and kinds[layer] == "sliding_attention" else {}
    stated = {**config, **own}
    return {**stated, "num_key_value_heads": stated["num_attention_groups"]}


FC, STACK = L + "mlp.experts.{expert}.linear_fc", Turned(Unstack(0))
QKVG = L + "self_attention.linear_qkv.weight"
LAYER = (
    *replace_of_layer((QKV(QKVG + "._qkv", M + "self_attn.{q,k,v}_proj.weight"),), of_layer),
    Same(QKVG + "._gate", M + "self_attn.g_proj.weight"),
    *(rule for rule in ATTENTION if rule.trained.text != L + "self_attention.linear_qkv.{what}"),
    *QK_NORM,
    *MLP_NORM,
    *MLP,
    Same(L + "mlp.router.weight", M + "moe.gate.weight"),
    Same(L + "mlp.router.expert_bias", M + "moe.router_bias"),
    Changed(FC + "1.weight", M + "moe.{gate,up}_proj.weight", STACK, Cut(1, 2)),
    Changed(FC + "2.weight", M + "moe.down_proj.weight", STACK),
    *renamed(shared_experts("share_expert"), "mlp.", ""),
)
STEP3P5 = Family(
    "Step-3.5",
    ENDS + mtp_ends("transformer.shared_head.norm") + mtp_layers(LAYER) + LAYER,
)

STEP = {"step3p5": proven("Step-3.5", STEP3P5, "Megatron-Bridge")}
