"""Read nanotron's steps: RUN/latest.txt, RUN/N/model/…, RUN/N/model_config.json, RUN/N/checkpoint_metadata.json.

Every shard's header has the slices of the whole tensor that it holds, so no rule about layers is needed here.
Source: nanotron/serialize/{main,weights,metadata}.py; nanotron/trainer.py, save_checkpoint.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path

from ckptconv.backends.base import Fact
from ckptconv.backends.nanotron.agreement import check_config
from ckptconv.backends.nanotron.files import Files, Shard, check_stages, find
from ckptconv.backends.nanotron.layout import NAME
from ckptconv.backends.nanotron.slices import is_sliced, parts, unsharded_shape
from ckptconv.backends.runs import Place, with_config
from ckptconv.backends.saved_at import apart
from ckptconv.errors import CkptconvError, Incomplete
from ckptconv.formats.in_order import in_order
from ckptconv.formats.json import read_table
from ckptconv.formats.safetensors import read_header
from ckptconv.tensors.checkpoint import Checkpoint, Mesh, RankFile, Skipped, StoredTensor, TrainerSettings
from ckptconv.tensors.look import bytes_below, size_of
from ckptconv.tensors.view import View
from ckptconv.tensors.view import place as put

_CONFIG, _METADATA = "model_config.json", "checkpoint_metadata.json"
_BESIDE = (("optimizer", "optimizer"), ("lr_scheduler", "scheduler"), ("random", "random state"))

Header = tuple[View, dict[str, str]]


def read(place: Place, also: Sequence[Path] = ()) -> Checkpoint:
    """Read every file's header.

    Args:
        place: the step's folder.
        also: the same step's folders on other disks.

    Raises:
        Incomplete: a rank's files are missing.
        CkptconvError: the files contradict each other, the step's metadata or model_config.json.
    """
    folder = place.folder
    files = find([folder, *also])
    config = read_table(folder / _CONFIG)
    if not config:
        raise Incomplete(
            "the file that says how the model is laid out is missing",
            where=folder,
            wanted=_CONFIG,
            hint="copy it from another step of the run, which has the same",
        )
    check_stages(files, config.get("num_hidden_layers"), folder)
    _check_metadata(read_table(folder / _METADATA), files, place)
    headers = list(in_order(_header, files.shards))
    stored: dict[str, list[tuple[Shard, Header]]] = {}
    for shard, header in zip(files.shards, headers, strict=True):
        stored.setdefault(shard.name, []).append((shard, header))
    tensors = {name: _tensor(name, shards) for name, shards in stored.items()}
    check_config(config, tensors, folder / _CONFIG)
    return Checkpoint(
        backend=NAME,
        layout="nanotron: one safetensors file per tensor and rank",
        root=folder,
        world_size=files.sizes[0] * files.sizes[1] * files.sizes[2],
        files=tuple(sorted(_rank_files(files), key=lambda file: (file.rank, file.path))),
        tensors=tensors,
        meshes=(Mesh(files.sizes, ("pp", "tp", "ep")) if files.sizes[2] > 1 else _mesh(files),),
        step=place.step,
        role=place.role,
        assets=with_config(folder),
        skipped=tuple(_skipped(folder)),
        notes=(*place.notes(), *apart([shard.path for shard in files.shards])),
        naming="nanotron_interleaved" if _rotates_neighbours(config) else "nanotron",
        trainer=(TrainerSettings(config, str(folder / _CONFIG)),),
    )


def saved_by(checkpoint: Checkpoint) -> Iterator[Fact]:
    """As `Backend.saved_by`."""
    stated = read_table(checkpoint.root / _METADATA)
    sizes = [f"{key} {stated[key]}" for key in ("tp", "dp", "cp") if type(stated.get(key)) is int]
    if sizes:
        yield Fact("nanotron", ", ".join(sizes), _METADATA)
    if step := _last_step(stated):
        yield Fact("nanotron", f"step {step}", _METADATA)


def _header(shard: Shard) -> Header:
    views, metadata = read_header(shard.path)
    if list(views) != ["data"]:
        raise CkptconvError(
            "the file does not hold one tensor named data",
            where=shard.path,
            found=", ".join(list(views)[:4]) or "none",
        )
    return views["data"], metadata


def _tensor(name: str, shards: Sequence[tuple[Shard, Header]]) -> StoredTensor:
    """One tensor from its shards."""
    (first, (view, metadata)), *more = shards
    if not more and not is_sliced(metadata):
        return StoredTensor(view)
    shape = unsharded_shape(metadata, first.path) if is_sliced(metadata) else ()
    pieces: list[tuple[tuple[int, ...], View]] = []
    for shard, (part, stated) in shards:
        if not is_sliced(stated) or unsharded_shape(stated, shard.path) != shape:
            raise CkptconvError(
                f"the shards of {name} are of different tensors",
                where=shard.path,
                found=stated.get("unsharded_shape", "no shape of the whole tensor"),
                wanted=str(list(shape)),
                hint="files of two saves are in one folder: copy one step again",
            )
        pieces += parts(stated, shape, part, shard.path)
    try:
        whole = put(shape, view.dtype, pieces)
    except CkptconvError as error:
        raise error.within(inside=name, where=first.path.parent) from error
    return StoredTensor(whole, f"{len(pieces)} slices" if len(pieces) > 1 else "")


def _rank_files(files: Files) -> Iterator[RankFile]:
    """Yield a record per file; a tensor that is stored once is of the first TP rank of its block's stage."""
    stages: dict[str, int] = {}
    for shard in files.shards:
        if shard.at is not None:
            stages.setdefault(_block(shard.name), shard.at[0])
    last = max(stages.values(), default=0)
    for shard in files.shards:
        at = shard.at or (stages.get(_block(shard.name), last), 0, 0)
        rank = (at[2] * files.sizes[0] + at[0]) * files.sizes[1] + at[1]
        where = tuple(zip(("pp", "tp", "ep"), at, strict=True))
        yield RankFile(
            rank,
            str(shard.path),
            size_of(shard.path),
            where if files.sizes[2] > 1 else where[:2],
        )


