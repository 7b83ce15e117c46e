"""The families in OLMo-core's names.

Facts: olmo_core/nn/hf/convert.py (names), olmo_core/nn/transformer/block.py (where the norms are) and
olmo_core/nn/moe/{mlp,router}.py (what experts are), ai2-olmo-core 3.0.0.
"""

from __future__ import annotations

from collections.abc import Callable

from ckptconv.models.family import Changed, Config, Family, Rule, Same, number_of_experts
from ckptconv.models.nested import text_of
from ckptconv.models.olmo_core.experts import DownProjections, GatedProjections, RouterRows
from ckptconv.models.pattern import Pattern

L, M = "blocks.{layer}.", "model.layers.{layer}."

BODY = (
    Same("embeddings.weight", "model.embed_tokens.weight"),
    Same("lm_head.norm.weight", "model.norm.weight"),
    Same("lm_head.w_out.weight", "lm_head.weight"),
    Same(L + "attention.w_q.{what}", M + "self_attn.q_proj.{what}"),
    Same(L + "attention.w_k.{what}", M + "self_attn.k_proj.{what}"),
    Same(L + "attention.w_v.{what}", M + "self_attn.v_proj.{what}"),
    Same(L + "attention.w_out.{what}", M + "self_attn.o_proj.{what}"),
    Same(L + "attention.q_norm.weight", M + "self_attn.q_norm.weight"),
    Same(L + "attention.k_norm.weight", M + "self_attn.k_norm.weight"),
)
MLP = (
    Same(L + "feed_forward.w1.weight", M + "mlp.gate_proj.weight"),
    Same(L + "feed_forward.w3.weight", M + "mlp.up_proj.weight"),
    Same(L + "feed_forward.w2.weight", M + "mlp.down_proj.weight"),
)
# Norms before attention and MLP, and (reordered, as in OLMo 2) after them.
NORMS = (
    Same(L + "attention_norm.weight", M + "input_layernorm.weight"),
    Same(L + "feed_forward_norm.weight", M + "post_attention_layernorm.weight"),
)
REORDERED = (
    Same(L + "attention_norm.weight", M + "post_attention_layernorm.weight"),
    Same(L + "feed_forward_norm.weight", M + "post_feedforward_layernorm.weight"),
)


def experts(config: Config) -> tuple[Rule, ...]:
    """The router and the experts, which OLMo-core keeps in flat stacks."""
    text = text_of(config)
    count, hidden = number_of_experts(config, "num_experts"), int(text["hidden_size"])
    width = int(text["intermediate_size"])
    gated, one = GatedProjections(count, hidden, width), M + "mlp.experts.{expert}."
    return (
        Changed(L + "feed_forward_moe.router.weight", M + "mlp.gate.weight", RouterRows(count, hidden)),
        _stack("w1", one + "gate_proj.weight", gated, count),
        _stack("w3", one + "up_proj.weight", gated, count),
        _stack("w2", one + "down_proj.weight", DownProjections(count, hidden, width), count),
    )


def _stack(name: str, hub: str, layout: GatedProjections | DownProjections, count: int) -> Rule:
    """The rule of one stack of experts, which `{expert}` numbers in the Hub's name."""
    numbers = ",".join(map(str, range(count)))
    listed = hub.replace("{expert}", f"{{{numbers}}}" if count > 1 else numbers)
    return Rule(
        Pattern(L + f"feed_forward_moe.experts.mlp.{name}"), Pattern(listed), lambda config: (layout,)
    )


OLMO = Family("OLMo 2 and 3", BODY + MLP + REORDERED)
PRE_NORM = Family("Llama and Qwen3", BODY + MLP + NORMS)

# config.json's model_type -> the family for such a config
FAMILIES: dict[str, Callable[[Config], Family]] = {
    "olmo2": lambda config: OLMO,
    "olmo3": lambda config: OLMO,
    "llama": lambda config: PRE_NORM,
    "qwen3": lambda config: PRE_NORM,
    "flex_olmo": lambda config: Family("FlexOlmo", BODY + REORDERED + experts(config)),
}
