#!/usr/bin/env bash
# transformers==5.24.0: a DBRX folder that transformers==4.57.6 wrote is read with another rotary base.
#
# DBRX states its rotary base inside attn_config, 500000 in the released models. transformers 5 still reads that object
# and keeps its rope_theta, but the rotary embedding is built from rope_parameters of the outer config. A config of
# version 4 has no such key, nor a rope_theta beside it, and the inner value is not looked for: the base becomes 10000.
# All weights are found and nothing warns, while config.attn_config.rope_theta still shows the stated number.
#
# Exits 0 while both behave so, 1 once one does not.
set -euo pipefail
here=$(mktemp -d); trap 'rm -rf "$here"' EXIT
cat > "$here/read.py" <<'PY'
import sys
import torch
import transformers
from transformers import AutoModelForCausalLM, DbrxConfig

folder = sys.argv[1]
if sys.argv[2:] == ["write"]:
    torch.manual_seed(0)
    sizes = dict(d_model=32, n_heads=4, n_layers=1, max_seq_len=64, vocab_size=64)
    attention = {"kv_n_heads": 2, "clip_qkv": 8.0, "rope_theta": 500000.0}
    experts = {"ffn_hidden_size": 32, "moe_num_experts": 4, "moe_top_k": 2}
    config = DbrxConfig(**sizes, attn_config=attention, ffn_config=experts)
    AutoModelForCausalLM.from_config(config).save_pretrained(folder)

model, report = AutoModelForCausalLM.from_pretrained(folder, output_loading_info=True)
keys = sum(len(report[kind]) for kind in ("missing_keys", "unexpected_keys", "mismatched_keys"))
name, frequencies = next((name, buffer) for name, buffer in model.named_buffers() if name.endswith(".inv_freq"))
# The frequencies are base ** -(2i / head size) with a head size of 8, so the second one tells the base.
base = round(frequencies[1].item() ** -4, -1)
print(transformers.__version__, "states", model.config.attn_config.rope_theta, "| turns by", base, "| keys amiss", keys)
PY
for version in 4.57.6 5.24.0; do
  python3 -m venv "$here/$version"
  "$here/$version/bin/pip" install --quiet --disable-pip-version-check torch==2.13.0 2> /dev/null
  "$here/$version/bin/pip" install --quiet --disable-pip-version-check transformers==$version safetensors==0.8.0 2> /dev/null
done
run() { HF_HUB_OFFLINE=1 "$here/$1/bin/python" "$here/read.py" "$here/model" ${2:-} 2> /dev/null; }
{ run 4.57.6 write; run 5.24.0; } | tee "$here/seen"
diff "$here/seen" - <<'SEEN'
4.57.6 states 500000.0 | turns by 500000.0 | keys amiss 0
5.24.0 states 500000.0 | turns by 10000.0 | keys amiss 0
SEEN
