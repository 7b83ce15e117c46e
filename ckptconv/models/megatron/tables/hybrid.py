"""Gated delta nets between layers of gated attention: Qwen3-Next and Qwen3.5, in the layouts that their trainers have.

native (Megatron-Core, Megatron-Bridge): each part of in_proj and conv1d is a tensor of its own, the delta net's norm is
stored as its difference from one, and the gates of a KV group follow all of its queries.
mcore-bridge: one in_proj and one conv1d with rows per key head, the norm as on the Hub, each gate after its query.
mcore-bridge with USE_MCORE_GDN=0: the Hub's own module as self_attention; each gate after its query.
slime, miles: the Hub's own module as self_attention.linear_attn; gates after the queries.
The names of the delta net tell them apart.
Sources: megatron/core/ssm/gated_delta_net.py; Megatron-Bridge, qwen/qwen3_next_bridge.py and qwen/qwen35_bridge.py;
mcore-bridge, model/gpts/qwen3_next.py and qwen3_next_gdn.py; slime, megatron_to_hf/qwen3_next.py and qwen3_5.py.
"""

from __future__ import annotations

from dataclasses import replace
from typing import NamedTuple

from ckptconv.models.family import (
    Changed,
    Config,
    Family,
    Layouts,
    Rule,
    Same,
    ZeroCentered,
    qkv_layout,
)
from ckptconv.models.megatron.listed import proven
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
    stacked_experts,
)
from ckptconv.models.nested import text_of
from ckptconv.models.pattern import Pattern
from ckptconv.models.rules import Gates, Grouped, Halves, Turned, Ungrouped

A, H = L + "self_attention.", M + "linear_attn."
QKV_NAMES = L + "self_attention.linear_qkv.weight", M + "self_attn.{q,k,v}_proj.weight"
MTP_NOTE = (
    "mtp.fc.weight has the halves of its columns in the Hub's order: slime exchanges them when it loads and exports this "
    "model, although Megatron reads [embedding, hidden state] as the Hub's model does"
)


class Sizes(NamedTuple):
    """The sizes of a delta net.

    heads: key heads.
    key: rows of queries, and of keys, per key head.
    value: rows of values, and of z, per key head.
    ratio: rows of beta, and of alpha, per key head: the value heads of a key head.
    """

    heads: int
    key: int
    value: int
    ratio: int

    @classmethod
    def of(cls, config: Config) -> Sizes:
        text = text_of(config)
        heads, values = int(text["linear_num_key_heads"]), int(text["linear_num_value_heads"])
        ratio = values // heads
        return cls(heads, int(text["linear_key_head_dim"]), ratio * int(text["linear_value_head_dim"]), ratio)

    @property
    def qkvz(self) -> tuple[int, ...]:
        return (self.key, self.key, self.value, self.value)

    @property
    def ba(self) -> tuple[int, ...]:
        return (self.ratio, self.ratio)

    @property
    def all_qkv(self) -> Grouped:
        """Return the layout all queries, all keys, all values."""
        return Grouped(1, tuple(self.heads * rows for rows in self.qkvz[:3]))


def by_config(trained: str, hub: str, layouts: Layouts) -> Rule:
    """A tensor with layout changes whose sizes are in the config."""
    return Rule(Pattern(trained), Pattern(hub), layouts)


def gated(config: Config) -> Grouped:
    """Return the layout of QKV with a gate for every query."""
    plain = qkv_layout(text_of(config))
    return Grouped(plain.groups, (2 * plain.parts[0], *plain.parts[1:]))


