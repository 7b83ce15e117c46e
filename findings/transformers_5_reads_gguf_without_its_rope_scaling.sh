#!/usr/bin/env bash
# transformers==5.24.0, gguf==0.19.0: from_pretrained(gguf_file=...) loads a Llama with unscaled positions.
#
# GGUF states a rope scaling in keys (llama.rope.scaling.type, .factor, .original_context_length) and Llama 3.1's as a
# tensor of divisors, rope_freqs.weight, as llama.cpp's converter writes it. transformers reads rope.freq_base alone: the
# config that it makes says rope_type "default", and the logits are those of a model without scaling, to the last bit, for
# linear, yarn and llama3 alike. The same model from its Hugging Face folder gives other logits. There is no warning.
#
# The scaling here starts at 64 positions, so that a short text shows it.
#
# Exits 0 while transformers behaves so, 1 once it does not.
set -euo pipefail
here=$(mktemp -d); trap 'rm -rf "$here"' EXIT
cat > "$here/try.py" <<'PY'
import sys

import gguf
import numpy
import torch
from transformers import AutoModelForCausalLM, LlamaConfig, LlamaForCausalLM

NAMES = {
    "model.embed_tokens": "token_embd", "model.norm": "output_norm", "lm_head": "output", "input_layernorm": "attn_norm",
    "post_attention_layernorm": "ffn_norm", "self_attn.q_proj": "attn_q", "self_attn.k_proj": "attn_k",
    "self_attn.v_proj": "attn_v", "self_attn.o_proj": "attn_output", "mlp.gate_proj": "ffn_gate", "mlp.up_proj": "ffn_up",
    "mlp.down_proj": "ffn_down",
}
LENGTHS = {"factor": 8.0, "original_max_position_embeddings": 64}
LLAMA3 = {"rope_type": "llama3", "low_freq_factor": 1.0, "high_freq_factor": 4.0, **LENGTHS}


def llama(rope):
    torch.manual_seed(0)
    sizes = dict(vocab_size=64, hidden_size=64, intermediate_size=96, num_hidden_layers=2, num_attention_heads=4)
    more = dict(num_key_value_heads=2, max_position_embeddings=512, initializer_range=0.15)
    return LlamaForCausalLM(LlamaConfig(**sizes, **more, rope_parameters={"rope_theta": 10000.0, **rope})).eval()


def write(model, rope, path):
    out = gguf.GGUFWriter(path, "llama")
    out.add_context_length(512), out.add_block_count(2), out.add_embedding_length(64), out.add_feed_forward_length(96)
    out.add_head_count(4), out.add_head_count_kv(2), out.add_layer_norm_rms_eps(1e-6), out.add_vocab_size(64)
    out.add_rope_dimension_count(16), out.add_rope_freq_base(10000.0)
    if rope["rope_type"] in ("linear", "yarn"):
        out.add_rope_scaling_type(gguf.RopeScalingType(rope["rope_type"]))
        out.add_rope_scaling_factor(8.0), out.add_rope_scaling_orig_ctx_len(64)
    if rope["rope_type"] == "llama3":
        plain = 10000.0 ** (-numpy.arange(0, 16, 2) / 16)
        out.add_tensor("rope_freqs.weight", (plain / model.model.rotary_emb.inv_freq.numpy()).astype("float32"))
    for name, weight in model.state_dict().items():
        head, _, part = name.removesuffix(".weight").rpartition(".layers.")
        number, _, part = part.partition(".") if head else ("", "", part)
        array = weight.numpy()
        if part.endswith(("q_proj", "k_proj")):  # GGUF keeps the rows that rotate together next to each other
            array = array.reshape(-1, 2, 8, 64).swapaxes(1, 2).reshape(array.shape).copy()
        out.add_tensor((f"blk.{number}." if head else "") + NAMES[part] + ".weight", array)
    out.write_header_to_file(), out.write_kv_data_to_file(), out.write_tensors_to_file(), out.close()


tokens = torch.arange(100)[None] % 64
for rope in ({"rope_type": "default"}, {"rope_type": "linear", "factor": 8.0}, {"rope_type": "yarn", **LENGTHS}, LLAMA3):
    model = llama(rope)
    write(model, rope, sys.argv[1] + "/model.gguf")
    found = AutoModelForCausalLM.from_pretrained(sys.argv[1], gguf_file="model.gguf").eval()
    with torch.no_grad():
        logits, stated, unscaled = (each(tokens).logits for each in (found, model, llama({"rope_type": "default"})))
    apart = ((logits - stated).abs().max() / stated.abs().max()).item()
    print(
        f"file with {rope['rope_type']} scaling, config {found.config.rope_parameters['rope_type']}:",
        "as stated" if apart < 1e-5 else "far from it" if apart > 0.5 else "near it",
        "| unscaled" if torch.equal(logits, unscaled) else "| not unscaled",
    )
PY
python3 -m venv "$here/env"
"$here/env/bin/pip" install --quiet --disable-pip-version-check torch==2.13.0 2> /dev/null
"$here/env/bin/pip" install --quiet --disable-pip-version-check transformers==5.24.0 accelerate==1.15.0 gguf==0.19.0 2> /dev/null
HF_HUB_OFFLINE=1 "$here/env/bin/python" "$here/try.py" "$here" 2> /dev/null | grep "file with" | tee "$here/seen"
diff "$here/seen" - <<'SEEN'
file with default scaling, config default: as stated | unscaled
file with linear scaling, config default: far from it | unscaled
file with yarn scaling, config default: far from it | unscaled
file with llama3 scaling, config default: far from it | unscaled
SEEN
