#!/usr/bin/env bash
# transformers==5.24.0: the rope_scaling that Qwen's model cards advise to add for long texts resets the rotary base of a
# config that transformers 5 wrote.
#
# Version 5 saves the base inside rope_parameters, and no rope_theta beside it. Its reader takes a rope_scaling that is not
# null in place of the whole rope_parameters, fills in the base from a rope_theta at the top level or else from the class's
# default, and warns of nothing: 1,000,000 becomes 10,000 where YaRN was meant to be added. A config of version 4, which has
# rope_theta at the top, keeps its base with the same lines.
#
# Exits 0 while it behaves so, 1 once it does not.
set -euo pipefail
here=$(mktemp -d); trap 'rm -rf "$here"' EXIT
python3 -m venv "$here/venv"
"$here/venv/bin/pip" install --quiet --disable-pip-version-check transformers==5.24.0 2> /dev/null
cat > "$here/read.py" <<'PY'
import json
import sys
from pathlib import Path
from transformers import AutoConfig, Qwen2Config

folder = Path(sys.argv[1])
YARN = {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 32768}


def base(**more):
    path = folder / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | more))
    read = AutoConfig.from_pretrained(folder).rope_parameters
    return f"{read['rope_type']} {read['rope_theta']:g}"


sizes = {"max_position_embeddings": 131072}
Qwen2Config(**sizes, rope_parameters={"rope_type": "default", "rope_theta": 1e6}).save_pretrained(folder)
print("saved:", base(), "| with rope_scaling:", base(rope_scaling=YARN), "| and rope_theta:", base(rope_theta=1e6))
PY
HF_HUB_OFFLINE=1 "$here/venv/bin/python" "$here/read.py" "$here/model" 2> "$here/warned" | tee "$here/seen"
! grep -i "rope" "$here/warned"
diff "$here/seen" - <<'SEEN'
saved: default 1e+06 | with rope_scaling: yarn 10000 | and rope_theta: yarn 1e+06
SEEN
