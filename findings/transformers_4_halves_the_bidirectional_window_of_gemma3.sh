#!/usr/bin/env bash
# transformers==4.57.6: each reading of a bidirectional Gemma 3 config halves its sliding window.
#
# With use_bidirectional_attention (EmbeddingGemma sets it) a window of 512 means 512 positions in all, so the config's
# constructor replaces sliding_window by half of it and one. save_pretrained writes the replaced number and not the stated
# one, and from_pretrained runs the constructor again. A model that is loaded and saved twice has a quarter of its window,
# with no warning: the number in a config.json of version 4 tells nothing unless one knows how often it was saved.
# transformers 5.24.0 halves too, but writes the stated number back, so its config stays as it was.
#
# Exits 0 while both behave so, 1 once one does not.
set -euo pipefail
here=$(mktemp -d); trap 'rm -rf "$here"' EXIT
cat > "$here/try.py" <<'PY'
import json
import sys
import transformers
from transformers import AutoConfig

folder = sys.argv[1]
stated = {"model_type": "gemma3_text", "use_bidirectional_attention": True, "sliding_window": 512}
with open(f"{folder}/config.json", "w") as file:
    json.dump(stated, file)
for _ in range(3):
    config = AutoConfig.from_pretrained(folder)
    config.save_pretrained(folder)
    with open(f"{folder}/config.json") as file:
        written = json.load(file)["sliding_window"]
    print(transformers.__version__, "reads", config.sliding_window, "and writes", written)
PY
for version in 4.57.6 5.24.0; do
  python3 -m venv "$here/$version"
  "$here/$version/bin/pip" install --quiet --disable-pip-version-check transformers==$version 2> /dev/null
  mkdir "$here/by-$version"
  HF_HUB_OFFLINE=1 "$here/$version/bin/python" "$here/try.py" "$here/by-$version" 2> /dev/null
done | tee "$here/seen"
diff "$here/seen" - <<'SEEN'
4.57.6 reads 257 and writes 257
4.57.6 reads 129 and writes 129
4.57.6 reads 65 and writes 65
5.24.0 reads 257 and writes 512
5.24.0 reads 257 and writes 512
5.24.0 reads 257 and writes 512
SEEN
