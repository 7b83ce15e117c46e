"""The families, in the names of torchtitan 0.3.0; `spelled` adds the names of earlier releases.

Sources: torchtitan 0.2.2 and 0.3.0, models/*/state_dict_adapter.py (the mapping) and
models/common/{attention,moe,decoder}.py, models/gpt_oss/moe.py (the modules); compared with real checkpoints. See
docs/torchtitan.md.
"""

from __future__ import annotations

from collections.abc import Callable

from ckptconv.models.family import MTP_COPIES, Changed, Config, Family, LeftOut, Rule, Same, number_of_experts
from ckptconv.models.rules import Cut, Swap, Turned
from ckptconv.models.torchtitan.verbs import EXPERTS, Experts, Heads, spelled

L, M = "layers.{layer}.", "model.layers.{layer}."


def ends(prefix: str = "") -> tuple[Rule, ...]:
    """Embedding, last norm and head. The first release also saved the table of rotary embeddings."""
    return (
        Same("tok_embeddings.weight", f"{prefix}model.embed_tokens.weight"),
        Same("norm.weight", f"{prefix}model.norm.weight"),
        Same("lm_head.weight", f"{prefix}lm_head.weight"),
        LeftOut("freqs_cis", "a table of angles, which the model computes itself"),
    )


def norms(layer: str = L, hub: str = M) -> tuple[Rule, ...]:
    """The two norms of a layer."""
    return (
        Same(layer + "attention_norm.weight", hub + "input_layernorm.weight"),
        Same(layer + "ffn_norm.weight", hub + "post_attention_layernorm.weight"),
    )


def mlp(trained: str, hub: str) -> tuple[Rule, ...]:
    """Gate, up and down of an MLP, or of shared experts."""
    return (
        Same(trained + "w1.weight", hub + "gate_proj.weight"),
        Same(trained + "w3.weight", hub + "up_proj.weight"),
        Same(trained + "w2.weight", hub + "down_proj.weight"),
    )


def attention(hub: str = M) -> tuple[Rule, ...]:
    """Query, key, value and output. The layout for rotary embeddings is that of the Hub (models/common/rope.py)."""
    return (
        Same(L + "attention.qkv_linear.wq.{what}", hub + "self_attn.q_proj.{what}"),
        Same(L + "attention.qkv_linear.wk.{what}", hub + "self_attn.k_proj.{what}"),
        Same(L + "attention.qkv_linear.wv.{what}", hub + "self_attn.v_proj.{what}"),
        Same(L + "attention.wo.{what}", hub + "self_attn.o_proj.{what}"),
    )


LLAMA_ATTENTION = (
    Heads(L + "attention.qkv_linear.wq.weight", M + "self_attn.q_proj.weight", "num_attention_heads"),
    Heads(L + "attention.qkv_linear.wk.weight", M + "self_attn.k_proj.weight", "num_key_value_heads"),
    Same(L + "attention.qkv_linear.wv.weight", M + "self_attn.v_proj.weight"),
    Same(L + "attention.wo.weight", M + "self_attn.o_proj.weight"),
)
QK_NORM = (
    Same(L + "attention.q_norm.weight", M + "self_attn.q_norm.weight"),
    Same(L + "attention.k_norm.weight", M + "self_attn.k_norm.weight"),
)
# Every MoE with loss-free load balancing adds this bias when the router chooses (models/common/moe.py). If the Hub's
# model has no such bias, torchtitan's own adapters omit it too.
NO_BIAS = LeftOut(L + "moe.expert_bias_E", "torchtitan's load-balancing bias; this model has none on the Hub")


def latent(layer: str = L, hub: str = M) -> tuple[Rule, ...]:
    """Multi-head latent attention. Nothing is reordered: adjacent pairs rotate together on both sides."""
    return (
        Same(layer + "attention.wq.weight", hub + "self_attn.q_proj.weight"),
        Same(layer + "attention.wq_a.weight", hub + "self_attn.q_a_proj.weight"),
        Same(layer + "attention.q_norm.weight", hub + "self_attn.q_a_layernorm.weight"),
        Same(layer + "attention.wq_b.weight", hub + "self_attn.q_b_proj.weight"),
        Same(layer + "attention.wkv_a.weight", hub + "self_attn.kv_a_proj_with_mqa.weight"),
        Same(layer + "attention.kv_norm.weight", hub + "self_attn.kv_a_layernorm.weight"),
        Same(layer + "attention.wkv_b.weight", hub + "self_attn.kv_b_proj.weight"),
        Same(layer + "attention.wo.weight", hub + "self_attn.o_proj.weight"),
    )


