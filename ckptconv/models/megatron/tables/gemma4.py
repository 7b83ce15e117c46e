"""Gemma 4: layers with heads of two sizes, layers without values or without keys of their own, and per-layer embeddings.

A layer with full attention may use its keys as values, and the last layers may use an earlier layer's keys and values.
Megatron-Bridge stores rows for them that its attention never reads; mcore-bridge stores none. The names of the norms tell
the trainers apart.
Sources: Megatron-Bridge, gemma/gemma4_bridge.py and gemma/modeling_gemma4.py; mcore-bridge, model/mm_gpts/gemma4.py.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace

from ckptconv.models.family import Config, Family, GateUp, LeftOut, Rule, Same, Vocab
from ckptconv.models.megatron.composed import ByConfig
from ckptconv.models.megatron.listed import proven
from ckptconv.models.megatron.tables.parts import MLP, L, M, renamed, stacked_experts
from ckptconv.models.nested import text_of
from ckptconv.models.pattern import Pattern
from ckptconv.models.rules import Grouped

MOST_LAYERS = 1024
NO_VALUES = "this layer uses its keys as values, and never reads these rows"
SHARED_KEYS = "this layer uses an earlier layer's keys and values, and never reads these rows"


def heads(config: Config, layer: int) -> tuple[int, int, int]:
    """Return a layer's query heads, KV heads and head size."""
    full = config["layer_types"][layer] == "full_attention"
    own = (config.get("per_layer_config") or {}).get(str(layer), {})  # as transformers 5.23 writes it
    groups = int(own.get("num_key_value_heads") or config["num_key_value_heads"])
    if full and config.get("attention_k_eq_v"):
        groups = int(config.get("num_global_key_value_heads") or groups)
    head_dim = own.get("head_dim") or (config.get("global_head_dim") if full else None) or config["head_dim"]
    return int(config["num_attention_heads"]), groups, int(head_dim)


def has(config: Config, layer: int) -> str:
    """Return which of queries, keys and values the Hub stores for a layer: "q", "qk" or "qkv"."""
    shared = int(config.get("num_kv_shared_layers") or 0)
    if shared and layer >= int(config["num_hidden_layers"]) - shared:
        return "q"
    full = config["layer_types"][layer] == "full_attention"
    return "qk" if full and config.get("attention_k_eq_v") else "qkv"


