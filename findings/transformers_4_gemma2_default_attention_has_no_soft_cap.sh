#!/usr/bin/env bash
# transformers==4.57.6: Gemma 2 as from_pretrained loads it computes attention without its soft cap.
#
# config.json states attn_logit_softcapping: the scores of attention are capped by a tanh. The default there is
# torch's scaled_dot_product_attention, which has no cap, and nothing tells so: no warning, no error, other logits. With
# attn_implementation="eager" the cap is applied. transformers 5.24.0 chooses eager itself, and refuses sdpa for this class.
# So two readers of one folder disagree, and the one with the defaults of the older version is not the trained model.
#
# The cap is 1 here and not 50, so that a random model of this size reaches it.
#
# Exits 0 while both behave so, 1 once one does not.
set -euo pipefail
here=$(mktemp -d); trap 'rm -rf "$here"' EXIT
cat > "$here/read.py" <<'PY'
import sys
import torch
import transformers
from transformers import Gemma2Config, Gemma2ForCausalLM

folder = sys.argv[1]
if sys.argv[2:] == ["write"]:
    torch.manual_seed(0)
    sizes = dict(vocab_size=64, hidden_size=32, intermediate_size=48, num_hidden_layers=2, head_dim=8)
    heads = dict(num_attention_heads=4, num_key_value_heads=2, query_pre_attn_scalar=8)
    caps = dict(attn_logit_softcapping=1.0, final_logit_softcapping=None, initializer_range=0.5)
    Gemma2ForCausalLM(Gemma2Config(**sizes, **heads, **caps)).save_pretrained(folder)


def logits(**options):
    model = Gemma2ForCausalLM.from_pretrained(folder, dtype=torch.float32, **options).eval()
    with torch.no_grad():
        return model.config._attn_implementation, model(torch.arange(12)[None]).logits


default, found = logits()
_, capped = logits(attn_implementation="eager")
apart = bool((found - capped).abs().max() > 0.1 * capped.abs().max())
try:
    asked = logits(attn_implementation="sdpa")[0]
except ValueError:
    asked = "refused"
print(transformers.__version__, "default", default, "| far from eager", apart, "| sdpa", asked)
PY
for version in 4.57.6 5.24.0; do
  python3 -m venv "$here/$version"
  "$here/$version/bin/pip" install --quiet --disable-pip-version-check torch==2.13.0 2> /dev/null
  "$here/$version/bin/pip" install --quiet --disable-pip-version-check transformers==$version safetensors==0.8.0 2> /dev/null
done
run() { HF_HUB_OFFLINE=1 "$here/$1/bin/python" "$here/read.py" "$here/model" ${2:-} 2> /dev/null; }
{ run 4.57.6 write; run 5.24.0; } | tee "$here/seen"
diff "$here/seen" - <<'SEEN'
4.57.6 default sdpa | far from eager True | sdpa sdpa
5.24.0 default eager | far from eager False | sdpa refused
SEEN