def _block(name: str) -> str:
    """The pipeline block of a tensor: all of a block is on one stage (nanotron/parallel/pipeline_parallel/block.py)."""
    return name.partition(".pp_block.")[0]


def _mesh(files: Files) -> Mesh:
    return Mesh(files.sizes[:2], ("pp", "tp"))


def _last_step(stated: dict[str, object]) -> int | None:
    metas = stated.get("metas")
    step = metas.get("last_train_step") if isinstance(metas, dict) else None
    return step if type(step) is int else None


def _check_metadata(stated: dict[str, object], files: Files, place: Place) -> None:
    """Raise CkptconvError if the step's metadata names another step, or another number of TP ranks."""
    step, tp = _last_step(stated), stated.get("tp")
    if step is not None and place.step is not None and step != place.step:
        raise CkptconvError(
            "the step's metadata is of another step than its folder's name says",
            where=place.folder / _METADATA,
            found=f"last_train_step {step}",
            wanted=f"{place.step}",
            hint=f"copy the step's files again, or rename the folder to {step} if it was renamed",
        )
    if type(tp) is int and tp != files.sizes[1]:
        raise CkptconvError(
            "the step's metadata states another number of TP ranks than its files' names",
            where=place.folder / _METADATA,
            found=f"tp {tp}",
            wanted=f"tp {files.sizes[1]}, as in {files.shards[0].path.name}",
            hint="files of two saves are in one folder: copy one step again",
        )


def _skipped(folder: Path) -> Iterator[Skipped]:
    for name, reason in _BESIDE:
        nbytes = bytes_below(folder / name)
        if nbytes:
            yield Skipped(f"{name}/", nbytes, reason)


def _rotates_neighbours(config: dict[str, object]) -> bool:
    """Return True if neighbouring rows of a head rotate together, and not its halves.

    LlamaConfig has the key since September 2024; before, all Llama models rotated neighbours (nanotron/models/llama.py).
    """
    return bool(config.get("rope_interleaved", config.get("is_llama_config", False)))
