"""Read DeepSpeed's checkpoints without DeepSpeed: model files, and the ranks' flat partitions of the master weights.

Folders: RUN/global_stepN/ with the tag in RUN/latest; RUN/checkpoint-N/global_stepN/ (transformers' Trainer);
accelerate's NAME/pytorch_model/. Contents: deepspeed/runtime/engine.py (`_common_checkpoint_state`,
`_save_zero_checkpoint`), stages 0 to 3 and universal checkpoints; docs/deepspeed.md has the layout.
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Callable, Iterable, Iterator, Sequence
from math import prod
from pathlib import Path
from typing import TYPE_CHECKING

from ckptconv.backends.base import Fact
from ckptconv.backends.deepspeed.files import Files, find, home
from ckptconv.backends.deepspeed.layout import NAME
from ckptconv.backends.runs import Place, with_config
from ckptconv.backends.saved_at import apart
from ckptconv.formats.json import read_table
from ckptconv.formats.torch_zip import TorchZip
from ckptconv.tensors.checkpoint import Checkpoint, Lora, RankFile, Skipped, StoredTensor
from ckptconv.tensors.look import size_of

if TYPE_CHECKING:
    from ckptconv.backends.deepspeed.join import Joined
    from ckptconv.backends.deepspeed.slices import Slices


def read(place: Place, also: Sequence[Path] = ()) -> Checkpoint:
    """Read the metadata of every file.

    Args:
        place: the folder of the checkpoint.
        also: further folders with rank files of the same checkpoint.

    Raises:
        CkptconvError: a rank is missing, files are from different saves, or ckptconv does not read the layout.
    """
    from ckptconv.backends.deepspeed.join import joined
    from ckptconv.backends.deepspeed.slices import read_slices

    folders = [home(folder) or folder for folder in (place.folder, *also)]
    files = find(folders)
    slices = read_slices(files)
    model = joined(files, slices)
    main = slices.ranks[0].model
    mesh = slices.degrees.mesh
    next_to_it = _config_folders(folders[0])
    optim = [path for each in files.optim.values() for path in each.values()]
    return Checkpoint(
        backend=NAME,
        layout=f"DeepSpeed {model.layout}",
        root=place.folder,
        world_size=slices.degrees.pp * slices.degrees.dp * slices.degrees.tp,
        files=tuple(sorted(_rank_files(files, slices), key=lambda file: (file.rank, file.path))),
        tensors=model.tensors,
        meshes=(mesh,) if len(mesh.shape) > 1 or slices.degrees.dp != prod(mesh.shape) else (),
        step=place.step if place.step is not None else main.step,
        role=place.role,
        assets=with_config(*next_to_it),
        skipped=tuple(item for item in _skipped(files, slices, model) if item.nbytes),
        lora=Lora(next((t for f in next_to_it if (t := read_table(f / "adapter_config.json"))), {})),
        extras={"deepspeed": {"version": main.root.get("ds_version")}},
        low_precision=model.low_precision,
        naming=model.naming,
        notes=(
            *place._replace(steps=()).notes(),
            *slices.notes,
            *model.notes,
            # Compared separately: the optimizer files are written after the model files, and take longer.
            *apart([path for each in files.model.values() for path in each.values()]),
            *apart(optim),
        ),
    )


def _config_folders(folder: Path) -> tuple[Path, ...]:
    """Return the folders that may hold config.json: the files' own, the one above, and those above a NAME.ckpt of Lightning.

    Lightning saves NAME.ckpt/checkpoint/ (lightning/pytorch/strategies/deepspeed.py, `save_checkpoint`), by default in
    RUN/lightning_logs/version_N/checkpoints/.
    """
    above = folder.absolute().parents
    return (folder, folder.parent, *(above[1:5] if above and above[0].suffix == ".ckpt" else ()))


def saved_by(checkpoint: Checkpoint) -> Iterator[Fact]:
    """Yield DeepSpeed's version."""
    version = (checkpoint.extras.get("deepspeed") or {}).get("version")
    if isinstance(version, str):
        yield Fact("DeepSpeed", version, "the model file")


