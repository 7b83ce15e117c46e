#!/usr/bin/env bash
# peft==0.18.1 and peft==0.19.1: the two LoRA factors of fused experts changed places, and nothing but the version says so.
#
# LoraConfig(target_parameters=["mlp.experts.gate_up_proj"]) on a Qwen3-MoE (transformers 5 keeps its experts fused as
# (experts, out, in)). 0.18.1 sizes lora_A by the parameter's second dim and lora_B by its third; 0.19.1 the other way
# round. The names are the same, and where the two dims are equal so are the shapes: only `peft_version` in
# adapter_config.json tells how to multiply them.
#
# Exits 0 while both versions behave so, 1 once one does not.
set -euo pipefail
here=$(mktemp -d); trap 'rm -rf "$here"' EXIT
cat > "$here/try.py" <<'PY'
import sys
import peft
import torch
from peft import LoraConfig, get_peft_model
from safetensors.torch import load_file
from transformers import Qwen3MoeConfig, Qwen3MoeForCausalLM

model = Qwen3MoeForCausalLM(Qwen3MoeConfig(
    vocab_size=61, hidden_size=32, intermediate_size=56, moe_intermediate_size=20, num_experts=3, num_experts_per_tok=2,
    num_hidden_layers=1, num_attention_heads=4, num_key_value_heads=2, head_dim=8,
))
fused = model.model.layers[0].mlp.experts.gate_up_proj
config = LoraConfig(r=2, target_modules=[], target_parameters=["mlp.experts.gate_up_proj"])
get_peft_model(model, config).save_pretrained(sys.argv[1])
saved = load_file(sys.argv[1] + "/adapter_model.safetensors")
a, b = (tuple(next(value for name, value in saved.items() if f"lora_{which}" in name).shape) for which in "AB")
print(peft.__version__, "parameter", tuple(fused.shape), "lora_A", a, "lora_B", b)
PY
for version in 0.18.1 0.19.1; do
  python3 -m venv "$here/$version"
  "$here/$version/bin/pip" install --quiet --disable-pip-version-check torch==2.13.0 2> /dev/null
  "$here/$version/bin/pip" install --quiet --disable-pip-version-check transformers==5.23.0 accelerate==1.15.0 "peft==$version" safetensors==0.8.0 2> /dev/null
  HF_HUB_OFFLINE=1 "$here/$version/bin/python" "$here/try.py" "$here/adapter-$version" 2> /dev/null | tee -a "$here/seen"
done
diff "$here/seen" - <<'SEEN'
0.18.1 parameter (3, 40, 32) lora_A (6, 40) lora_B (32, 6)
0.19.1 parameter (3, 40, 32) lora_A (6, 32) lora_B (40, 6)
SEEN
