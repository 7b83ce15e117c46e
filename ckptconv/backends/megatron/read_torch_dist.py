"""Reads Megatron-Core's distributed checkpoints (torch_dist), which Megatron-LM, Megatron-Bridge, NeMo and verl write.

Folders: RUN/iter_NNNNNNN/ (Megatron-LM, Megatron-Bridge); ROLE/dist_ckpt/ next to ROLE/huggingface/ (verl v1);
ROLE/model/{dist_ckpt,huggingface}/ with ROLE/ckpt_contents.json, which verl v2 writes last
(verl/utils/checkpoint/megatron_checkpoint_manager.py); NAME/weights/ next to NAME/context/ (NeMo 2, `nemo`). The names
are those of `names.canonical`.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from ckptconv.backends.dcp.layout import METADATA
from ckptconv.backends.dcp.metadata import read_metadata, read_tensors
from ckptconv.backends.megatron import evidence, nemo
from ckptconv.backends.megatron.glu import refuse_bridges_blocks, uninterleaved
from ckptconv.backends.megatron.lora import lora_settings
from ckptconv.backends.megatron.mamba import with_whole_adapters
from ckptconv.backends.megatron.names import canonical, not_a_weight
from ckptconv.backends.megatron.ranks import ranks_of
from ckptconv.backends.megatron.settings import read_settings
from ckptconv.backends.megatron.torch_dist import NAME
from ckptconv.backends.megatron.torch_dist import home as home_of
from ckptconv.backends.runs import Place, with_config
from ckptconv.backends.saved_at import apart
from ckptconv.errors import CkptconvError, Incomplete, Kind
from ckptconv.tensors.checkpoint import Checkpoint, Lora
from ckptconv.tensors.look import is_dir, is_file

saved_by = evidence.saved_by
_CONTENTS = "ckpt_contents.json"


def read(place: Place, also: Sequence[Path] = ()) -> Checkpoint:
    """Read the metadata.

    Args:
        place: the folder of a step or role.
        also: further folders with `.distcp` files.

    Raises:
        Incomplete: the save never finished, or a `.distcp` file is missing.
        CkptconvError: `dcp.metadata.read_tensors` refuses the checkpoint.
    """
    home = home_of(place.folder)
    if home is None:
        raise CkptconvError(
            "no Megatron checkpoint here",
            where=place.folder,
            wanted=".metadata and metadata.json",
            kind=Kind.NOT_A_CHECKPOINT,
        )
    folder = place.folder / home
    verl = "model" if home.startswith("model") else ""
    if verl and not is_file(place.folder / _CONTENTS):
        raise Incomplete(
            "incomplete save: the file that verl writes last is missing",
            where=place.folder,
            wanted=_CONTENTS,
            hint="take an earlier step with --step",
        )
    context = nemo.context_of(folder)
    if context is not None or home == nemo.WEIGHTS:
        nemo.check_finished(folder.parent)
    others = [path / home if is_dir(path / home) else path for path in also]
    metadata = read_metadata(folder)
    files = read_tensors(metadata, others, not_a_weight, place.elements)
    mesh, coordinates = ranks_of(metadata)
    stated = read_settings(place.folder, folder, context)
    refuse_bridges_blocks(stated.settings)
    tensors, taken_apart = uninterleaved(
        with_whole_adapters(canonical(nemo.without_prefix(files.tensors))), stated.merged()
    )
    return Checkpoint(
        backend=NAME,
        layout="Megatron-Core distributed checkpoint (torch_dist)" + _saver(home, context),
        root=place.folder,
        world_size=files.world_size,
        files=tuple(file._replace(coordinate=coordinates.get(file.rank, ())) for file in files.files),
        tensors=tensors,
        meshes=() if mesh is None else (mesh,),
        step=place.step,
        role=place.role,
        assets=with_config(place.folder / verl / "huggingface", folder),
        tokenizer=nemo.tokenizer_of(context) if context is not None else None,
        skipped=files.skipped,
        lora=Lora(lora_settings(place.folder, folder)),
        notes=(*place.notes(), *stated.notes, *taken_apart, *apart(files.paths, folder / METADATA)),
        naming="megatron",
        trainer=stated.settings,
    )


def _saver(home: str, context: Path | None) -> str:
    if context is not None or home == nemo.WEIGHTS:
        return ", saved by NeMo"
    return ", saved by verl" if home else ""
