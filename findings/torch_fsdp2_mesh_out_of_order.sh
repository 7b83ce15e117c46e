#!/usr/bin/env bash
# torch==2.13.0: on a DeviceMesh whose ranks do not ascend, FSDP2 does not shard by the mesh coordinate.
#
# DeviceMesh("cpu", [1, 0]) puts rank 1 at coordinate 0. fully_shard on it gives rank 1 the SECOND half of the rows: the
# process group behind a mesh dim sorts its ranks, and the collectives follow the group, while get_coordinate() and the
# `_coordinate_on_dim` that is pickled with every DTensor follow the mesh. A reader of saved shards that joins them by
# the pickled coordinate (or by the place of the rank in `mesh`) swaps them; shapes and names look right.
#
# Exits 0 while torch behaves so, 1 once it does not.
set -euo pipefail
here=$(mktemp -d); trap 'rm -rf "$here"' EXIT
python3 -m venv "$here/env"
"$here/env/bin/pip" install --quiet --disable-pip-version-check torch==2.13.0 2> /dev/null
"$here/env/bin/pip" install --quiet --disable-pip-version-check numpy==2.4.6 2> /dev/null
cat > "$here/try.py" <<'PY'
import sys
import torch
import torch.distributed as dist
from torch.distributed.device_mesh import DeviceMesh
from torch.distributed.fsdp import fully_shard

dist.init_process_group("gloo")
linear = torch.nn.Linear(3, 4, bias=False)
with torch.no_grad():
    linear.weight.copy_(torch.arange(4.0)[:, None].expand(4, 3))  # row i holds the number i
mesh = DeviceMesh("cpu", [1, 0])
fully_shard(linear, mesh=mesh)
rows = linear.weight.to_local()[:, 0].tolist()
seen = [None, None]
dist.all_gather_object(seen, (mesh.get_coordinate()[0], rows))
rank = dist.get_rank()
dist.destroy_process_group()
if rank == 0:
    for number, (coordinate, held) in enumerate(seen):
        print(f"rank {number}: mesh coordinate {coordinate}, holds rows {held}")
    sys.exit(seen != [(1, [0.0, 1.0]), (0, [2.0, 3.0])])
PY
"$here/env/bin/python" -m torch.distributed.run --standalone --nproc-per-node 2 "$here/try.py" 2> /dev/null