def _rank_files(files: Files, slices: Slices) -> Iterator[RankFile]:
    degrees, stage_of = slices.degrees, _stages(slices)
    many = len(degrees.mesh.shape) > 1 or degrees.dp == 1
    found = [
        (mp, rank, str(path))
        for kind in (files.model, files.optim)
        for mp, paths in kind.items()
        for rank, path in paths.items()
    ]
    found += [(stage_of(layer) * degrees.tp + tp, 0, str(path)) for (layer, tp), path in files.layers.items()]
    found += [
        (mp, _holder(slices, layer, expert), str(path)) for (layer, expert, mp), path in files.experts.items()
    ]
    found += [(0, 0, str(path)) for path in files.expert_optim]
    if files.universal:
        masters = {
            file for each in slices.ranks for view in each.masters.views.values() for file in view.files
        }
        found += [(0, 0, file) for file in masters]
    for mp, rank, path in found:
        coordinate = degrees.coordinate(mp, rank) if many else ()
        yield RankFile(degrees.rank(mp, rank), path, size_of(path), coordinate)


def _stages(slices: Slices) -> Callable[[int], int]:
    """Return a function from a layer to its stage: that of the nearest layer with masters, not after it."""
    known: dict[int, int] = {}
    for each in slices.ranks:
        for name in each.masters.views:
            layer = name.partition(".")[0]
            if layer.isdigit():
                known[int(layer)] = each.mp // slices.degrees.tp
    layers = sorted(known)
    return lambda layer: known[layers[at - 1]] if (at := bisect_right(layers, layer)) else 0


def _holder(slices: Slices, layer: int, expert: int) -> int:
    """The data parallel rank that saved an expert: the first of those that hold it."""
    counts, ranks = slices.ranks[0].model.expert_counts, slices.ranks[0].masters.expert_ranks
    each = counts[layer] // len(ranks) if layer < len(counts) and ranks else 0
    return ranks[expert // each] if each and expert < counts[layer] else 0


def _skipped(files: Files, slices: Slices, model: Joined) -> Iterator[Skipped]:
    """Yield the contents of the files that do not belong to the model."""
    used = _used(model.tensors.values())
    partitions = [item for each in slices.ranks for item in each.masters.partitions]
    flat = sum(group.nbytes for _, rank in partitions for group in rank.groups)
    cut = sum(used.get(file.path, 0) for file, _ in partitions)
    yield Skipped("optimizer states", _held(f for f, _ in partitions) - flat, "not part of the model")
    yield Skipped("partition padding", flat - cut, "belongs to no tensor")
    first = slices.ranks[0].masters
    if first.universal:
        known = {name for each in slices.ranks for name in each.masters.views}
        yield Skipped("optimizer states and copies", first.universal.rest(known), "not part of the model")
    opened = [file for each in slices.ranks for file in each.model.files.values()] + list(model.files)
    rest = _held(opened) - sum(used.get(file.path, 0) for file in opened)
    if files.partitioned:
        yield Skipped("padding of frozen weights", rest, "belongs to no tensor")
    elif first.views:
        yield Skipped("the module's copy of the weights", rest, "the fp32 masters are used")
    else:
        yield Skipped("optimizer states", rest, "not part of the model")


def _used(tensors: Iterable[StoredTensor]) -> dict[str, int]:
    """Return the bytes of each file that the tensors and their replicas use."""
    used: dict[str, int] = {}
    for view in {id(v): v for t in tensors for v in (t.view, *(c for _, c in t.replicas))}.values():
        item = view.nbytes // max(view.numel, 1)
        for chunk in view.chunks:
            used[chunk.file] = used.get(chunk.file, 0) + item * prod(chunk.sizes)
    return used


def _held(files: Iterable[TorchZip]) -> int:
    return sum(entry.nbytes for file in files for entry in file.entries.values())
