#!/usr/bin/env bash
# transformers==5.23.0: a config.json of Gemma 4 that is loaded and saved has no global_head_dim any more.
#
# Gemma 4 was published with two more keys, global_head_dim and num_global_key_value_heads: the sizes of the heads in layers
# with full attention. transformers 5.12.1 keeps both. 5.23.0 takes them out of the config when it reads them, writes
# per_layer_config instead, one entry for each such layer, and the attribute is gone. A program that reads
# `getattr(config, "global_head_dim", 512)`, as trainers' converters do, gets its default without a word, and 5.12.1 reads
# the file that 5.23.0 wrote with its own default, 512. The plain head_dim, on the other hand, can no longer be read at all.
#
# Exits 0 while transformers behaves so, 1 once it does not.
set -euo pipefail
here=$(mktemp -d); trap 'rm -rf "$here"' EXIT
cat > "$here/try.py" <<'PY'
import json
import sys
import transformers
from transformers import AutoConfig

folder, write = sys.argv[1], sys.argv[2:] == ["write"]
if write:
    published = {
        "model_type": "gemma4_text", "num_hidden_layers": 2, "layer_types": ["sliding_attention", "full_attention"],
        "head_dim": 8, "global_head_dim": 10,
    }
    with open(f"{folder}/config.json", "w") as file:
        json.dump(published, file)
config = AutoConfig.from_pretrained(folder)
try:
    plain = config.head_dim
except Exception:
    plain = "refused"
print(transformers.__version__, "global_head_dim", getattr(config, "global_head_dim", "absent"), "head_dim", plain)
if write:
    config.save_pretrained(folder)
    with open(f"{folder}/config.json") as file:
        saved = json.load(file)
    print(transformers.__version__, "saved", {key: saved[key] for key in ("global_head_dim", "per_layer_config") if key in saved})
PY
for version in 5.12.1 5.23.0; do
    python3 -m venv "$here/$version"
    "$here/$version/bin/pip" install --quiet --disable-pip-version-check transformers==$version 2> /dev/null
done
run() { HF_HUB_OFFLINE=1 "$here/$1/bin/python" "$here/try.py" "$here" ${2:-} 2> /dev/null; }
{ run 5.12.1 write; run 5.23.0 write; run 5.12.1; } | tee "$here/seen"
diff "$here/seen" - <<'SEEN'
5.12.1 global_head_dim 10 head_dim 8
5.12.1 saved {'global_head_dim': 10}
5.23.0 global_head_dim absent head_dim refused
5.23.0 saved {'per_layer_config': {'1': {'head_dim': 10}}}
5.12.1 global_head_dim 512 head_dim 8
SEEN
