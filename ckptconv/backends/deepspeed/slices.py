"""Model parallel ranks: what each saved, and that all of them are there and of one save.

`mp_rank_NN` numbers the ranks of one data parallel index in ascending order, so NN = stage × tp + tensor parallel rank
(deepspeed/runtime/pipe/topology.py, `PipelineParallelGrid`). The global rank is (stage × dp + data parallel rank) × tp +
tensor parallel rank (`PipeModelDataParallelTopology`; AutoTP has one stage).
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from ckptconv.backends.copied_files import refuse_copies
from ckptconv.backends.deepspeed.affine import Layout, layouts_of
from ckptconv.backends.deepspeed.cuts import whole_shapes
from ckptconv.backends.deepspeed.files import Files, check_ranks, table
from ckptconv.backends.deepspeed.masters import Masters, masters_of
from ckptconv.backends.deepspeed.model import ModelFiles
from ckptconv.backends.deepspeed.one_save import check_steps
from ckptconv.backends.fsdp.shared_pickles import remembering
from ckptconv.errors import CkptconvError, Incomplete, listed
from ckptconv.formats.bounds import check_ranks as check_most
from ckptconv.formats.torch_zip import Load, open_torch_zips
from ckptconv.tensors.boxes import Shape
from ckptconv.tensors.checkpoint import Mesh

_SAME = ("dp_world_size", "mp_world_size", "ds_version")


@dataclass(frozen=True, slots=True)
class Degrees:
    """The number of ranks along each dim: pipeline stages, data parallel and tensor parallel ranks."""

    pp: int
    dp: int
    tp: int

    @property
    def mesh(self) -> Mesh:
        """The mesh of all ranks, without the dims of size 1."""
        dims = [
            (size, name) for size, name in ((self.pp, "pp"), (self.dp, "dp"), (self.tp, "tp")) if size > 1
        ]
        return Mesh(tuple(size for size, _ in dims), tuple(name for _, name in dims))

    def rank(self, mp: int, dp: int) -> int:
        """Return the global rank of a model parallel and a data parallel rank."""
        return (mp // self.tp * self.dp + dp) * self.tp + mp % self.tp

    def coordinate(self, mp: int, dp: int) -> tuple[tuple[str, int], ...]:
        """Return the coordinate along the dims of more than one rank."""
        found = (("pp", mp // self.tp, self.pp), ("dp", dp, self.dp), ("tp", mp % self.tp, self.tp))
        return tuple((name, index) for name, index, size in found if size > 1)


@dataclass(frozen=True, slots=True)
class Slice:
    """What the data parallel ranks of one model parallel rank saved."""

    mp: int
    model: ModelFiles
    masters: Masters


@dataclass(frozen=True, slots=True)
class Slices:
    """All model parallel ranks.

    Args:
        degrees: how many ranks there are.
        ranks: in the order of their model parallel ranks.
        layouts: name -> how a parameter is cut over tensor parallel ranks; {} where no file says it.
        notes: what the user must know.
    """

    degrees: Degrees
    ranks: tuple[Slice, ...]
    layouts: dict[str, Layout]
    notes: tuple[str, ...]


def read_slices(files: Files) -> Slices:
    """Open every model file and optimizer file.

    Raises:
        Incomplete: the files of a rank are missing.
        CkptconvError: files are of different saves.
    """
    if not files.model:
        raise Incomplete(
            "the model file is missing from the checkpoint",
            where=files.folder,
            wanted="mp_rank_00_model_states.pt, or at stage 3 zero_pp_rank_0_mp_rank_00_model_states.pt",
        )
    load: Load = remembering()  # at stage 3 all ranks' pickles are equal
    models: dict[int, ModelFiles] = {}
    for mp, paths in sorted(files.model.items()):
        ordered = {rank: str(path) for rank, path in sorted(paths.items())}
        opened = dict(zip(ordered, open_torch_zips(list(ordered.values()), load), strict=True))
        shared = models[0].shared if 0 in models and not files.layers else None
        models[mp] = ModelFiles(opened, files.partitioned, shared)
    main = models[min(models)]
    pp, tp = _degrees(main, files)
    _check_complete(files, pp * tp, tp)
    for model in models.values():
        _check_same(main, model)
    layouts = layouts_of(main.root, main.main) if tp > 1 else {}
    whole = {name: layout.shape for name, layout in layouts.items()}
    if tp > 1 and not layouts and files.universal:
        whole = whole_shapes(main.root, _parts(models, tp), main.main)
    ranks = tuple(Slice(mp, model, masters_of(files, mp, model, whole)) for mp, model in models.items())
    first = ranks[0].masters
    for each in ranks:
        if (each.masters.stage, each.masters.world) != (first.stage, first.world):
            raise CkptconvError(
                "the optimizer files are of different saves",
                where=each.model.main.path,
                found=f"stage {each.masters.stage}, {each.masters.world} partitions",
                wanted=f"stage {first.stage}, {first.world} partitions, as in {Path(main.main.path).name}",
                hint="copy all of one step again",
            )
    refuse_copies((file, None) for each in ranks for file, _ in each.masters.partitions)
    steps = dict(item for each in ranks for item in each.masters.steps)
    notes = check_steps(steps, main.step, main.skipped_steps, main.main.path) if steps else []
    # At stages 1 and 2 merge compares the module's own copy with the masters, which proves more.
    shown = tuple(notes) if first.stage == 3 else ()
    return Slices(Degrees(pp, first.world, tp), ranks, layouts, (*first.notes, *shown))


def _parts(models: dict[int, ModelFiles], tp: int) -> dict[str, list[Shape]]:
    """Return the name of each trained parameter -> the shape of its part on every tensor parallel rank of its stage."""
    found: dict[str, dict[int, Shape]] = {}
    for mp, model in models.items():
        for group in model.shapes or ():
            for name, shape in group.items():
                found.setdefault(name, {})[mp % tp] = shape
    return {name: [parts[rank] for rank in range(tp)] for name, parts in found.items() if len(parts) == tp}


def _degrees(model: ModelFiles, files: Files) -> tuple[int, int]:
    """Return (pipeline stages, tensor parallel ranks). DeepSpeed before 0.19 records the product of the two alone."""
    root, where = model.root, model.main.path
    stated = table(root.get("checkpoint_parallel_dimensions"), "checkpoint_parallel_dimensions", model.main)
    both = root.get("mp_world_size")
    if stated:
        pp, tp = stated.get("pp_degree"), stated.get("tp_degree")
    elif files.layers:
        tp = 1 + max(tp for _, tp in files.layers)
        pp = both // tp if type(both) is int else None
    else:
        pp, tp = 1, both if both is not None else 1
    if type(pp) is not int or type(tp) is not int or pp < 1 or tp < 1:
        raise CkptconvError("the model file does not say how many ranks there are", where=where)
    check_most(pp * tp, where)
    if type(both) is int and stated and both not in (pp * tp, tp):
        raise CkptconvError(
            "the model file contradicts itself about its model parallel ranks",
            where=where,
            found=f"mp_world_size {both}, pp_degree {pp}, tp_degree {tp}",
        )
    return pp, tp


def _check_complete(files: Files, world: int, tp: int) -> None:
    """Check that each model parallel rank has a model file, and an optimizer file if any rank has one."""
    held = {*files.model, *files.optim}
    missing = sorted(set(range(world)) - held)
    if missing:
        one = len(missing) == 1
        what = "stage" if tp == 1 and world > 1 else "model parallel rank"
        raise Incomplete(
            f"the files of {what}{'' if one else 's'} {listed(missing, 8)} of {world} are missing",
            where=files.folder,
            wanted=f"…mp_rank_{missing[0]:02d}_model_states.pt",
            hint=f"copy them from the node where {what} {missing[0]} ran, or name its folder with --also",
        )
    if max(held) >= world:
        raise CkptconvError(
            "there are files of more model parallel ranks than wrote the checkpoint",
            where=files.folder,
            found=f"mp_rank_{max(held):02d}",
            wanted=f"mp_rank_00 to mp_rank_{world - 1:02d}",
            hint="they are from different saves; move one set away",
        )
    for mp in range(world):
        if mp not in files.model:
            check_ranks((), 1, "model", files.folder, mp)


def _check_same(main: ModelFiles, model: ModelFiles) -> None:
    keys = [key for key in _SAME if main.root.get(key) != model.root.get(key)]
    if model.step != main.step:
        raise CkptconvError(
            "the model files are of different steps",
            where=model.main.path,
            found=model.step,
            wanted=main.step,
            hint="they are from different saves; copy all of one step again",
        )
    if keys:
        raise CkptconvError(
            "the model files are of different saves",
            where=model.main.path,
            found=f"{keys[0]} {model.root.get(keys[0])}",
            wanted=f"{main.root.get(keys[0])}, as in {Path(main.main.path).name}",
            hint="copy all of one step again",
        )
