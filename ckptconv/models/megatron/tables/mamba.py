"""Models with Mamba-2 layers: Nemotron-H, whose layers are each one block with one norm, and Falcon-H1.

torch_dist stores the parts of in_proj and conv1d as tensors of their own (megatron/core/ssm/mamba_mixer.py,
MambaMixer.sharded_state_dict); joined in that order they are the Hub's. The parts in rank files get the same names
(ckptconv/backends/megatron/mamba.py).
Sources: Megatron-Bridge, nemotronh/nemotron_h_bridge.py and falcon_h1/falconh1_bridge.py.
"""

from __future__ import annotations

from typing import NamedTuple

from ckptconv.models.family import QKV, Config, Family, GateUp, Rule, Same, Up, Vocab
from ckptconv.models.megatron.composed import ByConfig
from ckptconv.models.megatron.listed import proven
from ckptconv.models.megatron.tables.parts import L
from ckptconv.models.nested import text_of
from ckptconv.models.pattern import Pattern
from ckptconv.models.rules import Grouped, Turned

MOST_MTP = 64  # models have one or two; config.json may state any number


class Sizes(NamedTuple):
    """Rows of a Mamba-2 layer: of z and x each, of B and C each, of dt."""

    inner: int
    state: int
    heads: int

    @classmethod
    def of(cls, config: Config) -> Sizes:
        """Read the sizes by Nemotron-H's keys or by Falcon-H1's."""
        text = text_of(config)
        if "mamba_num_heads" in text:
            heads, groups = int(text["mamba_num_heads"]), int(text["n_groups"])
            return cls(heads * int(text["mamba_head_dim"]), groups * int(text["ssm_state_size"]), heads)
        heads, groups = int(text["mamba_n_heads"]), int(text["mamba_n_groups"])
        return cls(int(text["mamba_d_ssm"]), groups * int(text["mamba_d_state"]), heads)


def in_proj(config: Config) -> tuple[Turned]:
    """Return the layout of in_proj: z, x, B, C and dt, one after the other."""
    inner, state, heads = Sizes.of(config)
    return (Turned(Grouped(1, (inner, inner, state, state, heads))),)


def conv1d(config: Config) -> tuple[Turned]:
    """Return the layout of conv1d: x, B and C, one after the other."""
    inner, state, _ = Sizes.of(config)
    return (Turned(Grouped(1, (inner, state, state))),)


def mixer(trained: str, hub: str) -> tuple[Rule, ...]:
    """Return the lines of a Mamba-2 layer. trained, hub: the prefixes of both sides."""
    parts = ("A_log", "D", "dt_bias", "norm.weight", "out_proj.weight")
    return (
        *(Same(trained + part, hub + part) for part in parts),
        Rule(Pattern(trained + "in_proj.weight.{z,x,B,C,dt}"), Pattern(hub + "in_proj.weight"), in_proj),
        Same(trained + "in_proj.weight", hub + "in_proj.weight"),  # of an adapter
        Rule(Pattern(trained + "conv1d.weight.{x,B,C}"), Pattern(hub + "conv1d.weight"), conv1d),
        Rule(Pattern(trained + "conv1d.bias.{x,B,C}"), Pattern(hub + "conv1d.bias"), conv1d),
    )


B = "backbone.layers.{layer}."
NORM_NAMES = (
    "mixer.in_proj.layer_norm_weight",
    "mlp.linear_fc1.layer_norm_weight",
    "self_attention.linear_qkv.layer_norm_weight",
    "pre_mlp_layernorm.weight",
    "input_layernorm.weight",
    "norm.weight",
)
NEMOTRON_H_ENDS = (
    Vocab("embedding.word_embeddings.weight", "backbone.embeddings.weight"),
    Same("decoder.final_norm.weight", "backbone.norm_f.weight"),
    Same("decoder.final_layernorm.weight", "backbone.norm_f.weight"),
    Vocab("output_layer.weight", "lm_head.weight", instead="score.weight"),
)


