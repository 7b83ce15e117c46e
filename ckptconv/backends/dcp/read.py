"""Read torch.distributed.checkpoint folders (DCP) of any trainer: `.metadata` next to `__RANK_FILE.distcp` files.

These come from dcp.save and dcp.async_save: FSDP1, FSDP2, HSDP, tensor parallelism, accelerate's SHARDED_STATE_DICT,
torchtitan, NeMo. `names` finds the entries of the model and their prefix. The result has the module's names.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from ckptconv.backends import composer
from ckptconv.backends.base import unknown_writer
from ckptconv.backends.dcp.homes import (
    assets_of,
    check_finished,
    experiment_of,
    optimizers_beside,
    other_models,
)
from ckptconv.backends.dcp.layout import METADATA, NAME, is_dcp
from ckptconv.backends.dcp.layout import home as home_of
from ckptconv.backends.dcp.metadata import read_metadata, read_nested, read_tensors
from ckptconv.backends.dcp.names import choose_model
from ckptconv.backends.dcp.writers import check_step, writer_of
from ckptconv.backends.runs import Place
from ckptconv.backends.saved_at import apart
from ckptconv.errors import CkptconvError, Incomplete, Kind
from ckptconv.formats.json import read_table
from ckptconv.tensors.checkpoint import Checkpoint, Lora
from ckptconv.tensors.look import matching

saved_by = unknown_writer


def read(place: Place, also: Sequence[Path] = ()) -> Checkpoint:
    """Read the metadata.

    Args:
        place: the folder of the checkpoint.
        also: further folders with `.distcp` files of the same checkpoint.

    Raises:
        CkptconvError: the save did not finish, it holds no model or several, or `read_tensors` refuses it.
    """
    home = home_of(place.folder)
    if home is None:
        raise CkptconvError(
            "no distributed checkpoint here", where=place.folder, wanted=METADATA, kind=Kind.NOT_A_CHECKPOINT
        )
    check_finished(home, place.folder)
    if not is_dcp(home):
        raise _unfinished(home)
    others = [home_of(path) or path for path in also]
    metadata = read_metadata(home)
    chosen = choose_model(metadata.paths, {name: metadata.shape(name) for name in metadata.table}, home)
    files = read_tensors(metadata, others, chosen.why_not.get, place.elements)
    experiment = experiment_of(home)
    check_step(home, place.step)
    writer = writer_of(home, metadata.paths.values())
    kept = composer.settings(read_nested(metadata, composer.CONFIG, others), str(home / METADATA))
    beside = tuple(
        f"not read: {name} in the same folder (pass its folder to convert it)" for name in other_models(home)
    )
    return Checkpoint(
        backend=NAME,
        layout="torch distributed checkpoint (DCP)" + (f", saved by {writer}" if writer else ""),
        root=home,
        world_size=files.world_size,
        files=files.files,
        tensors={chosen.names[name]: tensor for name, tensor in files.tensors.items()},
        step=place.step,
        role=place.role,
        assets=assets_of(home),
        skipped=(*files.skipped, *optimizers_beside(home)),
        lora=Lora(_lora(home)),
        notes=(*place.notes(), *beside, *chosen.notes, *metadata.notes, *apart(files.paths, home / METADATA)),
        naming="transformers",
        trainer=(experiment,) if experiment is not None else kept,
    )


def _unfinished(home: Path) -> CkptconvError:
    """Return the error for an unfinished save: torch renames `.metadata.tmp` to `.metadata` last (filesystem.py, finish)."""
    if any(matching(home, f"__*{METADATA}")):
        return CkptconvError(
            "each rank saved separately (use_collectives=False), which is not supported yet",
            where=home,
            wanted=METADATA,
            hint="load it with dcp.load and save it again with dcp.save",
            kind=Kind.UNSUPPORTED,
        )
    return Incomplete(
        f"incomplete save: {METADATA} (written last) is missing",
        where=home,
        found=f"{len(matching(home, '*.distcp'))} .distcp files",
        hint="take an earlier step with --step, or copy the file from the node of rank 0",
    )


def _lora(home: Path) -> dict[str, object]:
    """Return PEFT's settings if a trainer saved them next to an adapter's shards."""
    for folder in (home, home.parent, home.parent.parent):
        found = read_table(folder / "adapter_config.json")
        if found:
            return found
    return {}