def gates_last(config: Config) -> tuple[Grouped, Gates]:
    """Return the layout of QKV with all gates of a group after all of its queries."""
    plain = qkv_layout(text_of(config))
    queries, head_dim, _ = plain.parts
    return gated(config), Gates(plain.groups, queries // head_dim, head_dim)


GATES_LAST = by_config(*QKV_NAMES, gates_last)
GATES_BESIDE = by_config(*QKV_NAMES, lambda config: (gated(config),))
DELTA_NET = (
    Same(A + "in_proj.layer_norm_weight", M + "input_layernorm.weight"),
    Same(A + "A_log", H + "A_log"),
    Same(A + "dt_bias", H + "dt_bias"),
    Same(A + "out_proj.weight", H + "out_proj.weight"),
)
NATIVE = (
    GATES_LAST,
    by_config(
        A + "conv1d.weight.{query,key,value}",
        H + "conv1d.weight",
        lambda config: (Turned(Sizes.of(config).all_qkv),),
    ),
    ZeroCentered(A + "out_norm.weight", H + "norm.weight"),
)
NATIVE_NEXT = (
    by_config(
        A + "in_proj.weight.{query,key,value,z}",
        H + "in_proj_qkvz.weight",
        lambda config: (Turned(Grouped(Sizes.of(config).heads, Sizes.of(config).qkvz)),),
    ),
    by_config(
        A + "in_proj.weight.{beta,alpha}",
        H + "in_proj_ba.weight",
        lambda config: (Turned(Grouped(Sizes.of(config).heads, Sizes.of(config).ba)),),
    ),
)
NATIVE_3_5 = (
    by_config(
        A + "in_proj.weight.{query,key,value}",
        H + "in_proj_qkv.weight",
        lambda config: (Turned(Sizes.of(config).all_qkv),),
    ),
    Same(A + "in_proj.weight.z", H + "in_proj_z.weight"),
    Same(A + "in_proj.weight.beta", H + "in_proj_b.weight"),
    Same(A + "in_proj.weight.alpha", H + "in_proj_a.weight"),
)
MCORE_BRIDGE = (
    GATES_BESIDE,
    by_config(
        A + "conv1d.weight",
        H + "conv1d.weight",
        lambda config: (Ungrouped(Sizes.of(config).heads, Sizes.of(config).qkvz[:3]),),
    ),
    Same(A + "out_norm.weight", H + "norm.weight"),
)


def next_in_proj(config: Config) -> tuple[Grouped]:
    """Return the layout of mcore-bridge's in_proj for Qwen3-Next: [q k v z] and [b a] for each key head."""
    sizes = Sizes.of(config)
    return (Grouped(sizes.heads, (sum(sizes.qkvz), sum(sizes.ba))),)


def in_proj_3_5(config: Config) -> tuple[Ungrouped, Grouped]:
    """Return the layout of mcore-bridge's in_proj for Qwen3.5: flat over heads on the Hub, q, k and v in one tensor."""
    sizes = Sizes.of(config)
    rows = tuple(sizes.heads * part for part in (sum(sizes.qkvz[:3]), sizes.value, *sizes.ba))
    return Ungrouped(sizes.heads, sizes.qkvz + sizes.ba), Grouped(1, rows)


def hubs_own(prefix: str, parts: tuple[str, ...]) -> tuple[Rule, ...]:
    """Return the lines of the Hub's own delta net inside. prefix: Megatron's. parts: the projections of its input."""
    names = ("A_log", "dt_bias", "conv1d.weight", "norm.weight", "out_proj.weight")
    return tuple(Same(prefix + name, H + name) for name in (*names, *(f"{part}.weight" for part in parts)))


MTP_ENDS = (
    Same("mtp.layers.0.enorm.weight", "mtp.pre_fc_norm_embedding.weight"),
    Same("mtp.layers.0.hnorm.weight", "mtp.pre_fc_norm_hidden.weight"),
    Same("mtp.layers.0.eh_proj.weight", "mtp.fc.weight"),
    Same("mtp.layers.0.final_layernorm.weight", "mtp.norm.weight"),
)
SLIME_MTP = replace(Changed("mtp.layers.0.eh_proj.weight", "mtp.fc.weight", Halves(1)), note=MTP_NOTE)


class Kind(NamedTuple):
    """A model with delta nets. parts: the Hub's projections of a delta net's input. native, one_in_proj: their rules.

    mlp: the rules of its MLP or experts. mtp_mlp: those of its MTP layer. slime_mtp: slime's own rules for MTP.
    """

    name: str
    parts: tuple[str, ...]
    native: tuple[Rule, ...]
    one_in_proj: Layouts
    mlp: tuple[Rule, ...]
    mtp_mlp: tuple[Rule, ...]
    slime_mtp: tuple[Rule, ...] = ()

    def in_layout(self, trainer: str, own: tuple[Rule, ...], mtp: tuple[Rule, ...] = MTP_ENDS) -> Family:
        """Return the family in one trainer's layout. Its MTP layer has gated attention and names of its own."""
        layer = own + ATTENTION + QK_NORM + DELTA_NET
        mtp_layer = mtp_layers(layer + self.mtp_mlp, "mtp.layers.{layer}.")
        return Family(f"{self.name} ({trainer})", ENDS + layer + self.mlp + mtp + mtp_layer)

    def family(self) -> Family:
        """Return the family. Without a delta net's names its gates' order is unknown, and QKV is refused."""
        one = "{" + ",".join(part.removeprefix("in_proj_") for part in self.parts) + "}"
        whole = by_config(A + "in_proj.weight", H + f"in_proj_{one}.weight", self.one_in_proj)
        inside = (
            *hubs_own(A + "linear_attn.", self.parts),
            Same(A + "input_layernorm.weight", M + "input_layernorm.weight"),
            GATES_LAST,
        )
        module = (*hubs_own(A, self.parts), GATES_BESIDE)
        variants = (
            (A + "in_proj.weight.query", self.in_layout("native", self.native + NATIVE)),
            (A + "in_proj.weight", self.in_layout("mcore-bridge", (whole, *MCORE_BRIDGE))),
            (A + "linear_attn.A_log", self.in_layout("slime", inside, (*self.slime_mtp, *MTP_ENDS))),
            (A + self.parts[0] + ".weight", self.in_layout("mcore-bridge, the Hub's module", module)),
        )
        rules = ENDS + ATTENTION + QK_NORM + DELTA_NET + self.mlp
        return Family(self.name, rules, tuple((Pattern(mark), one) for mark, one in variants))


SHARED = shared_experts("shared_expert")
ROUTED = MLP_NORM + MLP + experts("mlp") + SHARED
NEXT_PARTS, PARTS_3_5 = ("in_proj_qkvz", "in_proj_ba"), ("in_proj_qkv", "in_proj_z", "in_proj_b", "in_proj_a")
QWEN3_NEXT = Kind("Qwen3-Next", NEXT_PARTS, NATIVE_NEXT, next_in_proj, ROUTED, ROUTED, (SLIME_MTP,)).family()
QWEN3_5 = Kind("Qwen3.5", PARTS_3_5, NATIVE_3_5, in_proj_3_5, MLP_NORM + MLP, MLP_NORM + MLP).family()
# The Hub's experts of a layer are one tensor; those of the MTP layer are one tensor per expert, as Qwen3.5 was published.
FUSED = stacked_experts("mlp") + ROUTED
QWEN3_5_MOE = Kind("Qwen3.5-MoE", PARTS_3_5, NATIVE_3_5, in_proj_3_5, FUSED, ROUTED).family()

HYBRID = {
    "qwen3_next": proven("Qwen3-Next", QWEN3_NEXT, "Megatron-Bridge", "mcore-bridge"),
    "qwen3_5_text": proven("Qwen3.5 (text)", QWEN3_5, "Megatron-Bridge"),
    "qwen3_5_moe_text": proven("Qwen3.5-MoE (text)", QWEN3_5_MOE, "Megatron-Bridge"),
}
