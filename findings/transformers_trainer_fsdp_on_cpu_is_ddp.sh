#!/usr/bin/env bash
# transformers==5.23.0 with accelerate==1.15.0: a Trainer that is asked for FSDP2 on CPUs trains under DDP, and nothing says so.
#
# torch's fully_shard works on CPUs under gloo, and TrainingArguments takes fsdp and use_cpu together. The Trainer then builds
# no FSDP plugin that anything uses: the distributed type is MULTI_CPU, the model is wrapped in DistributedDataParallel, and
# state_dict_type SHARDED_STATE_DICT has no effect: the checkpoint is one plain model.safetensors without a
# pytorch_model_fsdp_0 folder. A test of sharded saving that runs on CPUs passes and tests nothing.
#
# Exits 0 while they behave so, 1 once they do not.
set -euo pipefail
here=$(mktemp -d); trap 'rm -rf "$here"' EXIT
python3 -m venv "$here/env"
"$here/env/bin/pip" install --quiet --disable-pip-version-check torch==2.13.0 2> /dev/null
"$here/env/bin/pip" install --quiet --disable-pip-version-check transformers==5.23.0 accelerate==1.15.0 safetensors==0.8.0 2> /dev/null
cat > "$here/try.py" <<'PY'
import os, sys
import torch
from transformers import Qwen3Config, Qwen3ForCausalLM, Trainer, TrainingArguments

model = Qwen3ForCausalLM(Qwen3Config(
    vocab_size=61, hidden_size=32, intermediate_size=56, num_hidden_layers=1, num_attention_heads=4, num_key_value_heads=2,
))
args = TrainingArguments(
    output_dir=sys.argv[1], max_steps=1, save_steps=1, per_device_train_batch_size=1, report_to=[], disable_tqdm=True,
    use_cpu=True, ddp_backend="gloo", fsdp=True,
    fsdp_config={
        "fsdp_version": 2, "state_dict_type": "SHARDED_STATE_DICT", "transformer_layer_cls_to_wrap": ["Qwen3DecoderLayer"],
    },
)
trainer = Trainer(model, args, train_dataset=[{"input_ids": torch.arange(8), "labels": torch.arange(8)}] * 2)
trainer.train()
if os.environ["RANK"] == "0":
    names = sorted(os.listdir(sys.argv[1] + "/checkpoint-1"))
    kind, wrapper = trainer.accelerator.distributed_type.name, type(trainer.model_wrapped).__name__
    print("distributed type:", kind, "| wrapper:", wrapper, "| fsdp folder:", any("fsdp" in name for name in names),
          "| model.safetensors:", "model.safetensors" in names)
    with open(sys.argv[1] + "/result", "w") as file:
        file.write(str(kind == "MULTI_CPU" and wrapper == "DistributedDataParallel" and "model.safetensors" in names))
PY
HF_HUB_OFFLINE=1 OMP_NUM_THREADS=1 "$here/env/bin/python" -m torch.distributed.run --standalone --nproc-per-node 2 \
    "$here/try.py" "$here/out" 2> "$here/log" || { tail -5 "$here/log"; exit 1; }
echo "stderr mentions FSDP being off: $(grep -ciE 'fsdp.*(ignor|cpu|disab|off)|not.*fsdp' "$here/log" || true) times"
grep -q True "$here/out/result"
