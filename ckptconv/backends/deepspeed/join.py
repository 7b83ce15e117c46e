"""The tensors of the whole model, from what its model parallel ranks saved."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from ckptconv.backends.deepspeed import affine, cuts, experts, pipeline
from ckptconv.backends.deepspeed.affine import Layout
from ckptconv.backends.deepspeed.files import Files
from ckptconv.backends.deepspeed.slices import Slices
from ckptconv.errors import CkptconvError, Incomplete, Kind, listed
from ckptconv.formats.torch_zip import TorchZip
from ckptconv.tensors.checkpoint import StoredTensor
from ckptconv.tensors.view import View


@dataclass(frozen=True, slots=True)
class Joined:
    """A whole model.

    Args:
        layout: the format in words.
        tensors: by name.
        low_precision: name -> the module's copy of the master weights, in its compute dtype.
        files: further files that hold the module's tensors: those of a pipeline's layers, and of experts.
        naming: see `Checkpoint.naming`.
        notes: what the user must know.
    """

    layout: str
    tensors: dict[str, StoredTensor]
    low_precision: dict[str, View]
    files: tuple[TorchZip, ...] = ()
    naming: str = "transformers"
    notes: tuple[str, ...] = ()


def joined(files: Files, slices: Slices) -> Joined:
    """Return the model's tensors.

    Raises:
        Incomplete: the file of a layer or of an expert is missing.
        CkptconvError: the ranks' files contradict each other.
    """
    first = slices.ranks[0]
    _check_kinds(files, slices)
    if files.layers:
        return _pipeline(files, slices)
    layout = first.masters.layout
    if first.masters.universal and not first.model.has_module:
        return _universal_pipeline(files, slices)
    if slices.degrees.pp > 1:
        raise Incomplete(
            "the layer files of a pipeline are missing from the checkpoint",
            where=files.folder,
            found=f"{slices.degrees.pp} stages",
            wanted="layer_00-model_states.pt and the others",
        )
    if slices.degrees.tp > 1:
        tensors, copies = _tensor_parallel(slices)
        layout = f"{layout}, {slices.degrees.tp} tensor parallel ranks"
        opened: list[TorchZip] = []
    else:
        copies, opened = experts.copies(files, first.model)
        tensors = first.model.tensors(first.masters.views, first.masters.placement)
        tensors |= {name: StoredTensor(view) for name, view in copies.items() if name not in tensors}
        copies = {name: view for name, view in copies.items() if name in first.masters.views}
        copies |= first.model.low_precision(first.masters.views)
        ep = len(first.masters.expert_ranks)
        layout += f", experts over {ep} expert parallel ranks" if first.model.has_experts and ep > 1 else ""
    if first.masters.universal:
        first.masters.universal.check_names(tensors)
    return Joined(layout, tensors, copies, tuple(opened))


def _check_kinds(files: Files, slices: Slices) -> None:
    """Refuse files of layers or experts that the model files do not know, and experts inside other layouts."""
    model = slices.ranks[0].model
    beside = [*files.experts.values(), *files.expert_optim]
    if beside and not model.has_experts:
        raise _another(beside[0], "an expert's file", "lists no experts", model.main.path)
    if files.layers and model.has_module:
        raise _another(
            next(iter(files.layers.values())),
            "the file of a pipeline's layer",
            "holds the weights itself",
            model.main.path,
        )
    if beside and (files.layers or slices.degrees.tp > 1):
        other = "a pipeline" if files.layers else "tensor parallel ranks"
        raise CkptconvError(
            f"DeepSpeed checkpoints with experts and {other} are not read",
            where=files.folder,
            found=beside[0].name,
            kind=Kind.UNSUPPORTED,
        )


def _another(path: Path, what: str, but: str, model: str) -> CkptconvError:
    return CkptconvError(
        f"{what} is next to a model file that {but}",
        where=path,
        found=Path(model).name,
        hint="they are from different saves; move one set away",
    )


def _tensor_parallel(slices: Slices) -> tuple[dict[str, StoredTensor], dict[str, View]]:
    """Join the ranks' parts by the affine map."""
    main = slices.ranks[0].model
    where = main.main.path
    whole = slices.ranks[0].masters.views if slices.ranks[0].masters.universal else {}
    elsewhere = {*whole, *(name for name, source in main.shared.items() if source in whole)}
    held = [
        each.model.tensors({} if whole else each.masters.views, each.masters.placement, elsewhere)
        for each in slices.ranks
    ]
    buffers = main.buffers
    layouts = slices.layouts or cuts.layouts_by_names(
        main.root, {name: shapes for name, shapes in _shapes(held).items() if name not in buffers}, main.main
    )
    unknown = [name for name in held[0] if name not in layouts and name not in buffers]
    aliases = {name: source for name, source in main.shared.items() if source in layouts}
    affine.check_known(
        [name for name in unknown if name not in aliases], affine.unsupported(main.root, main.main), where
    )
    tensors = {name: StoredTensor(view) for name, view in whole.items()}
    tensors |= {name: tensors[main.shared[name]] for name in elsewhere if name not in tensors}
    for name in held[0]:
        parts = [_part(each, name, where) for each in held]
        source = aliases.get(name, name)
        if source in tensors:
            tensors[name] = tensors[source]
        elif source in layouts:
            tensors[name] = affine.joined(name, layouts[source], parts, where)
        else:
            tensors[name] = affine.replicated(name, parts, where)
    copies = [each.model.low_precision(each.masters.views) for each in slices.ranks]
    return tensors, {
        name: affine.joined(name, layouts[name], [StoredTensor(each[name]) for each in copies], where).view
        for name in copies[0]
        if all(name in each for each in copies) and name in layouts
    }


