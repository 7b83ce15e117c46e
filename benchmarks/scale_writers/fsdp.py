"""verl's FSDP2 rank files: torch.save of a state dict of real DTensors, with `skip_data`, so that storages are holes.

The process group is torch's own "fake" one, of any size; for each rank the mesh is told that this is its place,
and hashes differ from rank to rank as they do between processes.
"""

from __future__ import annotations

import json
from array import array
from pathlib import Path
from random import Random

import torch
import torch.distributed as dist
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.tensor import DTensor, Shard
from torch.distributed.tensor._dtensor_spec import DTensorSpec, TensorMeta
from torch.testing._internal.distributed.fake_pg import FakeStore

from benchmarks.scale_writers.model import Model, chunk


def write(model: Model, ranks: int, run: Path) -> None:
    """RUN/global_step_1/actor of `ranks` files; masters in fp32, each cut along dim 0."""
    actor = run / "global_step_1" / "actor"
    (actor / "huggingface").mkdir(parents=True)
    (actor / "huggingface" / "config.json").write_text(json.dumps(model.config))
    (actor / "fsdp_config.json").write_text(json.dumps({"FSDP_version": 2, "world_size": ranks}))
    dist.init_process_group("fake", rank=0, world_size=ranks, store=FakeStore())
    random = Random(1)
    try:
        mesh = init_device_mesh("cpu", (ranks,), mesh_dim_names=("fsdp",))
        specs = {
            name: DTensorSpec(
                mesh,
                (Shard(0),),
                TensorMeta(torch.Size(shape), torch.empty(shape, device="meta").stride(), torch.float32),
            )
            for name, shape in model.shapes.items()
        }
        for rank in range(ranks):
            mesh._coordinate_on_dim, mesh._rank = (rank,), rank
            for each in (mesh, *specs.values()):
                each._hash = random.getrandbits(63)  # a process's own, of its salt for strings
            state = {
                name: DTensor(
                    torch.empty((chunk(shape[0], ranks, rank)[1], *shape[1:])),
                    specs[name],
                    requires_grad=False,
                )
                for name, shape in model.shapes.items()
            }
            path = actor / f"model_world_size_{ranks}_rank_{rank}.pt"
            with torch.serialization.skip_data():
                torch.save(state, path)
            _fill_mesh(path, ranks)
    finally:
        dist.destroy_process_group()


def _fill_mesh(path: Path, ranks: int) -> None:
    """Write the ranks of the mesh, the one storage of a rank file that a reader needs for its plan, into its hole."""
    reader, ranks_of_mesh = torch._C.PyTorchFileReader(str(path)), array("i", range(ranks))
    mesh = "data/1"  # after the first tensor's own storage
    assert reader.get_record_size(mesh) == len(ranks_of_mesh) * ranks_of_mesh.itemsize
    with path.open("r+b") as file:
        file.seek(reader.get_record_offset(mesh))
        file.write(ranks_of_mesh.tobytes())
