"""Read the safetensors files that torch's HuggingFaceStorageWriter writes on each rank, before consolidation.

`shard-0000R-model-0000I-of-0000N.safetensors` holds the part of output file I that rank R-1 has. The header's
`__metadata__`, DCP_SHARDING_INFO, records the offsets of its parts (torch/distributed/checkpoint/hf_storage.py,
_hf_utils.py). The files record neither the number of ranks nor the shape of a whole tensor, which follows from its parts.

With enable_consolidation the shards are in `sharded/`, and the whole model is next to that folder. ckptconv still reads the
shards, because torch's consolidation (_consolidate_hf_safetensors.py, torch 2.13 and 2.14) writes 0.0 for every 0-dim
tensor.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path

from ckptconv.backends.base import unknown_writer
from ckptconv.backends.dcp.hf_shards import NAME, SHARDED, has_shards, holds_shards
from ckptconv.backends.dcp.homes import assets_of, check_finished, home_of, optimizers_beside
from ckptconv.backends.dcp.whole_shapes import are_whole
from ckptconv.backends.huggingface.weight_files import RANK_SHARD
from ckptconv.backends.runs import Place
from ckptconv.backends.saved_at import apart
from ckptconv.errors import CkptconvError, Incomplete, Kind
from ckptconv.formats.bounds import is_shape
from ckptconv.formats.in_order import in_order
from ckptconv.formats.json import parse_json, read_table
from ckptconv.formats.safetensors import read_header
from ckptconv.formats.same import same_bytes
from ckptconv.tensors.boxes import Box, box_around
from ckptconv.tensors.checkpoint import Checkpoint, RankFile, Skipped, StoredTensor
from ckptconv.tensors.look import is_file, matching, paths_in, size_of
from ckptconv.tensors.stored_file import path_of
from ckptconv.tensors.view import View
from ckptconv.tensors.view import place as put

saved_by = unknown_writer
_INFO, _OFFSETS = "DCP_SHARDING_INFO", "saved_offsets"
_CONSOLIDATED = "consolidated"  # NeMo-Automodel (components/checkpoint/checkpointing.py, save_model)
_MAP = ".hf_metadata/fqn_to_file_index_mapping.json"  # NeMo-Automodel (components/checkpoint/addons.py)

_Part = tuple[tuple[int, ...], View]


def read(place: Place, also: Sequence[Path] = ()) -> Checkpoint:
    """Read the header of every shard.

    Args:
        place: the folder of the checkpoint.
        also: further folders with shards of the same checkpoint.

    Raises:
        Incomplete: a shard is missing.
        CkptconvError: shards do not tile their tensors.
    """
    home = home_of(place.folder, has_shards)
    if home is None:
        raise CkptconvError(
            "no shards here",
            where=place.folder,
            wanted="shard-R-model-I-of-N.safetensors",
            kind=Kind.NOT_A_CHECKPOINT,
        )
    check_finished(home, place.folder)
    top, home = home, home if holds_shards(home) else home / SHARDED
    parts: dict[str, list[_Part]] = {}
    files = []
    paths = _files([home, *(home_of(path, holds_shards) or path for path in also)])
    for path, held in zip(paths, in_order(lambda path: list(_read_shard(path)), paths), strict=True):
        files.append(RankFile(_rank(path), str(path), size_of(path)))
        for name, part in held:
            parts.setdefault(name, []).append(part)
    ranks = len({file.rank for file in files})
    tensors = {name: _whole(name, found, home) for name, found in parts.items()}
    copy = top if top != home else home / _CONSOLIDATED
    consolidated = tuple(_check_consolidated(copy, tensors, home))
    is_whole = are_whole(home, tensors) or bool(consolidated)
    notes = [*place.notes(), *apart([path_of(file.path) for file in files]), *_unnamed(home, parts)]
    if not is_whole:
        notes.append(
            f"{ranks} ranks' shards are here; the files do not say how many ranks saved, so compare with your run"
        )
    return Checkpoint(
        backend=NAME,
        layout="safetensors shards of ranks (HuggingFaceStorageWriter)"
        + (", saved by NeMo-Automodel" if is_file(home / _MAP) else ""),
        root=home,
        world_size=ranks,
        files=tuple(files),
        tensors=tensors,
        step=place.step,
        role=place.role,
        assets=assets_of(home),
        skipped=(*optimizers_beside(home), *consolidated),
        notes=tuple(notes),
        naming="transformers",
    )


def _check_consolidated(folder: Path, tensors: dict[str, StoredTensor], home: Path) -> Iterator[Skipped]:
    """Yield the files that torch or NeMo-Automodel consolidated; their headers must have the shards' names and shapes."""
    nbytes = 0
    for path in matching(folder, "*.safetensors"):
        nbytes += size_of(path)
        for name, view in read_header(path)[0].items():
            part = tensors.get(name)
            if part is None or part.view.shape != view.shape:
                raise Incomplete(
                    f"the shards and the model that was consolidated from them differ in {name}",
                    where=path,
                    found="no such tensor" if part is None else f"{list(part.view.shape)} in the shards",
                    wanted=str(list(view.shape)),
                    hint=f"copy the missing shards to {home.name}/, or move away what is of another save",
                )
    if nbytes:
        yield Skipped("consolidated *.safetensors", nbytes, "made from the shards, which are read")


