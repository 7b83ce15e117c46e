"""Read Orbax's steps: RUN/STEP/ITEM/{_METADATA, manifest.ocdbt, d/, ocdbt.process_P/}; MaxText: RUN/checkpoints/STEP/items/.

Sources: orbax/checkpoint/_src/handlers/pytree_checkpoint_handler.py; docs/orbax.md.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path

from ckptconv.backends.base import Fact
from ckptconv.backends.orbax.arrays import Database
from ckptconv.backends.orbax.layout import DATABASE, METADATA, NAME
from ckptconv.backends.orbax.names import SIGN as MAXTEXT
from ckptconv.backends.orbax.names import by_layer, of_model
from ckptconv.backends.orbax.tree import Tree, read_tree
from ckptconv.backends.runs import Place, with_config
from ckptconv.errors import CkptconvError, Incomplete, Kind
from ckptconv.tensors.checkpoint import Checkpoint, RankFile, Skipped, StoredTensor
from ckptconv.tensors.look import is_far, is_file, names_in

_UNFINISHED = ".orbax-checkpoint-tmp"
_PLAIN = ("items", "default")  # names of items that say nothing


def read(place: Place, also: Sequence[Path] = ()) -> Checkpoint:
    """Read `_METADATA` and the arrays' shapes; no chunk is decoded.

    Args:
        place: the folder of an item.
        also: Orbax merges what all processes wrote, so nothing may be given.

    Raises:
        Incomplete: the step was not finished, or a chunk is missing.
        CkptconvError: the folder is in an object store, tensorstore is not installed, or the files contradict each other.
    """
    folder = place.folder
    if is_far(folder):
        raise CkptconvError(
            "an Orbax checkpoint is read from a disk only",
            where=folder,
            hint="copy the step to a disk and name the copy",
            kind=Kind.UNSUPPORTED,
        )
    if also:
        raise CkptconvError(
            "--also does not fit an Orbax checkpoint, whose processes write to one folder",
            where=also[0],
            hint="omit --also",
            kind=Kind.USAGE,
        )
    tree = _finished(folder)
    names = of_model(tree.arrays)
    database = Database(folder, tree.ocdbt, tree.zarr3)
    arrays = database.opened([tree.arrays[keys] for keys in names])
    views = {name: array.view for name, array in zip(names.values(), arrays.values(), strict=True)}
    is_maxtext = MAXTEXT in views
    tensors = by_layer(views, folder) if is_maxtext else views
    beside = Counter[str]()
    for name, nbytes in database.sizes(
        tree.arrays[keys] for keys in tree.arrays if keys not in names
    ).items():
        beside[name.partition(".")[0]] += nbytes
    return Checkpoint(
        backend=NAME,
        layout=f"Orbax, {'OCDBT' if tree.ocdbt else 'Zarr'}" + (", MaxText's names" if is_maxtext else ""),
        root=folder,
        world_size=1,
        files=tuple(RankFile(0, str(array.path), array.nbytes) for array in arrays.values()),
        tensors={name: StoredTensor(view, _chunks(len(view.chunks))) for name, view in tensors.items()},
        step=place.step,
        role=None if place.role in _PLAIN else place.role,
        assets=with_config(folder, folder.parent),
        skipped=tuple(Skipped(name, nbytes, "not part of the model") for name, nbytes in beside.items()),
        notes=tuple(place.notes()),
        naming="maxtext" if is_maxtext else "transformers",
        is_sharded=False,
    )


def saved_by(checkpoint: Checkpoint) -> Iterator[Fact]:
    """As `Backend.saved_by`."""
    processes = [name for name in names_in(checkpoint.root) if name.startswith("ocdbt.process_")]
    if processes:
        yield Fact("Orbax", f"processes: {len(processes)}", "ocdbt.process_*")


def _finished(folder: Path) -> Tree:
    """The arrays of a step whose save ended."""
    if any(_UNFINISHED in part.name for part in (folder, folder.parent)):
        raise Incomplete(
            "the step was not finished: Orbax renames the folder at the end of a save",
            where=folder,
            hint="take an earlier step",
        )
    if not is_file(folder / METADATA):
        raise Incomplete(
            "the file that says which arrays there are is missing",
            where=folder,
            wanted=METADATA,
            hint="copy the step again, or take an earlier one",
        )
    tree = read_tree(folder / METADATA)
    if tree.ocdbt and not is_file(folder / DATABASE):
        raise Incomplete(
            "the database that joins what the processes wrote is missing",
            where=folder,
            wanted=DATABASE,
            hint="the save did not end, or the copy is not whole: copy the step again, or take an earlier one",
        )
    return tree


def _chunks(count: int) -> str:
    return f"{count} chunks" if count > 1 else ""
