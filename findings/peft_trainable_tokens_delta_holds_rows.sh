#!/usr/bin/env bash
# peft==0.21.2: `trainable_tokens_delta` in a saved adapter holds whole embedding rows, not differences.
#
# LoraConfig(trainable_token_indices=[...]) trains some rows of the embedding. The saved tensor is named
# `token_adapter.trainable_tokens_delta`. Before any training step it is not zero: it equals the rows of the base's
# embedding. Whoever adds this "delta" to the base doubles those rows. Which rows they are is not in the weights file, only in
# adapter_config.json.
#
# Exits 0 while peft behaves so, 1 once it does not.
set -euo pipefail
here=$(mktemp -d); trap 'rm -rf "$here"' EXIT
python3 -m venv "$here/env"
"$here/env/bin/pip" install --quiet --disable-pip-version-check torch==2.13.0 2> /dev/null
"$here/env/bin/pip" install --quiet --disable-pip-version-check transformers==5.23.0 accelerate==1.15.0 peft==0.21.2 safetensors==0.8.0 2> /dev/null
cat > "$here/try.py" <<'PY'
import sys
import torch
from peft import LoraConfig, get_peft_model
from safetensors.torch import load_file
from transformers import Qwen2Config, Qwen2ForCausalLM

torch.manual_seed(0)
model = Qwen2ForCausalLM(Qwen2Config(
    vocab_size=61, hidden_size=32, intermediate_size=56, num_hidden_layers=1, num_attention_heads=4, num_key_value_heads=2,
))
base = model.model.embed_tokens.weight.detach().clone()
rows = [7, 60]
get_peft_model(model, LoraConfig(target_modules=["q_proj"], trainable_token_indices=rows)).save_pretrained(sys.argv[1])
saved = load_file(sys.argv[1] + "/adapter_model.safetensors")
name, delta = next((name, value) for name, value in saved.items() if "trainable_tokens" in name)
same = torch.equal(delta, base[rows])
print(name, tuple(delta.shape), "| all zero:", not delta.any().item(), "| equals the base's rows:", same)
sys.exit(not same or not delta.any())
PY
HF_HUB_OFFLINE=1 "$here/env/bin/python" "$here/try.py" "$here/adapter" 2> /dev/null
