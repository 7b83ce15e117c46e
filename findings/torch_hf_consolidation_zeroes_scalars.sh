#!/usr/bin/env bash
# torch==2.13.0, safetensors==0.8.0: HuggingFaceStorageWriter(enable_consolidation=True) loses every 0-dim tensor.
#
# A state dict holds a matrix and a scalar (a logit scale, a step count, a BatchNorm counter). torch writes the shards
# rightly, then joins them into one file in its own format. In that file the matrix is right and the scalar is 0.0.
# Nothing is raised or logged. Whoever trusts the consolidated file over the shards gets a model with a wrong scale.
#
# Exits 0 while torch behaves so, 1 once it does not.
set -euo pipefail
here=$(mktemp -d); trap 'rm -rf "$here"' EXIT
python3 -m venv "$here/env"
"$here/env/bin/pip" install --quiet --disable-pip-version-check torch==2.13.0
"$here/env/bin/pip" install --quiet --disable-pip-version-check safetensors==0.8.0 numpy==2.4.6
cat > "$here/try.py" <<'PY'
import sys
from pathlib import Path

import torch
import torch.distributed as dist
import torch.distributed.checkpoint as dcp
from safetensors.torch import load_file
from torch.distributed.checkpoint import HuggingFaceStorageWriter

folder = Path(sys.argv[1])
dist.init_process_group("gloo", store=dist.HashStore(), rank=0, world_size=1)
state = {"weight": torch.arange(6.0).reshape(2, 3), "logit_scale": torch.tensor(2.6592)}
names = {name: 1 for name in state}
writer = HuggingFaceStorageWriter(str(folder), names, save_distributed=True, enable_consolidation=True)
dcp.save(state, storage_writer=writer)
dist.destroy_process_group()
for file in sorted(folder.rglob("*.safetensors")):
    scale = load_file(file)["logit_scale"]
    print(f"{file.relative_to(folder)}: logit_scale = {scale.item():.4f}")
joined = load_file(next(folder.glob("*.safetensors")))
same = torch.equal(joined["weight"], state["weight"])
print("matrix is right:", same, "| scalar is lost:", joined["logit_scale"].item() == 0.0)
sys.exit(not (same and joined["logit_scale"].item() == 0.0))
PY
"$here/env/bin/python" "$here/try.py" "$here/out" 2>/dev/null
