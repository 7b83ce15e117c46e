#!/usr/bin/env bash
# llama.cpp in llama-cpp-python==0.3.36: the converter to GGUF writes no rotary base for GPT-NeoX, Falcon and StableLM.
#
# The base is a standard key of GGUF (ARCH.rope.freq_base), and the converter writes it for Llama from the same config keys.
# The three classes list their keys themselves, and the base is not among them. The run time then takes 10000, which is the
# base of the published models, so nobody sees it until a model is trained with a longer context and another base: the file
# loads, the text is other text, and neither side warns. The number of rotary dimensions, stated in the same place, is kept.
#
# Shows the keys that the converter sets for one config of each class; the vocabulary is left out, as it has no part in it.
# Exits 0 while the base is missing, 1 once it is not.
set -euo pipefail
here=$(mktemp -d); trap 'rm -rf "$here"' EXIT
cat > "$here/try.py" <<'PY'
import json
import pathlib
import sys

import numpy
from safetensors.numpy import save_file

here = pathlib.Path(sys.argv[1])
sys.path[:0] = [str(here / "llama.cpp"), str(here / "llama.cpp/gguf-py")]
import gguf
from conversion import get_model_class

stated = {
    "hidden_size": 64, "num_attention_heads": 4, "num_key_value_heads": 4, "num_kv_heads": 4, "num_hidden_layers": 1,
    "intermediate_size": 128, "max_position_embeddings": 4096, "layer_norm_eps": 1e-5, "layer_norm_epsilon": 1e-5,
    "rms_norm_eps": 1e-5, "rotary_pct": 0.5, "rotary_emb_base": 1e6, "partial_rotary_factor": 0.5, "rope_theta": 1e6,
    "use_parallel_residual": True, "vocab_size": 32, "hidden_act": "silu", "n_head": 4, "n_layer": 1,
}
for name in ("LlamaForCausalLM", "GPTNeoXForCausalLM", "FalconForCausalLM", "StableLmForCausalLM"):
    folder = here / name
    folder.mkdir()
    (folder / "config.json").write_text(json.dumps(stated | {"architectures": [name]}))
    save_file({"none": numpy.zeros(1, "float32")}, folder / "model.safetensors")
    model = get_model_class(name)(folder, gguf.LlamaFileType.ALL_F32, folder / "out.gguf", hparams=stated | {"architectures": [name]})
    model.set_gguf_parameters()
    keys = {key: value.value for part in model.gguf_writer.kv_data for key, value in part.items()}
    base = next((value for key, value in keys.items() if key.endswith("rope.freq_base")), None)
    print(name, "rotary base of 1000000:", "missing" if base is None else f"{base:.0f}")
PY
python3 -m venv "$here/env"
pip() { "$here/env/bin/pip" "$@" --quiet --disable-pip-version-check 2> /dev/null; }
pip install torch==2.13.0 transformers==4.57.6 safetensors==0.8.0 sentencepiece==0.2.3
pip download --no-deps --no-binary llama-cpp-python -d "$here" llama-cpp-python==0.3.36
mkdir "$here/llama.cpp"
tar xzf "$here/llama_cpp_python-0.3.36.tar.gz" -C "$here/llama.cpp" --strip-components 3 --wildcards '*/vendor/llama.cpp/*'
"$here/env/bin/python" "$here/try.py" "$here" 2> /dev/null | tee "$here/seen"
grep "rope_freq_base_train = 10000" "$here/llama.cpp/src/llama-model.cpp" | tr -s ' ' | tee -a "$here/seen"
diff "$here/seen" - <<'SEEN'
LlamaForCausalLM rotary base of 1000000: 1000000
GPTNeoXForCausalLM rotary base of 1000000: missing
FalconForCausalLM rotary base of 1000000: missing
StableLmForCausalLM rotary base of 1000000: missing
 hparams.rope_freq_base_train = 10000.0f;
SEEN
