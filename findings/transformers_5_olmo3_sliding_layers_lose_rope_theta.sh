#!/usr/bin/env bash
# transformers==5.23.0: a config.json of OLMo 3 in transformers 4's form loses rope_theta in its sliding layers.
#
# Olmo3Config of transformers 5 keeps rotary settings per kind of layer. From a config with the older, flat rope_theta it
# takes the value for the layers with full attention and removes the key; the sliding layers then find no key and get the
# class's default, 500000. With a base of 50000 three of four layers rotate by other angles than in transformers 4, without
# a warning. The same happens to Olmo3Config(rope_theta=50000.0), which OLMo-core's own export calls.
#
# Exits 0 while transformers behaves so, 1 once it does not.
set -euo pipefail
here=$(mktemp -d); trap 'rm -rf "$here"' EXIT
cat > "$here/try.py" <<'PY'
import json
import sys
import transformers
from transformers import AutoConfig, Olmo3Config

folder = sys.argv[1]
with open(f"{folder}/config.json", "w") as file:
    json.dump({"model_type": "olmo3", "num_hidden_layers": 4, "sliding_window": 8, "rope_theta": 50000.0}, file)
read = {"config.json": AutoConfig.from_pretrained(folder), "argument": Olmo3Config(rope_theta=50000.0)}
for how, config in read.items():
    theta = {kind: settings["rope_theta"] for kind, settings in sorted(config.rope_parameters.items())}
    print(transformers.__version__, how, theta)
PY
python3 -m venv "$here/env"
"$here/env/bin/pip" install --quiet --disable-pip-version-check transformers==5.23.0 2> /dev/null
HF_HUB_OFFLINE=1 "$here/env/bin/python" "$here/try.py" "$here" 2> /dev/null | tee "$here/seen"
diff "$here/seen" - <<'SEEN'
5.23.0 config.json {'full_attention': 50000.0, 'sliding_attention': 500000.0}
5.23.0 argument {'full_attention': 50000.0, 'sliding_attention': 500000.0}
SEEN