def _rank(path: Path) -> int:
    match = RANK_SHARD.match(path.name)
    return int(match[1]) - 1 if match else 0


def _files(folders: Sequence[Path]) -> list[Path]:
    """Return every shard once, in rank order; refuse two saves in one folder."""
    found: dict[str, Path] = {}
    for folder in folders:
        for path in paths_in(folder):
            first = found.setdefault(path.name, path) if RANK_SHARD.match(path.name) else path
            if first is not path and not same_bytes(first, path):
                raise CkptconvError(
                    f"two files named {path.name} have different bytes",
                    where=f"{first} and {path}",
                    hint="they are from different saves, or one is damaged; omit one of the folders",
                )
    totals = {name.rsplit("-", 1)[1] for name in found}
    if len(totals) > 1:
        raise CkptconvError(
            "the folder has shards of two different saves", where=folders[0], found=", ".join(sorted(totals))
        )
    return [found[name] for name in sorted(found)]


def _read_shard(path: Path) -> Iterator[tuple[str, _Part]]:
    views, metadata = read_header(path)
    try:
        info = parse_json(metadata.get(_INFO, ""), path)
    except CkptconvError as error:
        raise CkptconvError(
            "a shard's header has no offsets of its parts", where=path, wanted=_INFO
        ) from error
    for name, view in views.items():
        entry = info.get(name) if isinstance(info, dict) else None
        offsets = entry.get(_OFFSETS) if isinstance(entry, dict) else None
        if not is_shape(offsets) or len(offsets) != len(view.shape):
            raise CkptconvError(
                f"the header has no valid offset for the part of {name}", where=path, found=entry
            )
        yield name, (tuple(offsets), view)


def _whole(name: str, parts: list[_Part], home: Path) -> StoredTensor:
    """Return the tensor that the parts tile; a gap or an overlap is an error."""
    if len({len(offsets) for offsets, _ in parts}) != 1:
        raise CkptconvError(f"the shards of {name} have different numbers of dims", where=home)
    shape = box_around(Box(offsets, view.shape) for offsets, view in parts).ends
    stored = [part for part in parts if part[1].numel]
    try:
        view = put(shape, parts[0][1].dtype, stored)
    except CkptconvError as error:
        raise Incomplete(
            f"the shards of {name} are incomplete: {error.what}",
            where=home,
            found=error.found,
            wanted=error.wanted,
            hint="a rank's file is missing: copy it from its node, or name its folder with --also",
        ) from error
    return StoredTensor(view, f"{len(stored)} chunks" if len(stored) > 1 else "")


def _unnamed(home: Path, parts: dict[str, list[_Part]]) -> list[str]:
    """Return the names in NeMo's map of the model that are missing from the shards."""
    lost = sorted(set(read_table(home / _MAP)) - set(parts))
    if not lost:
        return []
    return [
        f"{len(lost)} names of {_MAP} are in no shard: {', '.join(lost[:3])}"
        + (" ..." if len(lost) > 3 else "")
    ]
