"""The table of fixtures: which model, in which parallelism and layout, and what it shows."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

# Releases on PyPI know fewer models than the repositories do: github.com/OWNER/NAME -> the commit.
SOURCES = {"NVIDIA-NeMo/Megatron-Bridge": "067f987df03b", "NVIDIA/Megatron-LM": "d98e8a64ddf3"}
DEV = {"NVIDIA/Megatron-LM": "d48bd6be0a85"}  # of its branch dev, which has attention that main has not
SINGLETON = {"singleton_local_shards": True}


@dataclass(frozen=True)
class Case:
    """One checkpoint; sizes of 1 (vpp: 0) mean that a way of splitting is not used."""

    family: str
    shows: str
    layout: str = "verl"  # verl, verl_v2, verl_legacy, mlm, mlm_legacy
    tp: int = 1
    pp: int = 1
    vpp: int = 0
    ep: int = 1
    etp: int = 1
    ranks: int = 0  # tp * pp unless data parallel ranks are wanted, as for experts
    first: int = 0  # layers of the first stage, where stages differ
    pad: int = 0  # the vocabulary is padded to a multiple of this
    spec: str = "te"  # or local: layers without Transformer Engine
    optimizer: str = ""  # distrib_optim_sharding_type
    critic: bool = False
    metadata: dict[str, Any] = field(default_factory=dict)  # what sharded_state_dict is given
    core: str = "0.16.1"
    lora: tuple[str, ...] = ()  # Megatron's names of the layers with adapters
    bridge: str = "mbridge"  # or megatron_bridge, mcore_bridge, nemo
    new: bool = False  # with transformers 5, for models that older releases do not have
    environment: dict[str, str] = field(default_factory=dict)
    source: bool = False  # by the projects' repositories, at the commits in SOURCES
    dev: bool = False  # with Megatron-LM at the commit in DEV

    @property
    def world(self) -> int:
        return self.ranks or self.tp * self.pp

    @property
    def parallelism(self) -> str:
        """As it is written in tables: TP2 PP2 EP2."""
        sizes = {"TP": self.tp, "PP": self.pp, "VPP": self.vpp, "EP": self.ep, "ETP": self.etp}
        used = [f"{name}{size}" for name, size in sizes.items() if size > 1]
        if self.etp == 1 < self.tp and self.ep > 1:
            used.append("ETP1")
        return " ".join(used) + (f" ({self.world} ranks)" if self.world != self.tp * self.pp else "")


CASES: dict[str, Case] = {
    # torch_dist
    "qwen2_tp2": Case("qwen2", "QKV bias; vocabulary 91 padded to 128", tp=2, pad=64),
    "qwen2_tp4_kv2": Case("qwen2_wide", "fewer KV heads than TP ranks", "mlm", tp=4, pad=32),
    "qwen2_tied_pp2": Case(
        "qwen2_tied", "tied: no output_layer; stages of 2 layers and 1; not padded", pp=2, first=2
    ),
    "qwen2_v2": Case(
        "qwen2",
        "verl's v2 folders and ckpt_contents.json; no Hugging Face config inside",
        "verl_v2",
        tp=2,
        pad=32,
    ),
    "llama_tp2pp2vpp2": Case(
        "llama", "head_dim 8, hidden 26, 6 heads; VPP", "mlm", tp=2, pp=2, vpp=2, pad=24
    ),
    "qwen3_tp2pp2vpp2": Case("qwen3", "q and k norms; tied; VPP", tp=2, pp=2, vpp=2, pad=4),
    "qwen3_moe_tp2pp2ep2": Case(
        "qwen3_moe_3", "stacked experts; stages of 1 and 2 layers", tp=2, pp=2, ep=2, first=1, pad=2
    ),
    "qwen3_moe_singleton": Case(
        "qwen3_moe",
        "singleton_local_shards: per layer and per expert, weight_w and weight_v",
        "mlm",
        tp=2,
        ep=2,
        pad=2,
        metadata=SINGLETON,
    ),
    "mixtral_ep2etp2": Case(
        "mixtral", "experts split over TP too; w1, w3, w2", tp=2, ep=2, etp=2, ranks=4, pad=2
    ),
    "qwen2_moe_ep2": Case("qwen2_moe", "shared expert and its gate", tp=2, ep=2, pad=2),
    "deepseek_v3_tp2pp2ep2": Case(
        "deepseek_v3",
        "MLA with q-LoRA; one dense layer, alone on its stage; fp32 expert bias",
        tp=2,
        pp=2,
        ep=2,
        first=1,
    ),
    "moonlight_ep2": Case("moonlight", "MLA without q-LoRA; two shared experts in one", "mlm", tp=2, ep=2),
    "qwen2_local": Case("qwen2", "layers without Transformer Engine", "mlm", tp=2, spec="local", pad=64),
    "qwen3_moe_local": Case(
        "qwen3_moe",
        "experts without grouped GEMM, without Transformer Engine",
        "mlm",
        ep=2,
        ranks=2,
        spec="local",
    ),
    "qwen2_optim_fully": Case(
        "qwen2_small",
        "optimizer, fully_reshardable",
        "mlm",
        tp=2,
        ranks=4,
        pad=2,
        optimizer="fully_reshardable",
    ),
    "qwen2_optim_dp": Case(
        "qwen2_small", "optimizer, dp_reshardable", tp=2, ranks=4, pad=2, optimizer="dp_reshardable"
    ),
    "qwen2_core013": Case("qwen2", "Megatron-Core 0.13's metadata", tp=2, pad=64, core="0.13.1"),
    "qwen3_moe_core013": Case(
        "qwen3_moe",
        "Megatron-Core 0.13's metadata with experts",
        "mlm",
        tp=2,
        pp=2,
        ep=2,
        pad=2,
        core="0.13.1",
    ),
    # one file per rank
    "qwen2_mlm_legacy": Case(
        "qwen2", "each TP rank holds its own [gate | up]", "mlm_legacy", tp=2, pp=2, first=1, pad=64
    ),
    "qwen2_tied_mlm_legacy": Case(
        "qwen2_tied",
        "tied: the last stage keeps a copy as output_layer.weight",
        "mlm_legacy",
        tp=2,
        pp=2,
        first=2,
        pad=2,
    ),
    "llama_mlm_legacy_vpp": Case("llama", "model0 and model1: two chunks a stage", "mlm_legacy", pp=2, vpp=2),
    "qwen2_verl_legacy": Case(
        "qwen2", "verl's list of one state dict", "verl_legacy", tp=2, pp=2, first=2, pad=64
    ),
    "qwen3_verl_legacy_vpp": Case(
        "qwen3", "verl's list of two chunks; tied", "verl_legacy", tp=2, pp=2, vpp=2, pad=4
    ),
    "deepseek_v3_mlm_legacy": Case(
        "deepseek_v3",
        "the folders are no cross product of TP and EP",
        "mlm_legacy",
        tp=2,
        pp=2,
        ep=4,
        ranks=8,
        first=1,
    ),
    "qwen2_tp4_kv2_mlm_legacy": Case(
        "qwen2_wide", "fewer KV heads than TP ranks", "mlm_legacy", tp=4, pad=32
    ),
    "qwen3_moe_etp1_mlm_legacy": Case(
        "qwen3_moe", "experts in whole on two TP ranks", "mlm_legacy", tp=2, etp=1, pad=32
    ),
    "qwen3_moe_verl_legacy": Case(
        "qwen3_moe",
        "experts in whole beside TP: mp_rank_00_000 and mp_rank_01_001",
        "verl_legacy",
        tp=2,
        ep=2,
        pad=2,
    ),
    "mixtral_mlm_legacy": Case(
        "mixtral",
        "experts split over TP: [gate | up] of each rank",
        "mlm_legacy",
        tp=2,
        ep=2,
        etp=2,
        ranks=4,
        pad=2,
    ),
    "qwen3_moe_local_mlm_legacy": Case(
        "qwen3_moe",
        "rank files without Transformer Engine: norms under their modules' own names, local_experts",
        "mlm_legacy",
        tp=2,
        ep=2,
        pad=2,
        spec="local",
    ),
    "critic_tp2": Case(
        "qwen2_even", "value head: output_layer.weight (1, hidden)", tp=2, pp=2, first=1, critic=True
    ),
    "critic_verl_legacy": Case(
        "qwen2_even", "value head, the same on every TP rank", "verl_legacy", tp=2, critic=True
    ),
    # other bridges: Megatron-Bridge's own save, mcore-bridge in Megatron-LM's layout
    "glm4_moe_mb": Case(
        "glm4_moe",
        "GLM-4.5: QKV bias, q and k norms, one dense layer, fp32 expert bias",
        "bridge",
        tp=2,
        ep=2,
        bridge="megatron_bridge",
    ),
    "glm4_moe_mtp_mb": Case("glm4_moe_mtp", "an MTP layer", "bridge", bridge="megatron_bridge"),
    "gemma2_mb": Case("gemma2", "four norms a layer; tied", "bridge", tp=2, bridge="megatron_bridge"),
    "gemma3_mb": Case(
        "gemma3", "q and k norms and four norms a layer; tied", "bridge", tp=2, bridge="megatron_bridge"
    ),
    "olmoe_mb": Case("olmoe", "q and k norms over the full width", "bridge", tp=2, bridge="megatron_bridge"),
    "gpt_oss_mb": Case(
        "gpt_oss",
        "sinks, biases; the Hub's experts are interleaved and transposed",
        "bridge",
        tp=2,
        ep=2,
        bridge="megatron_bridge",
    ),
    "deepseek_v2_mb": Case(
        "deepseek_v2",
        "MLA without q-LoRA, without expert bias",
        "bridge",
        tp=2,
        ep=2,
        bridge="megatron_bridge",
    ),
    "qwen3_next_mb": Case(
        "qwen3_next", "gated delta net in Megatron's own layout", "bridge", tp=2, bridge="megatron_bridge"
    ),
    "qwen2_mb": Case(
        "qwen2_even", "run_config.yaml", "bridge", tp=2, pp=2, first=2, bridge="megatron_bridge"
    ),
    "glm4_mcb": Case("glm4", "GLM-4: sandwich norms", "mlm", pp=2, bridge="mcore_bridge", pad=2),
    "glm4_moe_mtp_mcb": Case("glm4_moe_mtp", "an MTP layer", "mlm", tp=2, ep=2, bridge="mcore_bridge"),
    "olmoe_mcb": Case(
        "olmoe", "q and k norms under other names", "mlm", tp=2, ep=2, bridge="mcore_bridge", pad=16
    ),
    "gpt_oss_mcb": Case(
        "gpt_oss",
        "sinks, biases; the Hub's experts are interleaved and transposed",
        "mlm",
        tp=2,
        bridge="mcore_bridge",
        pad=16,
    ),
    "minimax_m2_mcb": Case(
        "minimax_m2",
        "full-width q and k norms, w1, w3, w2, fp32 expert bias beside the gate",
        "mlm",
        tp=2,
        ep=2,
        bridge="mcore_bridge",
        pad=2,
    ),
    "ernie4_5_mcb": Case("ernie4_5", "tied", "mlm", tp=2, bridge="mcore_bridge", pad=2),
    "ernie4_5_moe_mcb": Case(
        "ernie4_5_moe",
        "dense first layer, shared experts; moe_statics are left out by mcore-bridge",
        "mlm",
        tp=2,
        ep=2,
        bridge="mcore_bridge",
        pad=2,
    ),
    "ernie4_5_moe_bias_mcb": Case(
        "ernie4_5_moe_bias",
        "the router's bias, put there by bridges.py as Megatron-Bridge's source does",
        "mlm",
        tp=2,
        ep=2,
        bridge="mcore_bridge",
        pad=2,
    ),
    "internlm3_mcb": Case("internlm3", "head_dim of its own", "mlm", tp=2, bridge="mcore_bridge", pad=2),
    "mimo_tp2": Case(
        "mimo", "an MTP layer under model.mtp_layers; input_proj's halves are swapped", tp=2, pad=2
    ),
    "deepseek_v3_mtp_mcb": Case("deepseek_v3_mtp", "an MTP layer", "mlm", tp=2, ep=2, bridge="mcore_bridge"),
    "deepseek_v3_mtp_mlm_legacy": Case(
        "deepseek_v3_mtp",
        "an MTP layer on the last stage, which has a copy of the embedding for it",
        "mlm_legacy",
        tp=2,
        pp=2,
        ep=2,
        first=1,
        bridge="mcore_bridge",
    ),
    "kimi_k2_mcb": Case(
        "kimi_k2",
        "DeepSeek's architecture under its own model type; two dense layers",
        "mlm",
        tp=2,
        pp=2,
        ep=2,
        first=1,
        bridge="mcore_bridge",
        pad=16,
    ),
    "glm4_moe_lite_mtp_mcb": Case(
        "glm4_moe_lite_mtp",
        "GLM-4.7-Flash: DeepSeek's attention, an MTP layer",
        "mlm",
        tp=2,
        ep=2,
        bridge="mcore_bridge",
    ),
    "dots1_mcb": Case(
        "dots1",
        "q and k norms, fp32 expert bias, two shared experts in one",
        "mlm",
        tp=2,
        ep=2,
        bridge="mcore_bridge",
        pad=4,
    ),
    "gpt_oss_singleton": Case(
        "gpt_oss",
        "singleton_local_shards: the experts' biases in halves too, bias_w and bias_v",
        "mlm",
        tp=2,
        ep=2,
        bridge="mcore_bridge",
        pad=2,
        metadata=SINGLETON,
    ),
    "qwen3_next_mcb": Case(
        "qwen3_next",
        "gated delta net: one in_proj and one conv1d in rows per key head",
        "mlm",
        tp=2,
        bridge="mcore_bridge",
        pad=16,
    ),
    "qwen2_5_vl_mb": Case(
        "qwen2_5_vl", "language_model.*, and the tower as visual.*", "bridge", tp=2, bridge="megatron_bridge"
    ),
    "qwen2_5_vl_mcb": Case(
        "qwen2_5_vl",
        "language_model.*, and the tower as visual.visual.*",
        "mlm",
        tp=2,
        bridge="mcore_bridge",
        pad=16,
    ),
    "qwen2_5_vl_tp1": Case("qwen2_5_vl", "mbridge: the tower as Megatron-Core's layers", "mlm"),
    "qwen2_5_vl_tp2": Case(
        "qwen2_5_vl", "mbridge: a tower of Megatron-Core's layers, split over TP", tp=2, pad=4
    ),
    "qwen2_5_vl_mlm_legacy": Case(
        "qwen2_5_vl", "mbridge: the tower on the first stage only", "mlm_legacy", tp=2, pp=2, pad=4
    ),
    "qwen3_vl_mlm_legacy": Case(
        "qwen3_vl",
        "the tower whole on every TP rank of the first stage",
        "mlm_legacy",
        tp=2,
        pp=2,
        bridge="mcore_bridge",
        pad=16,
    ),
    "qwen3_vl_mb": Case(
        "qwen3_vl",
        "language_model.*, and the tower as vision_model.*",
        "bridge",
        tp=2,
        bridge="megatron_bridge",
    ),
    "qwen3_vl_mcb": Case(
        "qwen3_vl",
        "language_model.*, and the tower as visual.visual.*",
        "mlm",
        tp=2,
        bridge="mcore_bridge",
        pad=16,
    ),
    "qwen3_vl_moe_mb": Case(
        "qwen3_vl_moe",
        "the Hub's experts of a layer are one transposed tensor",
        "bridge",
        tp=2,
        ep=2,
        bridge="megatron_bridge",
    ),
    "qwen3_vl_moe_mcb": Case(
        "qwen3_vl_moe",
        "the Hub's experts of a layer are one transposed tensor",
        "mlm",
        tp=2,
        ep=2,
        bridge="mcore_bridge",
        pad=16,
    ),
    "qwen2_vl_mcb": Case(
        "qwen2_vl", "the tower as visual.visual.*", "mlm", tp=2, bridge="mcore_bridge", pad=16
    ),
    "qwen3_next_mtp_mb": Case(
        "qwen3_next_mtp", "an MTP layer of gated attention", "bridge", tp=2, bridge="megatron_bridge"
    ),
    "qwen3_next_mtp_mcb": Case(
        "qwen3_next_mtp", "an MTP layer of gated attention", "mlm", tp=2, bridge="mcore_bridge", pad=16
    ),
    "gemma3_vl_mb": Case(
        "gemma3_vl",
        "vision_tower.* as on the Hub, the projector transposed",
        "bridge",
        tp=2,
        bridge="megatron_bridge",
    ),
    "lora_mb": Case(
        "qwen2_even",
        "LoRA on all four linear layers beside the base weights",
        "bridge",
        tp=2,
        pp=2,
        first=2,
        bridge="megatron_bridge",
        lora=("linear_qkv", "linear_proj", "linear_fc1", "linear_fc2"),
    ),
    "lora_mlm_legacy": Case(
        "qwen2_even",
        "LoRA in rank files: adapters are cut over TP along other dims than their weights",
        "mlm_legacy",
        tp=2,
        pp=2,
        first=2,
        bridge="megatron_bridge",
        lora=("linear_qkv", "linear_proj", "linear_fc1", "linear_fc2"),
    ),
    "lora_v2": Case(
        "qwen2_even",
        "verl's v2 with LoRA: model/dist_ckpt holds adapters alone; base weights left out",
        "verl_v2",
        tp=2,
        bridge="megatron_bridge",
        lora=("linear_qkv", "linear_fc1"),
    ),
    # the newer families; tests compare their models, check.py does not know them
    "mistral_mb": Case("mistral", "Llama's layers", "bridge", tp=2, bridge="megatron_bridge"),
    "gemma_mb": Case("gemma", "tied, norms as they are", "bridge", tp=2, bridge="megatron_bridge"),
    "nemotron_mb": Case(
        "nemotron", "LayerNorm with biases, no gate", "bridge", tp=2, bridge="megatron_bridge"
    ),
    "seed_oss_mcb": Case("seed_oss", "QKV bias", "mlm", tp=2, pp=2, bridge="mcore_bridge", pad=2),
    "deepseek_mcb": Case(
        "deepseek", "a dense layer, shared experts", "mlm", tp=2, ep=2, bridge="mcore_bridge", pad=4
    ),
    "bailing_moe_mcb": Case(
        "bailing_moe", "query_key_value: all q, all k, all v", "mlm", tp=2, ep=2, bridge="mcore_bridge", pad=4
    ),
    "hy_v3_mcb": Case("hy_v3", "other names", "mlm", tp=2, ep=2, bridge="mcore_bridge", pad=4, new=True),
    "glm_moe_dsa_mcb": Case(
        "glm_moe_dsa", "the sparse-attention indexer", "mlm", tp=2, ep=2, bridge="mcore_bridge", new=True
    ),
    "deepseek_v32_mcb": Case(
        "deepseek_v32", "the sparse-attention indexer", "mlm", tp=2, ep=2, bridge="mcore_bridge", new=True
    ),
    "qwen3_5_mcb": Case(
        "qwen3_5", "delta net, tower, MTP", "mlm", tp=2, bridge="mcore_bridge", pad=4, new=True
    ),
    "qwen3_5_hf_mcb": Case(
        "qwen3_5",
        "the Hub's delta net inside",
        "mlm",
        tp=2,
        bridge="mcore_bridge",
        pad=4,
        new=True,
        environment={"USE_MCORE_GDN": "0"},
    ),
    "qwen3_5_moe_mcb": Case(
        "qwen3_5_moe",
        "experts in one tensor, not transposed",
        "mlm",
        tp=2,
        ep=2,
        bridge="mcore_bridge",
        pad=4,
        new=True,
    ),
    "glm4v_mcb": Case("glm4v", "GLM-4 inside", "mlm", pp=2, bridge="mcore_bridge", pad=2, new=True),
    "glm4v_moe_mcb": Case(
        "glm4v_moe", "GLM-4.5 inside", "mlm", tp=2, ep=2, bridge="mcore_bridge", pad=2, new=True
    ),
    "internvl_mcb": Case("internvl", "Qwen3 inside", "mlm", tp=2, bridge="mcore_bridge", pad=4, new=True),
    "llama4_mcb": Case(
        "llama4",
        "experts in one transposed tensor",
        "mlm",
        tp=2,
        ep=2,
        bridge="mcore_bridge",
        pad=4,
        new=True,
    ),
    "minicpmv4_6_mcb": Case(
        "minicpmv4_6", "Qwen3.5 inside", "mlm", tp=2, bridge="mcore_bridge", pad=4, new=True
    ),
    "mistral3_mb": Case("mistral3", "Llama inside", "bridge", tp=2, bridge="megatron_bridge", new=True),
    "qwen2_5_omni_mcb": Case(
        "qwen2_5_omni", "a thinker", "mlm", tp=2, bridge="mcore_bridge", pad=4, new=True
    ),
    "qwen3_omni_moe_mcb": Case(
        "qwen3_omni_moe", "a thinker", "mlm", tp=2, ep=2, bridge="mcore_bridge", pad=4, new=True
    ),
    "nemotron_h_mb": Case(
        "nemotron_h",
        "Mamba-2, attention and an MLP without a gate",
        "bridge",
        tp=2,
        bridge="megatron_bridge",
        new=True,
    ),
    "kimi_vl_mcb": Case("kimi_vl", "DeepSeek-V3 inside", "mlm", tp=2, ep=2, bridge="mcore_bridge"),
    "kimi_k25_mcb": Case("kimi_k25", "Kimi-K2 inside", "mlm", tp=2, ep=2, bridge="mcore_bridge"),
    "ovis2_5_mcb": Case("ovis2_5", "Qwen3 inside", "mlm", tp=2, bridge="mcore_bridge", pad=4),
    "llava_onevision1_5_mcb": Case(
        "llava_onevision1_5", "Qwen3 inside", "mlm", tp=2, bridge="mcore_bridge", pad=4
    ),
    "internvl_chat_mcb": Case("internvl_chat", "Qwen2 inside", "mlm", tp=2, bridge="mcore_bridge", pad=4),
    "nemotron_mlm_legacy": Case(
        "nemotron", "rank files of an MLP without a gate", "mlm_legacy", tp=2, bridge="megatron_bridge"
    ),
    # by the repositories' own sources
    **{
        f"{name}_mb": Case(name, shows, "bridge", bridge="megatron_bridge", new=True, source=True, **sizes)
        for name, shows, sizes in (
            ("exaone4", "norms after the blocks only", {"tp": 2}),
            ("exaone_moe", "a dense layer, shared experts", {"tp": 2, "ep": 2}),
            ("falcon_h1", "Mamba-2 beside attention", {}),
            ("mimo_v2_flash", "heads by layer, sinks, two MTP layers", {"tp": 2, "ep": 2}),
            ("bailing_moe_v2", "query_key_value: all q, all k, all v", {"tp": 2, "ep": 2}),
            ("sarvam_moe", "query_key_value: all q, all k, all v", {"tp": 2, "ep": 2}),
            ("sarvam_mla", "MLA without q-LoRA", {"tp": 2, "ep": 2, "dev": True}),
            ("qwen3_5_text", "native delta net", {"tp": 2}),
            ("qwen3_5_moe_text", "native delta net, experts in one tensor", {"tp": 2, "ep": 2}),
            ("qwen2_audio", "Qwen2 inside", {"tp": 2}),
            ("nemotron-nas", "layers without attention or MLP, KV heads and widths by layer", {"tp": 1}),
            ("gemma4_text", "two sizes of heads, shared keys, per-layer embeddings", {"tp": 2}),
            ("gemma4_text_moe", "keys as values, experts beside an MLP", {"tp": 2, "ep": 2}),
            ("gemma4", "Gemma 4 inside", {"tp": 2, "ep": 2}),
            ("minimax_m3_vl", "indexers beside the language model", {"tp": 2, "ep": 2}),
            ("deepseek_v4", "hyper-connections, compressed attention", {"ep": 2, "ranks": 2, "dev": True}),
            ("ernie4_5_vl_moe", "two groups of experts", {"tp": 2, "ep": 2, "dev": True}),
            ("exaone4_5", "a tower of Megatron-Core's layers", {"tp": 2}),
            ("step3p5", "gates by head, heads by layer, an MTP layer", {"ep": 2, "ranks": 2, "dev": True}),
        )
    },
    "nemotron_h_mtp_mb": Case(
        "nemotron_h_moe",
        "experts in a latent space, an MTP layer",
        "bridge",
        tp=2,
        ep=2,
        bridge="megatron_bridge",
        new=True,
        source=True,
    ),
    "nemotron_h_mlm_legacy": Case(
        "nemotron_h_moe",
        "rank files of Mamba-2 layers",
        "mlm_legacy",
        tp=2,
        ep=2,
        bridge="megatron_bridge",
        new=True,
        source=True,
    ),
    **{
        f"{name}_mcb": Case(name, shows, "mlm", bridge="mcore_bridge", new=True, **sizes)
        for name, shows, sizes in (
            ("bailing_hybrid", "lightning attention, then latent attention", {"tp": 2, "ep": 2}),
            ("glm46v", "GLM-4V's language model inside", {"pp": 2, "pad": 2}),
        )
    },
    "glm_moe_dsa_mlm_legacy": Case(
        "glm_moe_dsa",
        "rank files of an indexer, which is whole on every rank",
        "mlm_legacy",
        tp=2,
        ep=2,
        bridge="mcore_bridge",
        new=True,
    ),
    "mimo_v2_flash_mlm_legacy": Case(
        "mimo_v2_flash",
        "rank files of heads by layer",
        "mlm_legacy",
        tp=2,
        ep=2,
        bridge="megatron_bridge",
        new=True,
        source=True,
    ),
    "gemma4_text_moe_mlm_legacy": Case(
        "gemma4_text_moe",
        "rank files of two sizes of heads",
        "mlm_legacy",
        tp=2,
        ep=2,
        bridge="megatron_bridge",
        new=True,
        source=True,
    ),
    "nemotron_h_pp2_mb": Case(
        "nemotron_h_moe",
        "Mamba-2 over two stages",
        "bridge",
        pp=2,
        bridge="megatron_bridge",
        new=True,
        source=True,
    ),
    **{
        f"{name}_nemo": Case(name, shows, "mlm", tp=2, pp=2, bridge="nemo", pad=4)
        for name, shows in (
            ("phi3", "qkv_proj and gate_up_proj in one tensor each"),
            ("starcoder2", "biases, LayerNorm, no gate"),
            ("baichuan", "W_pack"),
            ("chatglm", "query_key_value with biases, dense_h_to_4h"),
        )
    },
    "hy_v3_etp2_mcb": Case(
        "hy_v3",
        "experts split over TP too",
        "mlm",
        tp=2,
        ep=2,
        etp=2,
        ranks=4,
        bridge="mcore_bridge",
        pad=2,
        new=True,
    ),
    "exaone4_pp2_mb": Case(
        "exaone4",
        "tied over stages of one layer and two",
        "bridge",
        pp=2,
        first=1,
        bridge="megatron_bridge",
        new=True,
        source=True,
    ),
    "mistral_vpp2_mb": Case(
        "mistral4", "two chunks on each stage", "bridge", pp=2, vpp=2, bridge="megatron_bridge"
    ),
}
