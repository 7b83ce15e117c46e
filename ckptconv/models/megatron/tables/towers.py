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


RADIO_HEADS, RADIO_HIDDEN = 16, 1280  # of the published ViT-H, which the models' configs do not state


def radio_qkv(config: Config) -> tuple[Ungrouped]:
    """Return the layout of RADIO's QKV; see `vision_qkv`."""
    vision = config.get("vision_config") or {}
    heads = int(vision.get("num_heads") or RADIO_HEADS)
    dim = int(vision.get("hidden_size") or RADIO_HIDDEN) // heads
    return (Ungrouped(heads, (dim, dim, dim)),)


def nemotron_modules(prefix: str) -> tuple[Rule, ...]:
    """Return the lines of what Nemotron VL and Omni have around the language model. prefix: Megatron's, of all of it.

    The tower is RADIO, built of Megatron-Core's layers. Source: Megatron-Bridge, nemotron_vl/nemotron_vl_bridge.py and
    nemotron_omni/nemotron_omni_bridge.py.
    """
    tower, hub = f"{prefix}vision_model.", "vision_model.radio_model.model."
    block, patches = f"{hub}blocks.{{layer}}.", f"{hub}patch_generator."
    qkv = Pattern(tower + L + "self_attention.linear_qkv.{what}"), Pattern(block + "attn.qkv.{what}")
    vision, sound = f"{prefix}vision_projection.encoder.", f"{prefix}sound_projection.encoder."
    return (
        Same(tower + "class_token", patches + "cls_token.token"),
        Same(tower + "position_embeddings", patches + "pos_embed"),
        Same(tower + "embedder.weight", patches + "embedder.weight"),
        Same(tower + "video_embedder.weight", patches + "video_embedder.weight"),
        Same(tower + L + "self_attention.linear_qkv.layer_norm_{what}", block + "norm1.{what}"),
        Rule(*qkv, radio_qkv),
        Same(tower + L + "self_attention.linear_proj.{what}", block + "attn.proj.{what}"),
        Same(tower + L + "mlp.linear_fc1.layer_norm_{what}", block + "norm2.{what}"),
        Up(tower + L + "mlp.linear_fc1.{what}", block + "mlp.fc1.{what}"),
        Same(tower + L + "mlp.linear_fc2.{what}", block + "mlp.fc2.{what}"),
        Same(vision + "linear_fc1.layer_norm_weight", "mlp1.0.weight"),
        Up(vision + "linear_fc1.weight", "mlp1.1.weight"),
        Same(vision + "linear_fc2.weight", "mlp1.3.weight"),
        Same(sound + "linear_fc1.layer_norm_weight", "sound_projection.norm.weight"),
        Up(sound + "linear_fc1.weight", "sound_projection.linear1.weight"),
        Same(sound + "linear_fc2.weight", "sound_projection.linear2.weight"),
        Same(f"{prefix}sound_model.encoder.{{rest}}", "sound_encoder.encoder.{rest}"),
    )
