#!/usr/bin/env bash
# transformers==5.24.0 writes Qwen3-VL-MoE's config, transformers==4.57.6 reads it: the trained head is replaced without a word.
#
# The model is not tied: transformers 5 writes tie_word_embeddings false for the model, and true inside text_config, which is
# its text class's default and which it does not use. transformers 4 asks text_config, ties the head to the embedding although
# lm_head.weight is stored with other values, and reports no missing, unexpected or mismatched key.
#
# Exits 0 while both behave so, 1 once one does not.
set -euo pipefail
here=$(mktemp -d); trap 'rm -rf "$here"' EXIT
for major in 5.24.0 4.57.6; do
  python3 -m venv "$here/$major"
  "$here/$major/bin/pip" install --quiet --disable-pip-version-check torch==2.13.0 2> /dev/null
  "$here/$major/bin/pip" install --quiet --disable-pip-version-check "transformers==$major" safetensors==0.8.0 2> /dev/null
done
cat > "$here/write.py" <<'PY'
import json, sys
import torch
from transformers import Qwen3VLMoeConfig, Qwen3VLMoeForConditionalGeneration

torch.manual_seed(0)
rope = {"rope_type": "default", "rope_theta": 10000.0, "mrope_section": [2, 1, 1]}
text = dict(
    vocab_size=99, hidden_size=32, intermediate_size=48, moe_intermediate_size=20, num_hidden_layers=1, num_experts=2,
    num_attention_heads=4, num_key_value_heads=2, head_dim=8, num_experts_per_tok=1, rope_parameters=rope,
)
vision = dict(depth=1, hidden_size=16, intermediate_size=24, num_heads=2, out_hidden_size=32, deepstack_visual_indexes=[])
model = Qwen3VLMoeForConditionalGeneration(Qwen3VLMoeConfig(text_config=text, vision_config=vision)).eval()
for layer in model.model.language_model.layers:  # as published: (experts, in, out)
    for name in ("gate_up_proj", "down_proj"):
        weight = getattr(layer.mlp.experts, name)
        setattr(layer.mlp.experts, name, torch.nn.Parameter(weight.detach().transpose(1, 2).contiguous()))
model.save_pretrained(sys.argv[1])
path = sys.argv[1] + "/config.json"
written = json.load(open(path))
print("5.24.0 writes tie_word_embeddings", written["tie_word_embeddings"], "and in text_config", written["text_config"]["tie_word_embeddings"])
# The keys that transformers 4 needs to build the model at all; they have nothing to do with ties.
written["text_config"] |= {"num_experts": 2, "rope_theta": 10000.0, "rope_scaling": {k: v for k, v in rope.items() if k != "rope_theta"}}
json.dump(written, open(path, "w"))
PY
cat > "$here/read.py" <<'PY'
import sys
from safetensors import safe_open
from transformers import Qwen3VLMoeForConditionalGeneration

model, report = Qwen3VLMoeForConditionalGeneration.from_pretrained(sys.argv[1], output_loading_info=True)
with safe_open(sys.argv[1] + "/model.safetensors", "pt") as reader:
    stored = reader.get_tensor("lm_head.weight")
lost = not bool((model.lm_head.weight == stored).all())
said = [key for key, value in report.items() if value]
print("4.57.6: head is the embedding", model.lm_head.weight is model.model.language_model.embed_tokens.weight,
      "| stored head lost", lost, "| reported", said)
sys.exit(not (lost and not said))
PY
export HF_HUB_OFFLINE=1
"$here/5.24.0/bin/python" "$here/write.py" "$here/model" 2> /dev/null
"$here/4.57.6/bin/python" "$here/read.py" "$here/model" 2> /dev/null