def attention(config: Config, layer: int, trained: str, every_part: bool) -> Iterator[Rule]:
    """Yield the lines of a layer's attention.

    Args:
        config: the language model's config.
        layer: the layer's number in the whole model.
        trained: Megatron's prefix of the layer's attention.
        every_part: whether Megatron has rows for keys and values that the Hub does not have.
    """
    (queries, groups, head_dim), kept = heads(config, layer), has(config, layer)
    parts = (queries // groups * head_dim, head_dim, head_dim)[: 3 if every_part else len(kept)]
    hub = f"model.layers.{layer}."
    letters = f"{{{','.join(kept)}}}" if len(kept) > 1 else kept
    qkv = Rule(
        Pattern(trained + "linear_qkv.weight"),
        Pattern(f"{hub}self_attn.{letters}_proj.weight"),
        lambda config: (Grouped(groups, parts),),
    )
    unread = {"q": SHARED_KEYS, "qk": NO_VALUES, "qkv": ""}[kept]
    yield replace(qkv, rest=unread if every_part else "")
    yield Same(trained + "linear_qkv.layer_norm_weight", hub + "input_layernorm.weight")
    yield Same(trained + "linear_proj.weight", hub + "self_attn.o_proj.weight")
    yield Same(trained + "linear_proj.post_layernorm.weight", hub + "post_attention_layernorm.weight")
    yield Same(trained + "q_layernorm.weight", hub + "self_attn.q_norm.weight")
    if kept == "q":
        yield LeftOut(trained + "k_layernorm.weight", SHARED_KEYS)
    else:
        yield Same(trained + "k_layernorm.weight", hub + "self_attn.k_norm.weight")


def every_attention(config: Config, every_part: bool) -> Iterator[Rule]:
    """Yield the lines of every layer's attention.

    Megatron-Bridge's torch_dist files count the layers of each kind on their own, under a name for each kind
    (gemma/modeling_gemma4.py, sharded_state_dict).
    """
    counts = {"sliding": 0, "global": 0}
    layers = min(int(config["num_hidden_layers"]), len(config["layer_types"]), MOST_LAYERS)
    for layer in range(layers):
        kind = "global" if config["layer_types"][layer] == "full_attention" else "sliding"
        if every_part:
            number = counts[kind]
            yield from attention(config, layer, f"decoder.layers.{number}.self_attention_{kind}.", True)
            counts[kind] += 1
        yield from attention(config, layer, f"decoder.layers.{layer}.self_attention.", every_part)


ENDS = (
    Vocab("embedding.word_embeddings.weight", "model.embed_tokens.weight"),
    Same("decoder.final_layernorm.weight", "model.norm.weight"),
    Vocab("output_layer.weight", "lm_head.weight", instead="score.weight"),
)
LAYER = (
    *MLP,
    Same(L + "layer_scalar", M + "layer_scalar"),
    *(Same(L + f"{n}.weight", M + f"{n}.weight") for n in ("per_layer_input_gate", "per_layer_projection")),
    Same(L + "post_per_layer_input_norm.weight", M + "post_per_layer_input_norm.weight"),
)
PER_LAYER = ("embed_tokens_per_layer", "per_layer_model_projection", "per_layer_projection_norm")


def norms(**named: str) -> tuple[Rule, ...]:
    """Return the lines of norms. named: the Hub's name -> Megatron's, of a weight inside the layer."""
    return tuple(Same(L + trained, f"{M}{hub}.weight") for hub, trained in named.items())


def experts(block: str, scales: str) -> tuple[Rule, ...]:
    """Return the lines of the routed experts.

    Args:
        block: Megatron's module of the router and the experts, inside the layer.
        scales: the module that has the router's scales.
    """
    stacked = renamed(stacked_experts("mlp"), "mlp.experts", "experts")
    return (
        Same(f"{L}{block}.router.weight", M + "router.proj.weight"),
        *(Same(f"{L}{scales}.{name}", f"{M}router.{name}") for name in ("scale", "per_expert_scale")),
        *(
            replace(rule, trained=Pattern(rule.trained.text.replace("mlp.experts", f"{block}.experts")))
            for rule in stacked
        ),
    )


def per_layer_embedding(trained: str) -> Rule:
    """Return the line of the per-layer embeddings, whose vocabulary may be smaller. trained: Megatron's name."""
    return replace(
        Vocab(trained, "model.embed_tokens_per_layer.weight"),
        rows=lambda config: int(
            text_of(config).get("vocab_size_per_layer_input") or text_of(config)["vocab_size"]
        ),
    )


MEGATRON_BRIDGE_DENSE = (
    per_layer_embedding("per_layer_embedding.weight"),
    Same("per_layer_model_proj.weight", "model.per_layer_model_projection.weight"),
    Same("per_layer_proj_norm.weight", "model.per_layer_projection_norm.weight"),
    *norms(
        input_layernorm="input_layernorm.weight",
        post_attention_layernorm="post_self_attn_layernorm.weight",
        pre_feedforward_layernorm="pre_mlp_layernorm.weight",
        post_feedforward_layernorm="post_mlp_layernorm.weight",
    ),
)
MEGATRON_BRIDGE_MOE = (
    *norms(
        pre_feedforward_layernorm="pre_shared_expert_layernorm.weight",
        pre_feedforward_layernorm_2="pre_mlp_layernorm.weight",
        post_feedforward_layernorm_1="mlp.post_shared_expert_layernorm.weight",
        post_feedforward_layernorm_2="mlp.post_moe_layernorm.weight",
        post_feedforward_layernorm="post_ffn_layernorm.weight",
    ),
    GateUp(L + "mlp.shared_experts.linear_fc1.weight", M + "mlp.{gate,up}_proj.weight"),
    Same(L + "mlp.shared_experts.linear_fc2.weight", M + "mlp.down_proj.weight"),
    *experts("mlp", "mlp.router"),
)
MCORE_BRIDGE = (
    per_layer_embedding("embed_tokens_per_layer.weight"),
    *(Same(f"{name}.weight", f"model.{name}.weight") for name in PER_LAYER[1:]),
    *norms(
        post_attention_layernorm="post_attention_layernorm.weight",
        pre_feedforward_layernorm="mlp.linear_fc1.layer_norm_weight",
        pre_feedforward_layernorm_2="experts_mlp.pre_feedforward_layernorm_2.weight",
        post_feedforward_layernorm_1="post_feedforward_layernorm_1.weight",
        post_feedforward_layernorm_2="post_feedforward_layernorm_2.weight",
        post_feedforward_layernorm="post_feedforward_layernorm.weight",
    ),
    *experts("experts_mlp", "experts_mlp"),
)


def in_layout(config: Config, trainer: str, rules: tuple[Rule, ...], every_part: bool) -> Family:
    """Return the table in one trainer's layout."""
    return Family(f"Gemma 4 ({trainer})", tuple(every_attention(config, every_part)) + rules + ENDS + LAYER)


def table(config: Config) -> Family:
    """Return the table for a config; without a trainer's own norms, QKV is refused."""
    return Family(
        "Gemma 4",
        ENDS + LAYER,
        (
            (
                Pattern(L + "post_attention_layernorm.weight"),
                in_layout(config, "mcore-bridge", MCORE_BRIDGE, False),
            ),
            (
                Pattern(L + "post_self_attn_layernorm.weight"),
                in_layout(config, "Megatron-Bridge", MEGATRON_BRIDGE_DENSE, True),
            ),
            (
                Pattern(L + "post_ffn_layernorm.weight"),
                in_layout(config, "Megatron-Bridge", MEGATRON_BRIDGE_MOE, True),
            ),
        ),
    )


GEMMA4_TEXT = ByConfig("Gemma 4", table)
GEMMA4 = {
    "gemma4_text": proven("Gemma 4 (text)", GEMMA4_TEXT, "Megatron-Bridge"),
}
