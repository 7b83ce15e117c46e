#!/usr/bin/env bash
# torchtune==0.6.1 (torchao==0.9.0): the PEFT adapter that it exports of a Qwen2 is not the one that it trained.
#
# Llama's query and key rows have another order in torchtune than on the Hub, so the exporter permutes the rows of lora_B for
# q_proj and k_proj. It does so for Qwen2 too, whose rows have the Hub's order in torchtune. The merged model in the same
# folder is right: its logits are those of the trained module. The adapter next to it, added to the base as PEFT adds it
# (W + alpha/r · B A), gives other queries and keys. Nothing is raised or logged.
#
# Exits 0 while torchtune behaves so, 1 once it does not.
set -euo pipefail
here=$(mktemp -d); trap 'rm -rf "$here"' EXIT
cat > "$here/try.py" <<'PY'
import pathlib
import sys

import torch
from safetensors.torch import load_file
from torchtune import training
from torchtune.models.llama3 import lora_llama3
from torchtune.models.qwen2 import lora_qwen2
from torchtune.modules.peft import get_adapter_state_dict, get_merged_lora_ckpt
from torchtune.training import FullModelHFCheckpointer
from transformers import AutoModelForCausalLM, LlamaConfig, LlamaForCausalLM, Qwen2Config, Qwen2ForCausalLM

heads = dict(num_hidden_layers=2, num_attention_heads=4, num_key_value_heads=2)
sizes = dict(vocab_size=64, hidden_size=48, intermediate_size=96, tie_word_embeddings=False, initializer_range=0.2, **heads)
own = dict(vocab_size=64, embed_dim=48, intermediate_dim=96, num_layers=2, num_heads=4, num_kv_heads=2, max_seq_len=128)
lora = dict(lora_attn_modules=["q_proj", "k_proj", "v_proj"], lora_rank=3, lora_alpha=6, lora_dropout=0.0)
own["rope_base"], sizes["rms_norm_eps"] = 10000, 1e-5
kinds = {
    "LLAMA3": (LlamaForCausalLM(LlamaConfig(**sizes)), lora_llama3),
    "QWEN2": (Qwen2ForCausalLM(Qwen2Config(**sizes)), lora_qwen2),
}
tokens = torch.arange(20)[None]
for kind, (base, builder) in kinds.items():
    folder, to = (pathlib.Path(sys.argv[1]) / f"{kind}-{end}" for end in ("base", "out"))
    torch.manual_seed(0)
    base.save_pretrained(folder)
    files = FullModelHFCheckpointer(str(folder), ["model.safetensors"], kind, str(to))
    trained = builder(**own, **lora)
    trained.load_state_dict(files.load_checkpoint()[training.MODEL_KEY], strict=False)
    for name, weight in trained.named_parameters():
        if "lora" in name:
            torch.nn.init.normal_(weight, std=0.3)
    whole = get_merged_lora_ckpt({name: weight.clone() for name, weight in trained.state_dict().items()}, 3, 6.0)
    state = {training.MODEL_KEY: whole, training.ADAPTER_KEY: get_adapter_state_dict(trained.state_dict())}
    files.save_checkpoint(state, epoch=0)
    saved = AutoModelForCausalLM.from_pretrained(to / "epoch_0").eval()
    adapter = load_file(to / "epoch_0" / "adapter_model.safetensors")
    with torch.no_grad():
        same = torch.allclose(saved(tokens).logits, trained.eval()(tokens), atol=1e-3)
    print(kind + ", merged model: the trained module's logits" if same else kind + ", merged model: other logits")
    for part in ("q_proj", "k_proj", "v_proj"):
        name = f"model.layers.1.self_attn.{part}"
        low, high = (adapter[f"base_model.model.{name}.lora_{half}.weight"] for half in "AB")
        added = base.state_dict()[f"{name}.weight"] + 2 * high @ low
        equal = torch.allclose(added, saved.state_dict()[f"{name}.weight"], atol=1e-4)
        print(f"{kind}, base and adapter: {part} is", "the merged model's" if equal else "another matrix")
PY
python3 -m venv "$here/env"
pip() { "$here/env/bin/pip" "$@" --quiet --disable-pip-version-check 2> /dev/null; }
pip install torch==2.13.0
pip install torchtune==0.6.1 torchao==0.9.0 transformers==5.24.0 safetensors==0.8.0
HF_HUB_OFFLINE=1 "$here/env/bin/python" "$here/try.py" "$here" 2> /dev/null | grep "," | tee "$here/seen"
diff "$here/seen" - <<'SEEN'
LLAMA3, merged model: the trained module's logits
LLAMA3, base and adapter: q_proj is the merged model's
LLAMA3, base and adapter: k_proj is the merged model's
LLAMA3, base and adapter: v_proj is the merged model's
QWEN2, merged model: the trained module's logits
QWEN2, base and adapter: q_proj is another matrix
QWEN2, base and adapter: k_proj is another matrix
QWEN2, base and adapter: v_proj is the merged model's
SEEN
