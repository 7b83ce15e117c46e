"""Models that see: a language model of another table under `language_model.`, and a vision tower.

Megatron-Bridge and mcore-bridge keep the tower as the Hub has it, under a prefix of their own; mbridge builds Qwen2.5-VL's
of Megatron-Core's layers. The tower's prefix tells them apart.
Sources: Megatron-Bridge's models/qwen_vl and gemma_vl, mcore-bridge's model/mm_gpts, mbridge's models/qwen2_5_vl.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

from ckptconv.models.family import Changed, Config, Family, GateUp, Rule, Same, within
from ckptconv.models.megatron.tables.dense import GEMMA3, LLAMA, QWEN3
from ckptconv.models.megatron.tables.parts import L, M, experts
from ckptconv.models.pattern import Pattern
from ckptconv.models.rules import Swap, Turned, Ungrouped, Unstack

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
    """A tower with the Hub's names under a prefix on each side."""
    return tuple(Same(trained + name, hub + name) for name in modules)


def vision_qkv(config: Config) -> tuple[Ungrouped]:
    """[q, k, v] for every head; on the Hub all queries, all keys, all values in one tensor."""
    vision = config["vision_config"]
    heads = int(vision["num_heads"])
    return (Ungrouped(heads, (int(vision["hidden_size"]) // heads,) * 3),)


def mcore_attention(hub: str) -> tuple[Rule, ...]:
    """What the blocks of mbridge's towers share. hub: the tower's prefix on the Hub."""
    block = hub + "blocks.{layer}."
    qkv = Rule(
        Pattern(V + L + "self_attention.linear_qkv.{what}"), Pattern(block + "attn.qkv.{what}"), vision_qkv
    )
    return (
        Same(V + "patch_embed.proj.{what}", hub + "patch_embed.proj.{what}"),
        Same(V + L + "self_attention.linear_qkv.layer_norm_weight", block + "norm1.weight"),
        Same(V + L + "self_attention.linear_qkv.layer_norm_bias", block + "norm1.bias"),
        qkv,
        Same(V + L + "self_attention.linear_proj.{what}", block + "attn.proj.{what}"),
        Same(V + L + "mlp.linear_fc1.layer_norm_weight", block + "norm2.weight"),
        Same(V + L + "mlp.linear_fc1.layer_norm_bias", block + "norm2.bias"),
    )


V, B, N = "vision_model.", "visual.blocks.{layer}.", "model.visual.blocks.{layer}."
QWEN2_5_MCORE_TOWER = (
    *mcore_attention("visual."),
    GateUp(V + L + "mlp.linear_fc1.{what}", B + "mlp.{gate,up}_proj.{what}"),
    Same(V + L + "mlp.linear_fc2.{what}", B + "mlp.down_proj.{what}"),
    Same(V + "decoder.final_layernorm.weight", "visual.merger.ln_q.weight"),
    replace(
        Same(V + "projection.encoder.linear_fc1.{what}", "visual.merger.mlp.0.{what}"), if_cut=MERGER_NOTE
    ),
    Same(V + "projection.encoder.linear_fc2.{what}", "visual.merger.mlp.2.{what}"),
)
DEEPSTACK = "deepstack_merger_list.{index}."
QWEN3_MCORE_TOWER = (
    *mcore_attention("model.visual."),
    Same(V + "pos_embed.weight", "model.visual.pos_embed.weight"),
    Same(V + L + "mlp.{linear}.{what}", N + "mlp.{linear}.{what}"),
    Same(V + "merger.patch_norm.{what}", "model.visual.merger.norm.{what}"),
    Same(V + "merger.{linear}.{what}", "model.visual.merger.{linear}.{what}"),
    Same(V + "decoder." + DEEPSTACK + "patch_norm.{what}", "model.visual." + DEEPSTACK + "norm.{what}"),
    Same(V + "decoder." + DEEPSTACK + "{linear}.{what}", "model.visual." + DEEPSTACK + "{linear}.{what}"),
)
# The Hub keeps Qwen3-VL's experts of a layer in one tensor, (in, out) each.
FUSED_EXPERTS = (
    Changed(
        L + "mlp.experts.{expert}.linear_fc1.weight",
        M + "mlp.experts.gate_up_proj",
        Turned(Unstack(0)),
        Swap(1, 2),
    ),
    Changed(
        L + "mlp.experts.{expert}.linear_fc2.weight",
        M + "mlp.experts.down_proj",
        Turned(Unstack(0)),
        Swap(1, 2),
    ),
)


def as_published(name: str) -> str:
    """Qwen2-VL and Qwen2.5-VL: the language model has the names of a model of its own."""
    return name


def nested(name: str) -> str:
    """Qwen3-VL: it is model.language_model."""
    return name.replace("model.", "model.language_model.", 1) if name.startswith("model.") else name


def gemma(name: str) -> str:
    """Gemma 3: a whole model inside another; its head, where it is not tied, is the outer one's."""
    return f"language_model.{name}" if name.startswith("model.") else name


def seeing(
    name: str,
    text: tuple[Rule, ...],
    hub: Callable[[str], str],
    towers: dict[str, tuple[Rule, ...]],
) -> Family:
    """A family with one variant for each tower: the name that tells it, and its rules."""
    language = within(text, "language_model.", hub)
    families = [(Pattern(mark), Family(name, language + rules)) for mark, rules in towers.items()]
    return Family(name, language, variants=tuple(families))


MCORE_BRIDGE = {"visual.visual.patch_embed.proj.weight": tower("visual.visual.", "visual.")}
QWEN2_VL = seeing("Qwen2-VL", LLAMA.rules, as_published, MCORE_BRIDGE)
QWEN2_5_VL = seeing(
    "Qwen2.5-VL",
    LLAMA.rules,
    as_published,
    MCORE_BRIDGE
    | {
        "visual.patch_embed.proj.weight": tower("visual.", "visual."),
        "vision_model.decoder.final_layernorm.weight": QWEN2_5_MCORE_TOWER,
    },
)
QWEN3_VL_TOWERS = {
    "vision_model.merger.patch_norm.weight": QWEN3_MCORE_TOWER,
    "visual.visual.patch_embed.proj.weight": tower("visual.visual.", "model.visual."),
    "vision_model.patch_embed.proj.weight": tower("vision_model.", "model.visual."),
}
QWEN3_VL = seeing("Qwen3-VL", QWEN3.rules, nested, QWEN3_VL_TOWERS)
QWEN3_VL_MOE = seeing("Qwen3-VL-MoE", FUSED_EXPERTS + QWEN3.rules + experts("mlp"), nested, QWEN3_VL_TOWERS)

SIGLIP_NAMES = "vision_tower.vision_model."
GEMMA3_VL = Family(
    "Gemma 3 (vision)",
    within(GEMMA3.rules, "language_model.", gemma)
    + tower(SIGLIP_NAMES, SIGLIP_NAMES, SIGLIP)
    + (
        Changed(
            "multi_modal_projector.proj.weight",
            "multi_modal_projector.mm_input_projection_weight",
            Swap(0, 1),
        ),
        Same(
            "multi_modal_projector.mm_soft_embed_norm.weight",
            "multi_modal_projector.mm_soft_emb_norm.weight",
        ),
    ),
)

VISION = {
    "qwen2_vl": QWEN2_VL,
    "qwen2_5_vl": QWEN2_5_VL,
    "qwen3_vl": QWEN3_VL,
    "qwen3_vl_moe": QWEN3_VL_MOE,
    "gemma3": GEMMA3_VL,
}
