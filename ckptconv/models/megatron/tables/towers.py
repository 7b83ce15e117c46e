"""Vision towers: those whose modules are listed by name, and those that trainers build of Megatron-Core's layers.

Megatron-Bridge and mcore-bridge keep most towers as the Hub has them, under a prefix of their own. mbridge builds Qwen's
towers of Megatron-Core's layers, and so does Megatron-Bridge for newer models.
Sources: mbridge, models/qwen2_5_vl and models/qwen3_vl; Megatron-Bridge, models/qwen_vl/qwen35_vl_bridge.py and
exaone/exaone45/exaone45_bridge.py.
"""

from __future__ import annotations

from dataclasses import replace

from ckptconv.models.family import Config, GateUp, Rule, Same, Up
from ckptconv.models.megatron.tables.parts import L
from ckptconv.models.pattern import Pattern
from ckptconv.models.rules import Ungrouped

V = "vision_model."
# The modules of the towers, as the Hub names them: Qwen's, and SigLIP as Gemma 3 has it.
QWEN_TOWER = (
    "patch_embed.proj.{what}",
    "pos_embed.{what}",
    "blocks.{block}.{norm}.{what}",
    "blocks.{block}.{part}.{linear}.{what}",
    "merger.{part}.{what}",
    "merger.{part}.{index}.{what}",
    "deepstack_merger_list.{index}.{part}.{what}",
)
SIGLIP = (
    "embeddings.{part}.{what}",
    "encoder.layers.{layer}.{norm}.{what}",
    "encoder.layers.{layer}.{part}.{linear}.{what}",
    "post_layernorm.{what}",
)
MERGER_NOTE = (
    "the vision merger's first layer is written in the order in which Megatron held it; mbridge up to 0.15.1 "
    "permuted its rows when it loaded a model over several TP ranks, so that its own export has them in another order"
)


def tower(trained: str, hub: str, modules: tuple[str, ...] = QWEN_TOWER) -> tuple[Rule, ...]:
    """Return the lines of a tower with the Hub's names inside. trained, hub: the prefixes of both sides."""
    return tuple(Same(trained + name, hub + name) for name in modules)


def vision_qkv(config: Config) -> tuple[Ungrouped]:
    """Return the layout of a tower's QKV: [its queries, k, v] per KV head; on the Hub all queries, all keys, all values."""
    vision = config["vision_config"]
    heads = int(vision["num_heads"])
    groups, head_dim = int(vision.get("num_key_value_heads") or heads), int(vision["hidden_size"]) // heads
    return (Ungrouped(groups, (heads // groups * head_dim, head_dim, head_dim)),)


def mcore_attention(hub: str) -> tuple[Rule, ...]:
    """Return the lines that towers of Megatron-Core's layers share. hub: the tower's prefix on the Hub."""
    block = hub + "blocks.{layer}."
    qkv = Rule(
        Pattern(V + L + "self_attention.linear_qkv.{what}"), Pattern(block + "attn.qkv.{what}"), vision_qkv
    )
    return (
        Same(V + "patch_embed.proj.{what}", hub + "patch_embed.proj.{what}"),
        Same(V + L + "self_attention.linear_qkv.layer_norm_{what}", block + "norm1.{what}"),
        qkv,
        Same(V + L + "self_attention.linear_proj.{what}", block + "attn.proj.{what}"),
        Same(V + L + "mlp.linear_fc1.layer_norm_{what}", block + "norm2.{what}"),
    )


def gated_blocks(hub: str) -> tuple[Rule, ...]:
    """Return the lines of the blocks' gated MLPs. hub: the tower's prefix on the Hub."""
    block = hub + "blocks.{layer}."
    return (
        GateUp(V + L + "mlp.linear_fc1.{what}", block + "mlp.{gate,up}_proj.{what}"),
        Same(V + L + "mlp.linear_fc2.{what}", block + "mlp.down_proj.{what}"),
    )


# The first line of each tells the form; see `Composed.forms`.
QWEN2_5_MCORE_TOWER = (
    Same(V + "decoder.final_layernorm.weight", "visual.merger.ln_q.weight"),
    *mcore_attention("visual."),
    *gated_blocks("visual."),
    replace(
        Same(V + "projection.encoder.linear_fc1.{what}", "visual.merger.mlp.0.{what}"), if_cut=MERGER_NOTE
    ),
    Same(V + "projection.encoder.linear_fc2.{what}", "visual.merger.mlp.2.{what}"),
)
N, DEEPSTACK = "model.visual.blocks.{layer}.", "deepstack_merger_list.{index}."
QWEN3_MCORE_TOWER = (
    Same(V + "merger.patch_norm.{what}", "model.visual.merger.norm.{what}"),
    *mcore_attention("model.visual."),
    Same(V + "pos_embed.weight", "model.visual.pos_embed.weight"),
    Up(V + L + "mlp.linear_fc1.{what}", N + "mlp.linear_fc1.{what}"),
    Same(V + L + "mlp.linear_fc2.{what}", N + "mlp.linear_fc2.{what}"),
    Same(V + "merger.{linear}.{what}", "model.visual.merger.{linear}.{what}"),
    Same(V + "decoder." + DEEPSTACK + "patch_norm.{what}", "model.visual." + DEEPSTACK + "norm.{what}"),
    Same(V + "decoder." + DEEPSTACK + "{linear}.{what}", "model.visual." + DEEPSTACK + "{linear}.{what}"),
)
EXAONE_TOWER = (
    Same(V + "merger.patch_norm.weight", "model.visual.merger.ln_q.weight"),
    *mcore_attention("model.visual."),
    *gated_blocks("model.visual."),
    Same(V + "merger.linear_fc1.{what}", "model.visual.merger.mlp.0.{what}"),
    Same(V + "merger.linear_fc2.{what}", "model.visual.merger.mlp.2.{what}"),
)