def routed(count: int, layer: str = L, hub: str = M) -> tuple[Rule, ...]:
    """The router, and `count` experts, which are stacked as (expert, out, in) in training."""
    one = hub + "mlp.experts.{expert}."
    return (
        Same(layer + "moe.router.gate.weight", hub + "mlp.gate.weight"),
        Experts(layer + EXPERTS + "w1_EFD", one + "gate_proj.weight", count),
        Experts(layer + EXPERTS + "w3_EFD", one + "up_proj.weight", count),
        Experts(layer + EXPERTS + "w2_EDF", one + "down_proj.weight", count),
    )


def deepseek_layer(count: int, layer: str = L, hub: str = M) -> tuple[Rule, ...]:
    """A dense layer or an MoE layer, with the router's bias."""
    return (
        *norms(layer, hub),
        *latent(layer, hub),
        *mlp(layer + "feed_forward.", hub + "mlp."),
        *routed(count, layer, hub),
        *mlp(layer + "moe.shared_experts.", hub + "mlp.shared_experts."),
        Same(layer + "moe.expert_bias_E", hub + "mlp.gate.e_score_correction_bias"),
    )


def multi_token(count: int) -> tuple[Rule, ...]:
    """Multi-token prediction layers; on the Hub their numbers follow the last layer's."""
    layer, hub = "mtp_layers.{mtp}.", "model.layers.{mtp}."
    return (
        *deepseek_layer(count, layer, hub),
        Same(layer + "enorm.weight", hub + "enorm.weight"),
        Same(layer + "hnorm.weight", hub + "hnorm.weight"),
        Same(layer + "eh_proj.weight", hub + "eh_proj.weight"),
        Same(layer + "mtp_norm.weight", hub + "shared_head.norm.weight"),
    )


# Gate and up are interleaved on both sides; (expert, out, in) in training, (expert, in, out) on the Hub.
GPT_OSS_MOE = (
    Same(L + "attention.sinks", M + "self_attn.sinks"),
    Same(L + "moe.router.gate.{what}", M + "mlp.router.{what}"),
    Changed(L + EXPERTS + "mlp1_weight_EGD", M + "mlp.experts.gate_up_proj", Swap(1, 2)),
    Same(L + EXPERTS + "mlp1_bias_EG", M + "mlp.experts.gate_up_proj_bias"),
    Changed(L + EXPERTS + "mlp2_weight_EDF", M + "mlp.experts.down_proj", Swap(1, 2)),
    Same(L + EXPERTS + "mlp2_bias_ED", M + "mlp.experts.down_proj_bias"),
    NO_BIAS,
)


def llama4(prefix: str) -> tuple[Rule, ...]:
    """Llama 4.

    Args:
        prefix: the prefix of the language model inside the multimodal model; "" for the language model itself.
    """
    hub = prefix + M
    block = hub + "feed_forward."
    join = (Swap(1, 2), Turned(Cut(2, 2)))  # (expert, out, in) twice -> (expert, in, gate and up)
    return (
        *ends(prefix),
        *norms(hub=hub),
        *attention(hub),
        *mlp(L + "feed_forward.", block),
        *mlp(L + "moe.shared_experts.", block + "shared_expert."),
        Same(L + "moe.router.gate.weight", block + "router.weight"),
        Changed(L + EXPERTS + "{w1_EFD,w3_EFD}", block + "experts.gate_up_proj", *join),
        Changed(L + EXPERTS + "w2_EDF", block + "experts.down_proj", Swap(1, 2)),
        NO_BIAS,
    )


DENSE_MLP = mlp(L + "feed_forward.", M + "mlp.")
LLAMA = Family("Llama 3", spelled(ends() + norms() + LLAMA_ATTENTION + DENSE_MLP))
QWEN3 = Family("Qwen3", spelled(ends() + norms() + attention() + QK_NORM + DENSE_MLP))
GPT_OSS = Family("gpt-oss", spelled(ends() + norms() + attention() + GPT_OSS_MOE))
LLAMA4 = Family("Llama 4", spelled(llama4("language_model.")))
LLAMA4_TEXT = Family("Llama 4", spelled(llama4("")))


def qwen3_moe(config: Config) -> Family:
    """Qwen3-MoE with the config's number of experts."""
    experts = routed(number_of_experts(config, "num_experts"))
    return Family("Qwen3-MoE", QWEN3.rules + spelled((*experts, NO_BIAS)))


def deepseek(config: Config) -> Family:
    """DeepSeek-V3 with the config's number of experts."""
    count = number_of_experts(config, "n_routed_experts")
    rules = spelled(ends() + multi_token(count) + deepseek_layer(count))
    return Family("DeepSeek-V3", rules, copies=MTP_COPIES)


# config.json's model_type -> the family for such a config
FAMILIES: dict[str, Callable[[Config], Family]] = {
    "llama": lambda config: LLAMA,
    "qwen3": lambda config: QWEN3,
    "qwen3_moe": qwen3_moe,
    "deepseek_v3": deepseek,
    "gpt_oss": lambda config: GPT_OSS,
    "llama4": lambda config: LLAMA4,
    "llama4_text": lambda config: LLAMA4_TEXT,
}
