#!/usr/bin/env bash
# transformers==5.23.0: which part of config.json decides whether the head is tied depends on the model class.
#
# A model that sees has two places for `tie_word_embeddings`: the top of config.json and its `text_config`. Qwen3-VL reads the
# top alone and takes false where it states nothing; InternVL reads the top alone and takes true; GLM-4V ties if either is
# true. So one and the same statement in `text_config` is ignored by two classes, in opposite ways, and obeyed by a third.
# A folder whose text_config alone says "tied", without a head in its weights, gets a new random head in Qwen3-VL; one whose
# text_config alone says "not tied" has its stored head replaced by the embedding in InternVL.
#
# Exits 0 while the classes behave so, 1 once they do not.
set -euo pipefail
here=$(mktemp -d); trap 'rm -rf "$here"' EXIT
python3 -m venv "$here/env"
"$here/env/bin/pip" install --quiet --disable-pip-version-check torch==2.13.0 2> /dev/null
"$here/env/bin/pip" install --quiet --disable-pip-version-check transformers==5.23.0 2> /dev/null
cat > "$here/try.py" <<'PY'
import torch
from transformers import AutoConfig, AutoModelForImageTextToText

text = dict(vocab_size=31, hidden_size=16, num_hidden_layers=1, num_attention_heads=2, num_key_value_heads=1, intermediate_size=20)
qwen = dict(depth=1, hidden_size=8, num_heads=2, intermediate_size=12, out_hidden_size=16, patch_size=2)
intern = dict(hidden_size=8, intermediate_size=12, num_hidden_layers=1, num_attention_heads=2, image_size=[8, 8], patch_size=[2, 2])
models = {
    "qwen3_vl": (text | {"head_dim": 8}, qwen | {"num_position_embeddings": 16, "deepstack_visual_indexes": [0]}),
    "glm4v": (text, qwen | {"image_size": 8}),
    "internvl": (text | {"model_type": "qwen2"}, intern),
}
for model_type, (language, vision) in models.items():
    for top, inside in ((None, True), (None, False), (False, True)):
        stated = {} if top is None else {"tie_word_embeddings": top}
        language = language | {"tie_word_embeddings": inside}
        config = AutoConfig.for_model(model_type, text_config=language, vision_config=vision, **stated)
        with torch.device("meta"):
            model = AutoModelForImageTextToText.from_config(config)
        tied = model.get_output_embeddings().weight is model.get_input_embeddings().weight
        print(f"{model_type}: top {top}, text_config {inside} -> {'tied' if tied else 'not tied'}")
PY
HF_HUB_OFFLINE=1 "$here/env/bin/python" -W ignore "$here/try.py" 2> /dev/null | tee "$here/seen"
diff "$here/seen" - <<'SEEN'
qwen3_vl: top None, text_config True -> not tied
qwen3_vl: top None, text_config False -> not tied
qwen3_vl: top False, text_config True -> not tied
glm4v: top None, text_config True -> tied
glm4v: top None, text_config False -> not tied
glm4v: top False, text_config True -> tied
internvl: top None, text_config True -> tied
internvl: top None, text_config False -> tied
internvl: top False, text_config True -> not tied
SEEN