def nemotron_h_layer(trained: str, hub: str) -> tuple[Rule, ...]:
    """Return the lines of a layer of any kind. trained, hub: the prefixes of both sides."""
    return (
        *(Same(trained + norm, hub + "norm.weight") for norm in NORM_NAMES),
        *mixer(trained + "mixer.", hub + "mixer."),
        QKV(trained + "self_attention.linear_qkv.{what}", hub + "mixer.{q,k,v}_proj.{what}"),
        Same(trained + "self_attention.linear_proj.{what}", hub + "mixer.o_proj.{what}"),
        Up(trained + "mlp.linear_fc1.{what}", hub + "mixer.up_proj.{what}"),
        Same(trained + "mlp.linear_fc2.{what}", hub + "mixer.down_proj.{what}"),
        Same(trained + "mlp.router.weight", hub + "mixer.gate.weight"),
        Same(trained + "mlp.router.expert_bias", hub + "mixer.gate.e_score_correction_bias"),
        Same(trained + "mlp.{latent}_latent_proj.weight", hub + "mixer.{latent}_latent_proj.weight"),
        Up(trained + "mlp.experts.{expert}.linear_fc1.weight", hub + "mixer.experts.{expert}.up_proj.weight"),
        Same(
            trained + "mlp.experts.{expert}.linear_fc2.weight",
            hub + "mixer.experts.{expert}.down_proj.weight",
        ),
        Up(trained + "mlp.shared_experts.linear_fc1.weight", hub + "mixer.shared_experts.up_proj.weight"),
        Same(trained + "mlp.shared_experts.linear_fc2.weight", hub + "mixer.shared_experts.down_proj.weight"),
    )


def nemotron_h_mtp(config: Config) -> tuple[Rule, ...]:
    """Return the lines of the MTP layers: each has several layers, which the Hub numbers in a row over all of them."""
    pattern = config.get("mtp_hybrid_override_pattern") or config.get("mtp_layers_block_type") or ()
    rules: list[Rule] = []
    for outer in range(min(int(config.get("num_nextn_predict_layers") or 0), MOST_MTP)):
        trained, first = f"mtp.layers.{outer}.", outer * len(pattern)
        rules += [
            Same(f"{trained}{n}.weight", f"mtp.layers.{first}.{n}.weight")
            for n in ("enorm", "hnorm", "eh_proj")
        ]
        norm = "final_layernorm.weight"
        rules.append(Same(trained + norm, f"mtp.layers.{first + len(pattern) - 1}.{norm}"))
        for inner in range(len(pattern)):
            for block in ("mtp_model_layer", "transformer_layer"):
                rules += nemotron_h_layer(f"{trained}{block}.layers.{inner}.", f"mtp.layers.{first + inner}.")
    return tuple(rules)


NEMOTRON_H = ByConfig(
    "Nemotron-H",
    lambda config: Family("Nemotron-H", NEMOTRON_H_ENDS + nemotron_h_layer(L, B) + nemotron_h_mtp(config)),
)
M = "model.layers.{layer}."
FALCON_H1 = Family(
    "Falcon-H1",
    (
        Vocab("embedding.word_embeddings.weight", "model.embed_tokens.weight"),
        Same("decoder.final_norm.weight", "model.final_layernorm.weight"),
        Vocab("output_layer.weight", "lm_head.weight", instead="score.weight"),
        Same(L + "norm.weight", M + "input_layernorm.weight"),
        *mixer(L + "mamba_mixer.", M + "mamba."),
        QKV(L + "self_attention.linear_qkv.{what}", M + "self_attn.{q,k,v}_proj.{what}"),
        Same(L + "self_attention.linear_proj.{what}", M + "self_attn.o_proj.{what}"),
        Same(L + "mlp.linear_fc1.layer_norm_weight", M + "pre_ff_layernorm.weight"),
        GateUp(L + "mlp.linear_fc1.weight", M + "feed_forward.{gate,up}_proj.weight"),
        Same(L + "mlp.linear_fc2.weight", M + "feed_forward.down_proj.weight"),
    ),
)

MAMBA = {
    "nemotron_h": proven("Nemotron-H / Nemotron 3", NEMOTRON_H, "Megatron-Bridge"),
    "falcon_h1": proven("Falcon-H1", FALCON_H1, "Megatron-Bridge"),
}
