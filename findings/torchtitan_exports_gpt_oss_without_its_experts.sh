#!/usr/bin/env bash
# torchtitan==0.3.0: the export of gpt-oss to Hugging Face names leaves out every expert, and says nothing.
#
# 0.3.0 renamed the experts' parameters (routed_experts.inner_experts.mlp1_weight_EGD and so on). The adapter of gpt-oss
# still looks for the former names, and its to_hf drops what it does not know without a word: of a model, attention, norms,
# sinks and the router come out, which is a small part of its weights. from_hf does not bring the experts back. The adapter
# of Qwen3-MoE in the same release knows the new names.
#
# Exits 0 while torchtitan behaves so, 1 once it does not.
set -euo pipefail
here=$(mktemp -d); trap 'rm -rf "$here"' EXIT
cat > "$here/try.py" <<'PY'
import logging

import torch
from torchtitan.models import gpt_oss, qwen3
from torchtitan.models.common import CosSinRoPE, Embedding, Linear, RMSNorm

logging.basicConfig(level=logging.WARNING, format="warning: %(message)s")
ends = {
    "dim": 16, "vocab_size": 32, "tok_embeddings": Embedding.Config(num_embeddings=32, embedding_dim=16),
    "norm": RMSNorm.Config(normalized_shape=16), "lm_head": Linear.Config(in_features=16, out_features=32),
}
both = dict(dim=16, n_layers=2, num_experts=4, top_k=2, attn_backend="flex", moe_comm_backend="standard")
rope = CosSinRoPE.Config(dim=64, max_seq_len=64, theta=150000.0)
layers = gpt_oss._build_gptoss_layers(**both, hidden_dim=24, load_balance_coeff=1e-3, rope=rope)
oss = gpt_oss.GptOssModel.Config(layers=layers, **ends)
layers = qwen3._build_qwen3_moe_layers(**both, moe_hidden_dim=24, n_heads=2, n_kv_heads=1, head_dim=64, rope=rope)
qwen = qwen3.Qwen3Model.Config(layers=layers, **ends)
for config, adapter in ((qwen, qwen3.Qwen3StateDictAdapter), (oss, gpt_oss.GptOssStateDictAdapter)):
    state = {name: torch.zeros(each.shape) for name, each in config.build().state_dict().items()}
    exported = adapter(config, None).to_hf(dict(state))
    stored = sum(each.numel() for name, each in state.items() if "inner_experts" in name)
    written = sum(each.numel() for name, each in exported.items() if "experts" in name)
    rest = sum(each.numel() for name, each in exported.items() if "experts" not in name)
    print(f"{adapter.__name__}: {written} of {stored} numbers of experts are exported, {rest} others")
PY
python3 -m venv "$here/env"
pip() { "$here/env/bin/pip" "$@" --quiet --disable-pip-version-check 2> /dev/null; }
pip install torch==2.13.0
pip install --no-deps torchtitan==0.3.0 spmd_types==0.2.3
pip install triton==3.9.0 tyro==1.0.17 numpy==2.4.6
"$here/env/bin/python" "$here/try.py" 2>&1 | grep -E "Adapter:|warning: .*expert" | tee "$here/seen"
diff "$here/seen" - <<'SEEN'
Qwen3StateDictAdapter: 9216 of 9216 numbers of experts are exported, 13776 others
GptOssStateDictAdapter: 0 of 9728 numbers of experts are exported, 306552 others
SEEN
