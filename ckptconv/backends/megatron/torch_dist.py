"""Megatron-Core distributed checkpoints (torch_dist): Megatron-LM, Megatron-Bridge, verl. Without Megatron.

Folders: RUN/iter_NNNNNNN/ (Megatron-LM, Megatron-Bridge); ROLE/dist_ckpt/ beside ROLE/huggingface/ (verl v1);
ROLE/model/{dist_ckpt,huggingface}/ with ROLE/ckpt_contents.json, which is written last (verl v2).
Names come out as `megatron_names.canonical` writes them: a layer and an expert each have a number.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from ckptconv.backends.dcp.metadata import is_dcp, read_metadata, read_tensors
from ckptconv.backends.megatron.glu import settings, uninterleaved
from ckptconv.backends.megatron.lora import lora_settings
from ckptconv.backends.megatron.names import canonical
from ckptconv.backends.megatron.ranks import ranks_of
from ckptconv.backends.runs import Place
from ckptconv.errors import CkptconvError, Incomplete
from ckptconv.tensors.checkpoint import Checkpoint

NAME = "megatron"
_CONTENTS = "ckpt_contents.json"
_HOMES = ("", "dist_ckpt", "model/dist_ckpt")


def is_mine(folder: Path) -> bool:
    """True for a folder that holds a torch_dist checkpoint, itself or where verl puts it."""
    return _home(folder) is not None


def read(place: Place, also: Sequence[Path] = ()) -> Checkpoint:
    """Read the metadata. also: folders with more of the `.distcp` files.

    Raises CkptconvError for a save that never finished, and for all that `read_dcp` refuses.
    """
    home = _home(place.folder)
    if home is None:
        raise CkptconvError(
            "no Megatron checkpoint here", where=place.folder, wanted=".metadata and metadata.json"
        )
    folder = place.folder / home
    verl = "model" if home.startswith("model") else ""
    if verl and not (place.folder / _CONTENTS).is_file():
        raise Incomplete(
            "the save never finished: what verl writes last is not there",
            where=place.folder,
            wanted=_CONTENTS,
            hint="take an earlier step with --step",
        )
    others = [path / home if (path / home).is_dir() else path for path in also]
    metadata = read_metadata(folder)
    files = read_tensors(metadata, others, _why_not)
    mesh, seats = ranks_of(metadata)
    stated, unsaid = settings(place.folder, folder)
    tensors, said = uninterleaved(canonical(files.tensors), stated)
    assets = (place.folder / verl / "huggingface", folder)
    return Checkpoint(
        backend=NAME,
        layout="Megatron-Core distributed checkpoint (torch_dist)" + (", saved by verl" if home else ""),
        root=place.folder,
        world_size=files.world_size,
        files=tuple(replace(file, seat=seats.get(file.rank, ())) for file in files.files),
        tensors=tensors,
        meshes=() if mesh is None else (mesh,),
        step=place.step,
        role=place.role,
        assets=next((path for path in assets if (path / "config.json").is_file()), None),
        skipped=files.skipped,
        extras={"lora": lora_settings(place.folder, folder)},
        notes=(*place.notes(), *unsaid, *said),
        naming="megatron",
    )


def _home(folder: Path) -> str | None:
    """Where in the folder the checkpoint lies; Megatron's own marks tell it from a plain DCP folder."""
    for home in _HOMES:
        path = folder / home
        if is_dcp(path) and ((path / "common.pt").is_file() or (path / "metadata.json").is_file()):
            return home
    return None


def _why_not(name: str) -> str | None:
    """What is no weight: optimizer states, random states, Transformer Engine's extra states."""
    if "optimizer." in name or name.startswith("optimizer"):
        return "optimizer"
    if "_extra_state" in name:
        return "Transformer Engine state"
    if name.startswith(("rng_state", "rerun_state", "opt_param_scheduler", "scheduler")):
        return "trainer state"
    return None
