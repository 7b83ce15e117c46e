"""Facts about the trainer from Megatron's files: the iteration, the parallel sizes, and whether it was Megatron-Bridge."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

from ckptconv.backends.base import Fact
from ckptconv.errors import CkptconvError
from ckptconv.formats.inert import Inert
from ckptconv.formats.torch_zip import open_torch_zip
from ckptconv.tensors.checkpoint import Checkpoint
from ckptconv.tensors.look import is_file
from ckptconv.tensors.stored_file import path_of

# Megatron's arguments (in common.pt and rank files) about parallelism, and their short names for the user.
_ARGS = {
    "world_size": "world size",
    "tensor_model_parallel_size": "tp",
    "pipeline_model_parallel_size": "pp",
    "virtual_pipeline_model_parallel_size": "vpp",
    "context_parallel_size": "cp",
    "expert_model_parallel_size": "ep",
    "expert_tensor_parallel_size": "etp",
}


def saved_by(checkpoint: Checkpoint) -> Iterator[Fact]:
    """See `Backend.saved_by`."""
    shards = path_of(checkpoint.files[0].path).parent if checkpoint.files else checkpoint.root
    if is_file(shards / "run_config.yaml"):
        yield Fact("trainer", "Megatron-Bridge", "run_config.yaml")
    names = ("common.pt", "model_optim_rng.pt")
    name = next((name for name in names if is_file(shards / name)), names[0])
    root = _root(shards / name)
    if type(root.get("iteration")) is int and root["iteration"]:
        yield Fact("Megatron", f"iteration {root['iteration']}", name)
    args = root.get("args")
    stated = args.state if isinstance(args, Inert) and isinstance(args.state, dict) else {}
    sizes = [f"{word} {stated[key]}" for key, word in _ARGS.items() if type(stated.get(key)) is int]
    yield Fact("arguments", ", ".join(sizes), name)


def _root(path: Path) -> dict[Any, Any]:
    """The dict in a torch.save file; {} if it cannot be read."""
    try:
        root = open_torch_zip(str(path)).root if is_file(path) else {}
    except CkptconvError:
        return {}
    return root if isinstance(root, dict) else {}
