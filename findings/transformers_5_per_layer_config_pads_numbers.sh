#!/usr/bin/env bash
# transformers==5.24.0: per_layer_config in config.json numbers layer 5 as "05" in a model of 12 layers, and as "5" in one of 10.
#
# per_layer_config holds what single layers have otherwise than the rest, such as Gemma 4's wider heads in its layers with
# full attention. Its keys are layer numbers as text. save_pretrained pads them with zeros to the width of the last layer's
# number, so that they sort; for_layer = config["per_layer_config"].get(str(5)) finds nothing in the larger model, and a
# reader then takes the common head_dim for that layer. transformers itself turns the keys into numbers when it loads them, and
# takes "5" as well.
#
# Exits 0 while transformers behaves so, 1 once it does not.
set -euo pipefail
here=$(mktemp -d); trap 'rm -rf "$here"' EXIT
cat > "$here/try.py" <<'PY'
import json
import transformers
from transformers import Gemma4TextConfig

print(transformers.__version__)
for layers in (10, 12):
    kinds = ["full_attention" if n in (5, layers - 1) else "sliding_attention" for n in range(layers)]
    config = Gemma4TextConfig(num_hidden_layers=layers, layer_types=kinds, head_dim=8, global_head_dim=10)
    saved = json.loads(config.to_json_string())
    again = Gemma4TextConfig.from_dict(saved)
    plain = {str(int(number)): own for number, own in saved["per_layer_config"].items()}
    unpadded = Gemma4TextConfig.from_dict({**saved, "per_layer_config": plain})
    read = [each.per_layer_config[5].head_dim for each in (again, unpadded)]
    print(layers, "layers:", saved["per_layer_config"], "get('5')", saved["per_layer_config"].get("5"), "read", read)
PY
python3 -m venv "$here/venv"
"$here/venv/bin/pip" install --quiet --disable-pip-version-check transformers==5.24.0 2> /dev/null
HF_HUB_OFFLINE=1 "$here/venv/bin/python" "$here/try.py" 2> /dev/null | tee "$here/seen"
diff "$here/seen" - <<'SEEN'
5.24.0
10 layers: {'5': {'head_dim': 10}, '9': {'head_dim': 10}} get('5') {'head_dim': 10} read [10, 10]
12 layers: {'05': {'head_dim': 10}, '11': {'head_dim': 10}} get('5') None read [10, 10]
SEEN
