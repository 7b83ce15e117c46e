"""Read DeepSpeed's ZeRO checkpoints without DeepSpeed: a model file, and the ranks' flat partitions of the master weights.

Folders: RUN/global_stepN/ with the tag in RUN/latest; RUN/checkpoint-N/global_stepN/ (transformers' Trainer);
accelerate's NAME/pytorch_model/. Contents: deepspeed/runtime/engine.py (`_common_checkpoint_state`,
`_save_zero_checkpoint`), stages 0 to 3 and universal checkpoints; docs/deepspeed.md has the layout.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import replace
from math import prod
from pathlib import Path
from typing import Any, NamedTuple

from ckptconv.backends.base import Fact
from ckptconv.backends.copied_files import refuse_copies
from ckptconv.backends.deepspeed.files import Files, check_ranks, find, home
from ckptconv.backends.deepspeed.flat import Partition, by_group, by_parameter, partition
from ckptconv.backends.deepspeed.model import ModelFiles
from ckptconv.backends.deepspeed.one_save import check_steps, steps_of
from ckptconv.backends.deepspeed.universal import Universal, universal
from ckptconv.backends.fsdp.shared_pickles import remembering
from ckptconv.backends.runs import Place, with_config
from ckptconv.backends.saved_at import apart
from ckptconv.errors import CkptconvError, Incomplete, Kind
from ckptconv.formats.json import read_table
from ckptconv.formats.stand_ins import Inert
from ckptconv.formats.torch_zip import TorchZip, open_torch_zip
from ckptconv.tensors.checkpoint import Checkpoint, Lora, RankFile, Skipped, StoredTensor
from ckptconv.tensors.view import View

NAME = "deepspeed"
SIGN = "mp_rank_00_model_states.pt (DeepSpeed)"
IS_SHARDED = True


def is_mine(folder: Path) -> bool:
    """Return True if the folder, or the one that its `latest` names, holds DeepSpeed's files."""
    return home(folder) is not None


def read(place: Place, also: Sequence[Path] = ()) -> Checkpoint:
    """Read the metadata of every file.

    Args:
        place: the folder of the checkpoint.
        also: further folders with rank files of the same checkpoint.

    Raises:
        CkptconvError: a rank is missing, files are from different saves, or ckptconv does not read the layout.
    """
    folders = [home(folder) or folder for folder in (place.folder, *also)]
    files = find(folders)
    if not files.model:
        raise Incomplete(
            "the model file is missing from the checkpoint",
            where=folders[0],
            wanted="mp_rank_00_model_states.pt, or at stage 3 zero_pp_rank_0_mp_rank_00_model_states.pt",
        )
    load = remembering()  # at stage 3 all ranks' pickles are equal
    opened = {rank: open_torch_zip(str(path), load) for rank, path in sorted(files.model.items())}
    model = ModelFiles(opened, files.partitioned)
    masters = _masters(files, model)
    tensors = model.tensors(masters.views, masters.placement)
    if masters.universal:
        masters.universal.check_names(tensors)
    next_to_it = (folders[0], folders[0].parent)
    return Checkpoint(
        backend=NAME,
        layout=f"DeepSpeed {masters.layout}",
        root=place.folder,
        world_size=masters.world,
        files=tuple(_rank_files(files, masters.views.values())),
        tensors=tensors,
        step=place.step if place.step is not None else model.step,
        role=place.role,
        assets=with_config(*next_to_it),
        skipped=tuple(item for item in _skipped(files, model, masters, tensors) if item.nbytes),
        lora=Lora(next((t for f in next_to_it if (t := read_table(f / "adapter_config.json"))), {})),
        extras={"deepspeed": {"version": model.root.get("ds_version")}},
        low_precision=model.low_precision(masters.views),
        notes=(
            *replace(place, steps=()).notes(),
            *masters.notes,
            # Compared separately: the optimizer files are written after the model files, and take longer.
            *apart(list(files.model.values())),
            *apart(list(files.optim.values())),
        ),
    )


def saved_by(checkpoint: Checkpoint) -> Iterator[Fact]:
    """Yield DeepSpeed's version."""
    version = (checkpoint.extras.get("deepspeed") or {}).get("version")
    if isinstance(version, str):
        yield Fact("DeepSpeed", version, "the model file")


class _Masters(NamedTuple):
    """The master weights, and the files that hold them: `partitions` or `universal`."""

    layout: str
    world: int
    views: dict[str, View]
    placement: str = ""
    partitions: tuple[tuple[TorchZip, Partition], ...] = ()
    universal: Universal | None = None
    notes: tuple[str, ...] = ()


def _masters(files: Files, model: ModelFiles) -> _Masters:
    shapes = model.shapes
    stated = model.root.get("dp_world_size")
    world = stated if type(stated) is int else len(model.files)
    parameters = universal(files.universal)
    if parameters:
        if shapes is None:
            raise CkptconvError(
                "the model file of the universal checkpoint lists no parameters", where=files.folder
            )
        if files.partitioned:
            check_ranks(model.files, world, "model", files.folder)
        return _Masters("universal checkpoint", world, parameters.masters(shapes), universal=parameters)
    if files.optim:
        return _partitioned(files, model, world)
    if files.partitioned:
        check_ranks((), world, "optim", files.folder)
    if shapes is None:
        return _Masters("checkpoint without partitions (stage 0)", world, {})
    note = "the ranks' optimizer files are not here: the module's copy of the weights is read, not the fp32 masters"
    return _Masters("ZeRO checkpoint without its optimizer files", world, {}, notes=(note,))


