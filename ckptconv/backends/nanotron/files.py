"""Find a step's files: `model/` has a folder for every segment of a tensor's name, and a file for every rank's shard.

    10/model/model/decoder/0/pp_block/attn/qkv_proj/model_weight_pp-rank-0-of-1_tp-rank-1-of-2.safetensors

A tensor that all TP ranks hold is stored once, without ranks in its file's name. Only the ranks of the first data-parallel
replica write. Source: nanotron/serialize/utils.py, get_path; nanotron/serialize/weights.py, save_weights.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

from ckptconv.errors import CkptconvError, Incomplete, listed
from ckptconv.formats.bounds import check_name, check_ranks
from ckptconv.formats.same import same_bytes
from ckptconv.tensors.look import entries

MODEL = "model"
_FILE = re.compile(
    r"^model_(?P<name>\w+?)(?:_pp-rank-(?P<pp>\d{1,6})-of-(?P<stages>\d{1,6})"
    r"_tp-rank-(?P<tp>\d{1,6})-of-(?P<ranks>\d{1,6})"
    r"(?:_exp-rank-(?P<ep>\d{1,6})-of-(?P<experts>\d{1,6}))?)?\.safetensors$"
)
_DEEPEST = 24  # folders below model/
_LAYER = re.compile(r"(?:^|\.)decoder\.(\d+)\.")


class Shard(NamedTuple):
    """One file: the tensor's name, and the coordinates (pp, tp, ep) of the rank in its name; None where it has none."""

    path: Path
    name: str
    at: tuple[int, int, int] | None


class Files(NamedTuple):
    """The files of a step. sizes: the number of ranks along (pp, tp, ep), as the files' names state it."""

    shards: tuple[Shard, ...]
    sizes: tuple[int, int, int]


def has_files(folder: Path) -> bool:
    """Return True if the folder's `model/` holds a file of nanotron's."""
    return next(_walk(folder / MODEL, folder / MODEL, 0), None) is not None


def find(folders: Sequence[Path]) -> Files:
    """Find the files of a step in the folders of several disks.

    Raises:
        Incomplete: a TP rank's file of some tensor is missing.
        CkptconvError: two folders hold a file with different bytes, or the names state two numbers of ranks.
    """
    found: dict[str, tuple[Path, re.Match[str]]] = {}
    for folder in folders:
        home = folder / MODEL
        for path, match in _walk(home, home, 0):
            inside = path.relative_to(home).as_posix()
            if inside in found and not same_bytes(path, found[inside][0]):
                raise CkptconvError(
                    f"two files named {inside} have different bytes",
                    where=f"{found[inside][0]} and {path}",
                    hint="they are from different saves, or one is damaged; omit one of the folders",
                )
            found.setdefault(inside, (path, match))
    shards = tuple(_shard(path, inside, match) for inside, (path, match) in sorted(found.items()))
    sizes = _sizes([match for _, match in found.values()], folders[0])
    _check_whole(shards, sizes, folders[0])
    return Files(shards, sizes)


def check_stages(files: Files, layers: object, folder: Path) -> None:
    """Raise Incomplete if layers that the model's config counts are absent, and with them every file of a stage."""
    present = {int(found[1]) for shard in files.shards if (found := _LAYER.search(shard.name))}
    stages = {shard.at[0] for shard in files.shards if shard.at is not None}
    lost = sorted({*range(files.sizes[0])} - stages)
    if lost and type(layers) is int and len(present) < layers:
        raise Incomplete(
            f"the files of pipeline stage {lost[0]} of {files.sizes[0]} are missing",
            where=folder,
            found=f"{len(present)} of {layers} layers",
            wanted=f"*_pp-rank-{lost[0]}-of-{files.sizes[0]}_*.safetensors",
            hint="copy them from the node where that stage ran, or name its folder with --also",
        )


def _walk(folder: Path, home: Path, depth: int) -> Iterator[tuple[Path, re.Match[str]]]:
    """Yield the files of tensors below a folder, without the links in it."""
    try:
        found = sorted(entries(folder), key=lambda entry: entry.name)
    except OSError:
        return
    for entry in found:
        if entry.is_folder:
            if depth < _DEEPEST:
                yield from _walk(entry.path, home, depth + 1)
        elif depth and (match := _FILE.match(entry.path.name)):  # nanotron's names have a segment at least
            yield entry.path, match


def _shard(path: Path, inside: str, match: re.Match[str]) -> Shard:
    name = check_name(".".join([*inside.split("/")[:-1], match["name"]]), path)
    at = None if match["pp"] is None else (int(match["pp"]), int(match["tp"]), int(match["ep"] or 0))
    return Shard(path, name, at)


def _sizes(matches: Sequence[re.Match[str]], folder: Path) -> tuple[int, int, int]:
    stated = {(int(m["stages"]), int(m["ranks"])) for m in matches if m["stages"] is not None}
    experts = {int(m["experts"]) for m in matches if m["experts"] is not None}
    if len(stated) > 1 or len(experts) > 1:
        raise CkptconvError(
            "files of two saves with different numbers of ranks are in one folder",
            where=folder,
            found=", ".join(f"PP {pp} and TP {tp}" for pp, tp in sorted(stated))
            + (f"; EP {listed(list(map(str, sorted(experts))))}" if len(experts) > 1 else ""),
            hint="remove the files of the older save",
        )
    sizes = (*next(iter(stated), (1, 1)), next(iter(experts), 1))
    check_ranks(sizes[0] * sizes[1] * sizes[2], folder)
    return sizes


def _check_whole(shards: Sequence[Shard], sizes: tuple[int, int, int], folder: Path) -> None:
    """Each tensor is one file, or one file for every TP rank of one stage."""
    ranks: dict[str, list[tuple[int, int, int] | None]] = {}
    for shard in shards:
        ranks.setdefault(shard.name, []).append(shard.at)
    for name, held in ranks.items():
        cut = [at for at in held if at is not None]
        if len(cut) < len(held) and len(held) > 1:
            raise CkptconvError(
                f"{name} is stored whole and in shards",
                where=folder,
                hint="files of two saves are in one folder: remove the older ones",
            )
        if len({at[0] for at in cut}) > 1:
            raise CkptconvError(
                f"{name} is stored by several pipeline stages",
                where=folder,
                found=listed([str(at[0]) for at in cut]),
                hint="files of two saves are in one folder: remove the older ones",
            )
        missing = sorted({*range(sizes[1])} - {at[1] for at in cut}) if cut else []
        if missing:
            raise Incomplete(
                f"TP rank {missing[0]} of {sizes[1]} is missing from {name}",
                where=folder,
                found=f"TP ranks {listed([str(at[1]) for at in cut])}",
                hint="copy its file from the node where that rank ran, or name its folder with --also",
            )
