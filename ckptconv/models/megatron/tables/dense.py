"""Dense decoders: Llama, and models that differ from it by a norm, a bias or a name.

Sources besides the real checkpoints: Megatron-Bridge (src/megatron/bridge/models), NeMo 2
(nemo/collections/llm/gpt/model), Pai-Megatron-Patch (toolkits/model_checkpoints_convertor).
"""

from __future__ import annotations

from ckptconv.models.family import QKV, Config, Family, GateUp, Same, Vocab, replace_of_layer
from ckptconv.models.megatron.listed import by_source, proven
from ckptconv.models.megatron.tables.parts import (
    ATTENTION,
    ENDS,
    FUSED_MLP,
    GEMMA_NORMS,
    GLM4_NORMS,
    LAYER_NORMS,
    MLP,
    MLP_NORM,
    QK_NORM,
    L,
    M,
    joined_attention,
    renamed,
    ungated_mlp,
)

LLAMA = Family("Llama", ENDS + ATTENTION + MLP_NORM + MLP)
QWEN3 = Family("Qwen3", LLAMA.rules + QK_NORM)
GEMMA = Family("Gemma", LLAMA.rules)
GEMMA2 = Family("Gemma 2", ENDS + ATTENTION + GEMMA_NORMS + MLP)
GEMMA3 = Family("Gemma 3", GEMMA2.rules + QK_NORM)
GLM4 = Family("GLM-4", ENDS + ATTENTION + GLM4_NORMS + MLP_NORM + FUSED_MLP)
NEMOTRON = Family("Nemotron", LAYER_NORMS + ENDS + ATTENTION + ungated_mlp("up_proj", "down_proj"))
STARCODER2 = Family("StarCoder2", LAYER_NORMS + ENDS + ATTENTION + ungated_mlp("c_fc", "c_proj"))
# Norms only after the blocks (Megatron-Bridge, exaone/exaone4/exaone4_bridge.py).
EXAONE4 = Family("Exaone 4", ENDS + ATTENTION + GEMMA_NORMS + MLP + QK_NORM)
PHI3 = Family(
    "Phi-3", ENDS + joined_attention("self_attn.qkv_proj", "self_attn.o_proj") + MLP_NORM + FUSED_MLP
)
BAICHUAN = Family(
    "Baichuan", ENDS + joined_attention("self_attn.W_pack", "self_attn.o_proj") + MLP_NORM + MLP
)
# InternLM2's wqkv has Megatron's own order of rows.
INTERNLM2 = Family(
    "InternLM2",
    (
        Vocab("embedding.word_embeddings.weight", "model.tok_embeddings.weight"),
        Same("decoder.final_layernorm.weight", "model.norm.weight"),
        Vocab("output_layer.weight", "output.weight", instead="score.weight"),
        Same(L + "self_attention.linear_qkv.layer_norm_weight", "model.layers.{layer}.attention_norm.weight"),
        Same(L + "self_attention.linear_qkv.{what}", "model.layers.{layer}.attention.wqkv.{what}"),
        Same(L + "self_attention.linear_proj.{what}", "model.layers.{layer}.attention.wo.{what}"),
        Same(L + "mlp.linear_fc1.layer_norm_weight", "model.layers.{layer}.ffn_norm.weight"),
        GateUp(L + "mlp.linear_fc1.weight", "model.layers.{layer}.feed_forward.{w1,w3}.weight"),
        Same(L + "mlp.linear_fc2.weight", "model.layers.{layer}.feed_forward.w2.weight"),
    ),
)
CHATGLM_LAYER = "transformer.encoder.layers.{layer}."
CHATGLM = Family(
    "ChatGLM",
    (
        Vocab("embedding.word_embeddings.weight", "transformer.embedding.word_embeddings.weight"),
        Same("decoder.final_layernorm.weight", "transformer.encoder.final_layernorm.weight"),
        Vocab("output_layer.weight", "transformer.output_layer.weight", instead="score.weight"),
        Same(L + "mlp.linear_fc1.weight", CHATGLM_LAYER + "mlp.dense_h_to_4h.weight"),
        Same(L + "mlp.linear_fc2.weight", CHATGLM_LAYER + "mlp.dense_4h_to_h.weight"),
        *renamed(
            joined_attention("self_attention.query_key_value", "self_attention.dense") + MLP_NORM,
            "model.layers.{layer}.",
            CHATGLM_LAYER,
        ),
    ),
)


def of_decilm_layer(config: Config, layer: int) -> Config:
    """Return the config of one layer: block_configs states how many query heads share a KV head in it."""
    attention = config["block_configs"][layer]["attention"]
    return {**config, "num_key_value_heads": config["num_attention_heads"] // attention["n_heads_in_group"]}


# Layers without attention or without an MLP store nothing for it. The first line that matches counts, so that only the
# layers' queries, keys and values depend on block_configs, which has null for a layer without attention.
NEMOTRON_NAS = Family(
    "Nemotron-NAS",
    replace_of_layer(
        (QKV(L + "self_attention.linear_qkv.{what}", M + "self_attn.{q,k,v}_proj.{what}"),), of_decilm_layer
    )
    + LLAMA.rules,
)

DENSE = {
    "llama": proven("Llama", LLAMA, "mbridge"),
    "mistral": proven("Mistral", LLAMA, "Megatron-Bridge"),
    "qwen2": proven("Qwen2", LLAMA, "mbridge", "Megatron-Bridge"),  # {what} covers its QKV bias
    "qwen3": proven("Qwen3", QWEN3, "mbridge"),
    "ernie4_5": proven("Ernie 4.5", LLAMA, "mcore-bridge"),
    "internlm3": proven("InternLM3", LLAMA, "mcore-bridge"),
    "gemma": proven("Gemma", GEMMA, "Megatron-Bridge"),
    "gemma2": proven("Gemma 2", GEMMA2, "Megatron-Bridge"),
    "gemma3_text": proven("Gemma 3 (text)", GEMMA3, "Megatron-Bridge"),
    "glm4": proven("GLM-4", GLM4, "mcore-bridge"),
    "seed_oss": proven("Seed-OSS", LLAMA, "mcore-bridge"),
    "nemotron": proven("Nemotron", NEMOTRON, "Megatron-Bridge"),
    "nemotron-nas": proven("Nemotron-NAS", NEMOTRON_NAS, "Megatron-Bridge"),
    "ministral3": by_source("Ministral 3 (text)", LLAMA, "Megatron-Bridge, ministral3/ministral3_bridge.py"),
    "exaone4": proven("Exaone 4", EXAONE4, "Megatron-Bridge"),
    "phi3": proven("Phi-3", PHI3, "NeMo 2"),
    "starcoder2": proven("StarCoder2", STARCODER2, "NeMo 2"),
    "baichuan": proven("Baichuan", BAICHUAN, "NeMo 2"),
    "chatglm": proven("ChatGLM", CHATGLM, "NeMo 2"),
    "internlm2": by_source("InternLM2", INTERNLM2, "InternLM2's own modeling_internlm2.py"),
}
