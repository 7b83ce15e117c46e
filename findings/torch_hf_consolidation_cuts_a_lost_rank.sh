#!/usr/bin/env bash
# torch==2.13.0, safetensors==0.8.0: consolidate_safetensors_files joins the shards that are there, and a lost one goes unseen.
#
# HuggingFaceStorageWriter(save_distributed=True) writes one shard per rank. A shard's header says where its parts begin, but
# not how large their tensors are. Without the last rank's file the consolidated tensor has fewer rows; without one in the
# middle its rows are zeros. Nothing is raised or logged, and the file loads.
#
# Exits 0 while torch behaves so, 1 once it does not.
set -euo pipefail
here=$(mktemp -d); trap 'rm -rf "$here"' EXIT
python3 -m venv "$here/env"
"$here/env/bin/pip" install --quiet --disable-pip-version-check torch==2.13.0
"$here/env/bin/pip" install --quiet --disable-pip-version-check safetensors==0.8.0 numpy==2.4.6
cat > "$here/save.py" <<'PY'
import os, sys

import torch
import torch.distributed as dist
import torch.distributed.checkpoint as dcp
from torch.distributed.tensor import Shard, distribute_tensor, init_device_mesh

dist.init_process_group("gloo")
whole = torch.arange(1.0, 25.0).reshape(6, 4)
state = {"weight": distribute_tensor(whole, init_device_mesh("cpu", (3,)), [Shard(0)])}
dcp.save(state, storage_writer=dcp.HuggingFaceStorageWriter(sys.argv[1], save_distributed=True))
dist.barrier()
os._exit(0)
PY
cat > "$here/join.py" <<'PY'
import shutil, sys
from pathlib import Path

from safetensors.torch import load_file
from torch.distributed.checkpoint._consolidate_hf_safetensors import consolidate_safetensors_files


def without(rank):
    """Consolidate the shards of the other ranks."""
    copy = shutil.copytree(sys.argv[1], f"{sys.argv[1]}-{rank}")
    Path(copy, f"shard-0000{rank + 1}-model-00001-of-00001.safetensors").unlink()
    out = Path(f"{copy}-out")
    out.mkdir()
    consolidate_safetensors_files(copy, str(out), fqn_to_index_mapping={"weight": 1})
    return load_file(next(out.glob("*.safetensors")))["weight"]


last, middle = without(2), without(1)
print("without rank 2 of 3: shape", list(last.shape), "of [6, 4]")
print("without rank 1 of 3: shape", list(middle.shape), "rows 2 and 3:", middle[2:4].unique().tolist())
sys.exit(not (list(last.shape) == [4, 4] and list(middle.shape) == [6, 4] and not middle[2:4].any()))
PY
OMP_NUM_THREADS=1 "$here/env/bin/python" -m torch.distributed.run --standalone --nproc-per-node 3 "$here/save.py" "$here/out" 2> /dev/null
"$here/env/bin/python" "$here/join.py" "$here/out" 2> /dev/null
