#!/usr/bin/env bash
# deepspeed==0.19.8: zero_to_fp32 leaves frozen weights out at ZeRO stage 1, without a word, and keeps them at stage 2.
#
# Both checkpoints hold the whole model in mp_rank_00_model_states.pt. At stages 2 and 3 the engine also lists the frozen
# parameters there (frozen_param_shapes, frozen_param_fragments), at stage 1 it does not, and the script that DeepSpeed copies
# into every checkpoint folder writes only what the lists name. A LoRA or a frozen-embedding run of stage 1 thus becomes
# a state dict without its frozen weights, with exit code 0. They are not lost: `module` in the model file has them.
#
# Exits 0 while DeepSpeed behaves so, 1 once it does not.
set -euo pipefail
here=$(mktemp -d); trap 'rm -rf "$here"' EXIT
python3 -m venv "$here/env"
"$here/env/bin/pip" install --quiet --disable-pip-version-check torch==2.13.0 2> /dev/null
"$here/env/bin/pip" install --quiet --disable-pip-version-check numpy==2.4.6 setuptools wheel hjson msgpack ninja psutil \
  py-cpuinfo 'pydantic>=2' tqdm einops 2> /dev/null
DS_BUILD_OPS=0 "$here/env/bin/pip" install --quiet --disable-pip-version-check --no-deps --no-build-isolation deepspeed==0.19.8 2> /dev/null
cat > "$here/save.py" <<'PY'
import os, sys

os.environ.update(DS_ACCELERATOR="cpu", RANK="0", LOCAL_RANK="0", WORLD_SIZE="1", MASTER_ADDR="127.0.0.1", MASTER_PORT="29517")
import deepspeed, torch

sys.modules["deepspeed.comm.torch"].build_shm_op = lambda: None  # no C++ to compile
deepspeed.init_distributed("gloo", verbose=False)
stage, folder = int(sys.argv[1]), sys.argv[2]
model = torch.nn.Sequential(torch.nn.Linear(6, 5), torch.nn.Linear(5, 3))
model[0].requires_grad_(False)
settings = {"train_micro_batch_size_per_gpu": 1, "bf16": {"enabled": True}, "zero_optimization": {"stage": stage},
            "zero_allow_untested_optimizer": True, "zero_force_ds_cpu_optimizer": False}
optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad])
engine, *_ = deepspeed.initialize(model=model, optimizer=optimizer, config=settings)
engine.save_checkpoint(folder)
from deepspeed.utils.zero_to_fp32 import get_fp32_state_dict_from_zero_checkpoint as merged

names = sorted(merged(folder))
held = sorted(torch.load(f"{folder}/global_step0/mp_rank_00_model_states.pt", weights_only=False)["module"])
print(f"stage {stage}: the model file holds {held}\n         zero_to_fp32 gives {names}")
trained = ["1.bias", "1.weight"]
whole = ["0.bias", "0.weight", *trained]
sys.stdout.flush()
os._exit(not (held == whole and names == (trained if stage == 1 else whole)))
PY
"$here/env/bin/python" "$here/save.py" 1 "$here/one" 2> /dev/null | grep -A1 ^stage
"$here/env/bin/python" "$here/save.py" 2 "$here/two" 2> /dev/null | grep -A1 ^stage
