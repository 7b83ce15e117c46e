#!/usr/bin/env bash
# peft==0.21.2: a saved adapter may be scaled by another alpha than it was trained with, although nothing was lost.
#
# alpha_pattern (and rank_pattern) of LoraConfig are dicts of regexes. Of several that match a module, PEFT takes the first in
# the dict's order, so a general pattern may follow a special one. save_pretrained writes adapter_config.json with sorted
# keys: the order is gone, and loading the adapter takes another pattern. Here q_proj of layer 1 is trained with alpha 9 and
# loaded with alpha 5, without a warning; the outputs differ.
#
# Exits 0 while peft behaves so, 1 once it does not.
set -euo pipefail
here=$(mktemp -d); trap 'rm -rf "$here"' EXIT
python3 -m venv "$here/env"
"$here/env/bin/pip" install --quiet --disable-pip-version-check torch==2.13.0 2> /dev/null
"$here/env/bin/pip" install --quiet --disable-pip-version-check transformers==5.24.0 accelerate==1.15.0 peft==0.21.2 safetensors==0.8.0 2> /dev/null
cat > "$here/try.py" <<'PY'
import sys
import torch
from peft import LoraConfig, PeftModel, get_peft_model
from transformers import Qwen2Config, Qwen2ForCausalLM

torch.manual_seed(0)
model = Qwen2ForCausalLM(Qwen2Config(
    vocab_size=61, hidden_size=32, intermediate_size=56, num_hidden_layers=2, num_attention_heads=4, num_key_value_heads=2,
))
model.save_pretrained(sys.argv[1] + "/base")
patterns = {"q_proj": 9, r"^model\.layers\.1\..*": 5}
trained = get_peft_model(model, LoraConfig(r=4, target_modules=["q_proj"], alpha_pattern=patterns, init_lora_weights=False))
trained.save_pretrained(sys.argv[1] + "/adapter")
base = Qwen2ForCausalLM.from_pretrained(sys.argv[1] + "/base")
loaded = PeftModel.from_pretrained(base, sys.argv[1] + "/adapter")
name = "base_model.model.model.layers.1.self_attn.q_proj"
scales = [each.get_submodule(name).scaling["default"] for each in (trained, loaded)]
ids = torch.arange(8)[None]
with torch.no_grad():
    differ = (trained.eval()(ids).logits - loaded.eval()(ids).logits).abs().max().item()
print(f"trained with alpha/r {scales[0]}, loaded with {scales[1]}; logits differ by {differ:.3g}")
sys.exit(not (scales == [2.25, 1.25] and differ > 0))
PY
HF_HUB_OFFLINE=1 "$here/env/bin/python" "$here/try.py" "$here" 2> /dev/null