def _partitioned(files: Files, model: ModelFiles, world: int) -> _Masters:
    load = remembering()
    opened = {rank: open_torch_zip(str(path), load) for rank, path in sorted(files.optim.items())}
    states = {rank: _state(file) for rank, file in opened.items()}
    first = next(iter(opened))
    for rank, state in states.items():
        if _facts(state) != _facts(states[first]):
            raise CkptconvError(
                "the optimizer files are of different saves",
                where=opened[rank].path,
                found=f"stage {_facts(state)[0]}, {_facts(state)[1]} partitions",
                wanted=f"stage {_facts(states[first])[0]}, {_facts(states[first])[1]} partitions",
                hint="copy all of one step again",
            )
    stage, counts = _facts(states[first])
    if set(counts) != {world} or (stage == 3) != files.partitioned or stage not in (1, 2, 3):
        raise CkptconvError(
            "the model file and the optimizer files are of different saves",
            where=files.folder,
            found=f"stage {stage} in {', '.join(map(str, counts))} partitions",
            wanted=f"{world} partitions, as in {Path(model.main.path).name}",
            hint="copy all of one step again",
        )
    check_ranks(opened, world, "optim", files.folder)
    if files.partitioned:
        check_ranks(model.files, world, "model", files.folder)
    refuse_copies((file, None) for file in opened.values())
    shapes = model.shapes
    if shapes is None:
        raise CkptconvError("the model file lists no partitioned parameters", where=model.main.path)
    steps = {file.path: steps_of(file, states[rank]) for rank, file in opened.items()}
    notes = check_steps(steps, model.step, model.skipped_steps, model.main.path)
    key = "fp32_flat_groups" if stage == 3 else "single_partition_of_fp32_groups"
    held = [partition(opened[rank], states[rank], key) for rank in range(world)]
    if stage == 3:
        views = by_parameter(held, shapes, model.main.path)
    else:
        views = by_group(held, shapes, states[first].get("param_alignment_paddings"), model.main.path)
    pairs = tuple((opened[rank], held[rank]) for rank in range(world))
    # At stages 1 and 2 merge compares the module's own copy with the masters, which proves more.
    kept = tuple(notes) if stage == 3 else ()
    return _Masters(f"ZeRO-{stage} checkpoint", world, views, f"stage {stage}, flat", pairs, notes=kept)


def _state(file: TorchZip) -> dict[str, Any]:
    state = file.root.get("optimizer_state_dict") if isinstance(file.root, dict) else None
    if not isinstance(state, dict):
        raise CkptconvError("not an optimizer file of DeepSpeed", where=file.path, kind=Kind.UNSUPPORTED)
    if state.get("ds_zero_partition_groups"):
        raise CkptconvError(
            "DeepSpeed checkpoints of AutoEP at stage 3 are not read",
            where=file.path,
            hint="its experts are cut over other ranks; ds_to_universal.py converts them",
            kind=Kind.UNSUPPORTED,
        )
    return state


def _facts(state: dict[str, Any]) -> tuple[int, tuple[int, ...]]:
    """Return (stage, number of partitions of each group). BF16_Optimizer records no stage; it cuts as stage 1 does."""
    stage, count = state.get("zero_stage", 1), state.get("partition_count")
    if isinstance(stage, Inert):
        stage = stage.args[0] if stage.args else 0
    counts = count if isinstance(count, list | tuple) else [count]
    return (stage if type(stage) is int else 0), tuple(n if type(n) is int else 0 for n in counts)


def _rank_files(files: Files, masters: Iterable[View]) -> Iterator[RankFile]:
    paths = [(rank, str(path)) for kind in (files.model, files.optim) for rank, path in kind.items()]
    if files.universal:
        paths += [(0, file) for view in masters for file in view.files]
    for rank, path in sorted(paths):
        yield RankFile(rank, path, Path(path).stat().st_size)


def _skipped(
    files: Files, model: ModelFiles, masters: _Masters, tensors: dict[str, StoredTensor]
) -> Iterator[Skipped]:
    """Yield the contents of the files that do not belong to the model."""
    used: dict[str, int] = {}
    for view in {id(v): v for t in tensors.values() for v in (t.view, *(c for _, c in t.replicas))}.values():
        item = view.nbytes // max(view.numel, 1)
        for chunk in view.chunks:
            used[chunk.file] = used.get(chunk.file, 0) + item * prod(chunk.sizes)
    flat = sum(group.nbytes for _, rank in masters.partitions for group in rank.groups)
    cut = sum(used.get(file.path, 0) for file, _ in masters.partitions)
    yield Skipped("optimizer states", _held(f for f, _ in masters.partitions) - flat, "not part of the model")
    yield Skipped("partition padding", flat - cut, "belongs to no tensor")
    if masters.universal:
        yield Skipped(
            "optimizer states and copies", masters.universal.rest(masters.views), "not part of the model"
        )
    rest = _held(model.files.values()) - sum(used.get(file.path, 0) for file in model.files.values())
    if files.partitioned:
        yield Skipped("padding of frozen weights", rest, "belongs to no tensor")
    elif masters.views:
        yield Skipped("the module's copy of the weights", rest, "the fp32 masters are used")
    else:
        yield Skipped("optimizer states", rest, "not part of the model")


def _held(files: Iterable[TorchZip]) -> int:
    return sum(entry.nbytes for file in files for entry in file.entries.values())
