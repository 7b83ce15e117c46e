"""Reads Megatron-FSDP's checkpoints (`--ckpt-format fsdp_dtensor`): torch DCP with Megatron's module names.

RUN/iter_NNNNNNN/.metadata describes one state dict with the keys `model.module.NAME`, `optimizer.…`, `args` and
`rng_state.(PP, TP).…` (megatron/training/checkpointing.py, generate_state_dict and preprocess_fsdp_dtensor_state_dict).
Shards are rows of uneven flat buffers; the metadata has their true boxes. A gated projection is stored as `weight_w` and
`weight_v`, an expert as `experts.linear_fc1.weight7_w`, with its number in the whole model
(megatron/core/transformer/fsdp_dtensor_checkpoint.py).
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from ckptconv.backends.dcp.layout import METADATA
from ckptconv.backends.dcp.metadata import read_metadata, read_object, read_tensors
from ckptconv.backends.megatron import evidence
from ckptconv.backends.megatron.fsdp import NAME
from ckptconv.backends.megatron.glu import refuse_bridges_blocks, uninterleaved
from ckptconv.backends.megatron.names import canonical, not_a_weight, numbered
from ckptconv.backends.megatron.settings import Stated, namespace, read_settings
from ckptconv.backends.runs import Place, with_config
from ckptconv.errors import CkptconvError, Kind
from ckptconv.tensors.checkpoint import Checkpoint, Mesh, StoredTensor

saved_by = evidence.saved_by
_MODEL = re.compile(r"^model\.(?:module\.)+(.+)$")
_CHUNK = re.compile(r"^model\d+\.module\.")
_RNG = re.compile(r"^rng_state\.\((\d+), (\d+)\)\.")


def read(place: Place, also: Sequence[Path] = ()) -> Checkpoint:
    """Read the metadata.

    Args:
        place: the step's folder.
        also: further folders with `.distcp` files.

    Raises:
        Incomplete: a `.distcp` file is missing.
        CkptconvError: the checkpoint has pipeline stages, or `dcp.metadata.read_tensors` refuses it.
    """
    folder = place.folder
    metadata = read_metadata(folder)
    coordinates = [(int(m[1]), int(m[2])) for name in metadata.table if (m := _RNG.match(name))]
    _check_one_stage(metadata.table, coordinates, folder)
    files = read_tensors(metadata, also, _why_not, place.elements)
    bare = dict(_bare(files.tensors))
    stated = read_settings(folder, folder)
    refuse_bridges_blocks(stated.settings)
    trainer = (*namespace(read_object(metadata, "args", also), folder / METADATA), *stated.settings)
    tensors, taken_apart = uninterleaved(canonical(bare), Stated(trainer).merged())
    ranks = 1 + max((tp for _, tp in coordinates), default=0)
    if ranks > 1 and (mamba := next((name for name in tensors if name.endswith("mixer.in_proj.weight")), "")):
        raise CkptconvError(
            "each TP rank has its own rows of a Mamba layer's parts, and Megatron-FSDP's files do not record that",
            where=mamba,
            hint="save the checkpoint as torch_dist",
            kind=Kind.UNSUPPORTED,
        )
    return Checkpoint(
        backend=NAME,
        layout="Megatron-FSDP distributed checkpoint (fsdp_dtensor)",
        root=folder,
        world_size=files.world_size,
        files=files.files,
        tensors=tensors,
        meshes=(Mesh((ranks,), ("tp",)),) if ranks > 1 else (),
        step=place.step,
        role=place.role,
        assets=with_config(folder, folder / "huggingface", folder.parent),
        skipped=files.skipped,
        notes=(*place.notes(), *stated.notes, *taken_apart),
        naming="megatron",
        trainer=trainer,
    )


def _check_one_stage(names: Mapping[str, Any], coordinates: list[tuple[int, int]], folder: Path) -> None:
    """Refuse several pipeline stages: each numbers its layers from 0, so DCP keeps only one stage's tensor of each name."""
    chunks = any(_CHUNK.match(name) for name in names)
    stages = 1 + max((pp for pp, _ in coordinates), default=0)
    if chunks or stages > 1:
        raise CkptconvError(
            "Megatron-FSDP's files do not tell the layers of pipeline stages apart",
            where=folder,
            found="several model chunks" if chunks else f"{stages} stages, each with its layers from 0",
            hint="save with --ckpt-format torch_dist, or without pipeline parallelism",
            kind=Kind.UNSUPPORTED,
        )


def _why_not(name: str) -> str | None:
    """Why a stored name is not a weight; None for a weight."""
    return not_a_weight(name) or (None if name.startswith("model.") else "trainer state")


def _bare(tensors: Mapping[str, StoredTensor]) -> Iterator[tuple[str, StoredTensor]]:
    """Remove the wrappers from the names, and put an expert's number where torch_dist has it."""
    for name, tensor in tensors.items():
        match = _MODEL.match(name)
        if match is None:
            raise CkptconvError(
                f"the stored name {name} does not begin like those of Megatron-FSDP",
                wanted="model.module.…",
                kind=Kind.UNSUPPORTED,
            )
        yield numbered(match[1]), tensor