def _universal_pipeline(files: Files, slices: Slices) -> Joined:
    """Return a universal checkpoint's layers: ds_to_universal leaves the layer files out, and masters say all.

    The one shared module is the first layer's, if no parameter of that layer is stored under its own name.
    """
    views = {name: view for each in slices.ranks for name, view in each.masters.views.items()}
    keys = {name.split(".")[1] for name in views if name.startswith("tied_modules.")}
    if len(keys) > 1 or (keys and any(name.startswith("0.") for name in views)):
        raise CkptconvError(
            "a universal checkpoint does not say which layers its shared modules are",
            where=files.folder,
            found=listed(sorted(keys)),
            hint="convert the checkpoint that it was made from",
            kind=Kind.UNSUPPORTED,
        )
    tied = f"tied_modules.{next(iter(keys), '')}."
    tensors = {
        f"0.{name.removeprefix(tied)}" if name.startswith(tied) else name: StoredTensor(view)
        for name, view in views.items()
    }
    for each in slices.ranks:
        if each.masters.universal:
            each.masters.universal.check_names(views)
    layout = f"{slices.ranks[0].masters.layout}, {slices.degrees.pp} pipeline stages"
    return Joined(layout, tensors, {}, (), "pipeline")


def _part(tensors: Mapping[str, StoredTensor], name: str, where: str) -> StoredTensor:
    if name not in tensors:
        raise CkptconvError(f"a tensor parallel rank lacks {name}", where=where, kind=Kind.DAMAGED)
    return tensors[name]


def _pipeline(files: Files, slices: Slices) -> Joined:
    """Join the stages of a pipeline, and the tensor parallel ranks of each."""
    copies, opened = pipeline.layer_copies(files, slices.degrees.tp)
    held, origins = pipeline.masters_by_layer(slices, copies, files.folder)
    parts: Sequence[dict[str, StoredTensor]] = [
        {name: masters.get(name) or StoredTensor(copy) for name, copy in each.items()}
        for masters, each in zip(held, copies, strict=True)
    ]
    low = [{name: each[name] for name in masters} for masters, each in zip(held, copies, strict=True)]
    notes = tuple(_without_masters(slices, held[0], copies[0]))
    count = slices.degrees.pp
    stages = f"{slices.ranks[0].masters.layout}, {count} pipeline stage{'s' if count > 1 else ''}"
    if slices.degrees.tp == 1:
        return Joined(stages, parts[0], low[0], tuple(opened), "pipeline", notes)
    layouts = _layouts_of_layers(slices, parts, origins)
    where = slices.ranks[0].model.main.path
    tensors = {
        name: affine.joined(name, layouts[name], [_part(each, name, where) for each in parts], where)
        if name in layouts
        else affine.replicated(name, [_part(each, name, where) for each in parts], where)
        for name in parts[0]
    }
    joined_copies = {
        name: affine.joined(name, layouts[name], [StoredTensor(each[name]) for each in low], where).view
        for name in low[0]
        if name in layouts and all(name in each for each in low)
    }
    layout = f"{stages}, {slices.degrees.tp} tensor parallel ranks"
    return Joined(layout, tensors, joined_copies, tuple(opened), "pipeline", notes)


def _layouts_of_layers(
    slices: Slices, parts: Sequence[Mapping[str, StoredTensor]], origins: Mapping[str, str]
) -> dict[str, Layout]:
    """Return `LAYER.name` -> how it is cut, of all but buffers, which every rank holds whole.

    Raises:
        CkptconvError: nothing in the files says how a parameter is cut.
    """
    main = slices.ranks[0].model
    buffers = set().union(*(each.model.buffers for each in slices.ranks))
    shapes = {origins.get(name, name): each for name, each in _shapes(parts).items() if name not in buffers}
    found = slices.layouts or cuts.layouts_by_names(main.root, shapes, main.main)
    affine.check_known(
        [name for name in shapes if name not in found],
        affine.unsupported(main.root, main.main),
        main.main.path,
    )
    return {name: found[origin] for name in parts[0] if (origin := origins.get(name, name)) in found}


def _shapes(parts: Sequence[Mapping[str, StoredTensor]]) -> dict[str, list[tuple[int, ...]]]:
    """Return name -> the shape of each rank's part, of the names that all ranks hold."""
    return {
        name: [each[name].view.shape for each in parts]
        for name in parts[0]
        if all(name in each for each in parts)
    }


def _without_masters(
    slices: Slices, held: Mapping[str, StoredTensor], copies: Mapping[str, View]
) -> Iterator[str]:
    """Yield a note on layers of which no optimizer has a weight: they may be frozen, or files of another save."""
    known = set(held)
    for each in slices.ranks:
        known |= each.model.frozen_names | each.model.buffers
    trained = {
        name.partition(".")[0] for name in known - set().union(*(r.model.buffers for r in slices.ranks))
    }
    layers = sorted(
        {
            int(layer)
            for name in copies
            if name not in known and (layer := name.partition(".")[0]) not in trained
        }
    )
    if held and layers:
        yield (
            f"no optimizer holds a weight of layer {listed(layers)}: frozen, or a file of another save; the module's copy "
            "is read"
        )
