"""Qwen3-Next: gated delta nets between layers of gated attention, in the two layouts that its trainers have.

Native (Megatron-Core, Megatron-Bridge): each part of in_proj and conv1d is a tensor, the delta net's norm is around
zero, and a group's gates come after all of its queries. mcore-bridge: one in_proj and one conv1d in rows per key head,
the norm as on the Hub, each gate after its query. What in_proj is called tells them apart.
Sources: megatron/core/ssm/gated_delta_net.py, Megatron-Bridge's qwen3_next_bridge.py, mcore-bridge's qwen3_next_gdn.py.
"""

from __future__ import annotations

from typing import NamedTuple

from ckptconv.models.family import Config, Family, Layouts, Rule, Same, ZeroCentered, qkv_layout
from ckptconv.models.megatron.tables.parts import (
    ATTENTION,
    ENDS,
    MLP,
    MLP_NORM,
    QK_NORM,
    L,
    M,
    experts,
    mtp_layers,
    shared_experts,
)
from ckptconv.models.pattern import Pattern
from ckptconv.models.rules import Gates, Grouped, Turned, Ungrouped

A, H = L + "self_attention.", M + "linear_attn."
QKV_NAMES = L + "self_attention.linear_qkv.weight", M + "self_attn.{q,k,v}_proj.weight"


class Sizes(NamedTuple):
    """Of a delta net: key heads, and rows for each of them: of queries and keys, of values and z, of beta and alpha."""

    heads: int
    key: int
    value: int
    ratio: int

    @classmethod
    def of(cls, config: Config) -> Sizes:
        heads, values = int(config["linear_num_key_heads"]), int(config["linear_num_value_heads"])
        ratio = values // heads
        return cls(
            heads, int(config["linear_key_head_dim"]), ratio * int(config["linear_value_head_dim"]), ratio
        )


def by_config(trained: str, hub: str, layouts: Layouts) -> Rule:
    """Layout changes with sizes from the config."""
    return Rule(Pattern(trained), Pattern(hub), layouts)


def gated(config: Config) -> Grouped:
    """QKV with a gate for every query."""
    plain = qkv_layout(config)
    return Grouped(plain.groups, (2 * plain.parts[0], *plain.parts[1:]))


def gates_last(config: Config) -> tuple[Grouped, Gates]:
    """QKV with all gates of a group after all of its queries."""
    plain = qkv_layout(config)
    queries, head_dim, _ = plain.parts
    return gated(config), Gates(plain.groups, queries // head_dim, head_dim)


def qkvz(sizes: Sizes) -> Grouped:
    return Grouped(sizes.heads, (sizes.key, sizes.key, sizes.value, sizes.value))


def ba(sizes: Sizes) -> Grouped:
    return Grouped(sizes.heads, (sizes.ratio, sizes.ratio))


def whole_qkv(sizes: Sizes) -> Grouped:
    """All queries, all keys, all values."""
    return Grouped(1, tuple(sizes.heads * rows for rows in (sizes.key, sizes.key, sizes.value)))


MOE = MLP_NORM + MLP + experts("mlp") + shared_experts("shared_expert")
DELTA_NET = (
    Same(A + "in_proj.layer_norm_weight", M + "input_layernorm.weight"),
    Same(A + "A_log", H + "A_log"),
    Same(A + "dt_bias", H + "dt_bias"),
    Same(A + "out_proj.weight", H + "out_proj.weight"),
)
MTP_ENDS = (
    Same("mtp.layers.0.enorm.weight", "mtp.pre_fc_norm_embedding.weight"),
    Same("mtp.layers.0.hnorm.weight", "mtp.pre_fc_norm_hidden.weight"),
    Same("mtp.layers.0.eh_proj.weight", "mtp.fc.weight"),
    Same("mtp.layers.0.final_layernorm.weight", "mtp.norm.weight"),
)

NATIVE = (
    by_config(*QKV_NAMES, gates_last),
    by_config(
        A + "in_proj.weight.{query,key,value,z}",
        H + "in_proj_qkvz.weight",
        lambda config: (Turned(qkvz(Sizes.of(config))),),
    ),
    by_config(
        A + "in_proj.weight.{beta,alpha}",
        H + "in_proj_ba.weight",
        lambda config: (Turned(ba(Sizes.of(config))),),
    ),
    by_config(
        A + "conv1d.weight.{query,key,value}",
        H + "conv1d.weight",
        lambda config: (Turned(whole_qkv(Sizes.of(config))),),
    ),
    ZeroCentered(A + "out_norm.weight", H + "norm.weight"),
)
MCORE_BRIDGE = (
    by_config(*QKV_NAMES, lambda config: (gated(config),)),
    by_config(
        A + "in_proj.weight",
        H + "in_proj_{qkvz,ba}.weight",
        lambda config: (Grouped(Sizes.of(config).heads, in_proj(Sizes.of(config))),),
    ),
    by_config(
        A + "conv1d.weight",
        H + "conv1d.weight",
        lambda config: (Ungrouped(Sizes.of(config).heads, qkvz(Sizes.of(config)).parts[:3]),),
    ),
    Same(A + "out_norm.weight", H + "norm.weight"),
)


def in_proj(sizes: Sizes) -> tuple[int, int]:
    """Rows for each key head: of [q k v z], of [b a]."""
    return sum(qkvz(sizes).parts), sum(ba(sizes).parts)


def in_layout(name: str, own: tuple[Rule, ...]) -> Family:
    """The family in one layout, MTP layer included: it is one of gated attention, under names of its own on the Hub."""
    layer = own + ATTENTION + QK_NORM + DELTA_NET + MOE
    return Family(name, ENDS + layer + MTP_ENDS + mtp_layers(layer, "mtp.layers.{layer}."))


# Without a mark the gates' order is not known; the plain QKV of ATTENTION does not fit then, and says so.
QWEN3_NEXT = Family(
    "Qwen3-Next",
    ENDS + ATTENTION + QK_NORM + DELTA_NET + MOE,
    variants=(
        (Pattern(A + "in_proj.weight.query"), in_layout("Qwen3-Next (native)", NATIVE)),
        (Pattern(A + "in_proj.weight"), in_layout("Qwen3-Next (mcore-bridge)", MCORE_BRIDGE)),
    ),
)

HYBRID = {"qwen3_next": QWEN3_NEXT}
