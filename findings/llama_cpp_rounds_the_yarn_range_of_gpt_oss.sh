#!/usr/bin/env bash
# llama.cpp in llama-cpp-python==0.3.36: GPT-OSS is run with other rotary frequencies than its config.json states.
#
# YaRN blends scaled and unscaled frequencies over a range of dimensions. Most models round the ends of that range to whole
# dimensions; the published GPT-OSS states "truncate": false, and transformers computes it so. The converter to GGUF drops
# the key: a config with true and one with false give the same file. The run time always rounds (floorf and ceilf). With the
# published numbers (heads of 64, base 150000, factor 32 over 4096 positions) the range is 8 to 18 in place of 8.09 to 17.4.
#
# Shows the keys of the file, the two lines of the run time, and transformers' frequencies with and without rounding; the
# vocabulary and the weights are left out, as they have no part in it.
#
# Exits 0 while llama.cpp behaves so, 1 once it does not.
set -euo pipefail
here=$(mktemp -d); trap 'rm -rf "$here"' EXIT
cat > "$here/try.py" <<'PY'
import json
import pathlib
import sys

import numpy
from safetensors.numpy import save_file
from transformers import GptOssConfig
from transformers.modeling_rope_utils import ROPE_INIT_FUNCTIONS

here = pathlib.Path(sys.argv[1])
sys.path[:0] = [str(here / "llama.cpp"), str(here / "llama.cpp/gguf-py")]
import gguf
from conversion import get_model_class

stated = {
    "architectures": ["GptOssForCausalLM"], "hidden_size": 64, "num_attention_heads": 4, "num_key_value_heads": 2,
    "num_hidden_layers": 2, "intermediate_size": 64, "max_position_embeddings": 131072, "rms_norm_eps": 1e-5, "head_dim": 64,
    "rope_theta": 150000, "num_local_experts": 4, "num_experts_per_tok": 2, "sliding_window": 128, "vocab_size": 32,
}
yarn = {"rope_type": "yarn", "factor": 32.0, "beta_fast": 32.0, "beta_slow": 1.0, "original_max_position_embeddings": 4096}
keys, frequencies = [], []
for truncate in (False, True):
    config = stated | {"rope_scaling": yarn | {"truncate": truncate}}
    frequencies.append(ROPE_INIT_FUNCTIONS["yarn"](GptOssConfig(**config), "cpu")[0].numpy())
    folder = here / f"truncate-{truncate}"
    folder.mkdir()
    (folder / "config.json").write_text(json.dumps(config))
    save_file({"none": numpy.zeros(1, "float32")}, folder / "model.safetensors")
    model = get_model_class("GptOssForCausalLM")(folder, gguf.LlamaFileType.ALL_F32, folder / "out.gguf", hparams=config)
    model.set_gguf_parameters()
    keys.append({key: value.value for part in model.gguf_writer.kv_data for key, value in part.items()})
print("truncate false and true:", "the same keys" if keys[0] == keys[1] else "other keys", "in the file")
apart = abs(frequencies[1] / frequencies[0] - 1)
print(f"frequencies that rounding changes: {(apart > 1e-5).sum()} of {len(apart)}, by up to {apart.max():.1%}")
PY
python3 -m venv "$here/env"
pip() { "$here/env/bin/pip" "$@" --quiet --disable-pip-version-check 2> /dev/null; }
pip install torch==2.13.0
pip install transformers==4.57.6 safetensors==0.8.0 sentencepiece==0.2.3
pip download --no-deps --no-binary llama-cpp-python -d "$here" llama-cpp-python==0.3.36
mkdir "$here/llama.cpp"
tar xzf "$here/llama_cpp_python-0.3.36.tar.gz" -C "$here/llama.cpp" --strip-components 3 --wildcards '*/vendor/llama.cpp/*'
"$here/env/bin/python" "$here/try.py" "$here" 2> /dev/null | tee "$here/seen"
grep -oE "(floorf|ceilf)\(ggml_rope_yarn_corr_dim\(.*beta_(fast|slow)" "$here/llama.cpp/ggml/src/ggml.c" | tee -a "$here/seen"
diff "$here/seen" - <<'SEEN'
truncate false and true: the same keys in the file
frequencies that rounding changes: 9 of 32, by up to 76.3%
floorf(ggml_rope_yarn_corr_dim(n_dims, n_ctx_orig, beta_fast
ceilf(ggml_rope_yarn_corr_dim(n_dims, n_ctx_orig, beta_slow
SEEN
