#!/usr/bin/env bash
# transformers==5.23.0 writes, transformers==4.57.6 reads: the rotary base is lost without a word.
#
# transformers 5 keeps the rotary base inside `rope_parameters` and writes no `rope_theta`. transformers 4 does not know
# `rope_parameters`, keeps it as an unused attribute and takes its class's default base (10,000 for Qwen2). The folder
# loads, all weights match, and the logits are those of another model.
#
# Exits 0 while both behave so, 1 once one does not.
set -euo pipefail
here=$(mktemp -d); trap 'rm -rf "$here"' EXIT
for major in 5.23.0 4.57.6; do
  python3 -m venv "$here/$major"
  "$here/$major/bin/pip" install --quiet --disable-pip-version-check torch==2.13.0 2> /dev/null
  "$here/$major/bin/pip" install --quiet --disable-pip-version-check "transformers==$major" safetensors==0.8.0 2> /dev/null
done
cat > "$here/write.py" <<'PY'
import json, sys
import torch
from transformers import Qwen2Config, Qwen2ForCausalLM

torch.manual_seed(0)
config = Qwen2Config(
    vocab_size=99, hidden_size=32, intermediate_size=56, num_hidden_layers=2, num_attention_heads=4,
    num_key_value_heads=2, initializer_range=0.4, rope_parameters={"rope_type": "default", "rope_theta": 1000000.0},
)
model = Qwen2ForCausalLM(config).eval()
model.save_pretrained(sys.argv[1])
torch.save(model(torch.arange(40)[None] % 99).logits, sys.argv[1] + "/logits.pt")
written = json.load(open(sys.argv[1] + "/config.json"))
print("5.23.0 writes rope_parameters", written["rope_parameters"], "and rope_theta", written.get("rope_theta"))
PY
cat > "$here/read.py" <<'PY'
import sys
import torch
from transformers import AutoModelForCausalLM

model, report = AutoModelForCausalLM.from_pretrained(sys.argv[1], output_loading_info=True)
there = torch.load(sys.argv[1] + "/logits.pt")
here = model.eval()(torch.arange(40)[None] % 99).logits
apart = (here - there).abs().max().item()
print("4.57.6 reads rope_theta", model.config.rope_theta, "| missing weights:", len(report["missing_keys"]),
      "| logits apart by", round(apart, 3))
sys.exit(not (model.config.rope_theta == 10000.0 and not report["missing_keys"] and apart > 1e-3))
PY
export HF_HUB_OFFLINE=1
"$here/5.23.0/bin/python" "$here/write.py" "$here/model" 2> /dev/null
"$here/4.57.6/bin/python" "$here/read.py" "$here/model" 2> /dev/null
