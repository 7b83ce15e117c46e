"""The shapes of whole parameters, as the optimizer's metadata next to a model's shards states them.

A shard's header says where its parts begin, but not how large their tensors are: without the last rank's file, a tensor
seems to end earlier. NeMo-Automodel saves the optimizer by DCP in `optim/` (components/checkpoint/checkpointing.py,
save_optimizer), and its moments have the parameters' shapes.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from ckptconv.backends.dcp.homes import optimizer_folders
from ckptconv.backends.dcp.layout import is_dcp
from ckptconv.backends.dcp.metadata import read_metadata
from ckptconv.errors import Incomplete
from ckptconv.tensors.checkpoint import StoredTensor

_MOMENTS = (".exp_avg", ".exp_avg_sq", ".momentum_buffer")  # torch/optim
_STATE = ".state."  # optim.state.NAME.exp_avg


def are_whole(home: Path, tensors: Mapping[str, StoredTensor]) -> bool:
    """Compare tensors with the shapes of the optimizer's moments.

    Args:
        home: the folder of the model's shards.
        tensors: the tensors as the shards that are here make them.

    Returns:
        True if the optimizer has moments of every tensor's shape; False if it does not say.

    Raises:
        Incomplete: a tensor is smaller than its moments.
    """
    shapes = _shapes(home)
    for name, tensor in tensors.items():
        whole = shapes.get(name)
        if whole is not None and whole != tensor.view.shape:
            raise Incomplete(
                f"the shards of {name} are incomplete: the optimizer next to them knows a larger one",
                where=home,
                found=str(list(tensor.view.shape)),
                wanted=str(list(whole)),
                hint="a rank's file is missing: copy it from its node, or name its folder with --also",
            )
    return bool(tensors) and all(name in shapes for name in tensors)


def _shapes(home: Path) -> dict[str, tuple[int, ...]]:
    """Return parameter -> the shape of its moments."""
    found = {}
    for folder in filter(is_dcp, optimizer_folders(home)):
        metadata = read_metadata(folder)
        for name in metadata.table:
            end = next((end for end in _MOMENTS if name.endswith(end)), None)
            shape = metadata.shape(name) if end and _STATE in name else None
            if end and shape:
                found[name.removesuffix(end).split(_STATE, 1)[1]] = shape
    return found
