"""Layer integrity: the files have the bytes that were written, by CRCs, safetensors headers, index and receipt.

A model folder is read independently of the code that wrote it: the headers by safetensors' own reader, the data by plain
reads. A pass therefore does not depend on our views.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from ckptconv.commands.verify.records import Layer, Problem
from ckptconv.copy.hashing import Stretch
from ckptconv.errors import CkptconvError
from ckptconv.formats import json as json_text
from ckptconv.formats.crcs import CheckedEntry, check_crcs
from ckptconv.formats.safetensors import header_by_library
from ckptconv.formats.torch_zip import SUFFIXES, open_torch_zip
from ckptconv.plan.shards import INDEX
from ckptconv.read import workers as threads
from ckptconv.tensors.checkpoint import Checkpoint
from ckptconv.tensors.look import exists, is_file, matching, opened

OnRead = Callable[[int], None] | None


@dataclass(slots=True)
class Found:
    """The findings of one or more checks.

    Args:
        seen: what was checked, with counts.
        proves: what a check shows if it finds no problem.
        unchecked: stored bytes that should have a checksum and have none; with any of these, the layer cannot pass.
        problems: what is wrong.
        notes: findings that are not wrong.
    """

    seen: list[str] = field(default_factory=list)
    proves: list[str] = field(default_factory=list)
    unchecked: list[str] = field(default_factory=list)
    problems: list[Problem] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)

    def add(self, other: Found) -> None:
        """Append another check's findings."""
        self.seen += other.seen
        self.proves += [text for text in other.proves if text not in self.proves]
        self.unchecked += other.unchecked
        self.problems += other.problems
        self.notes += other.notes


def integrity_layer(found: Found) -> Layer:
    """The layer for everything that was checked on both sides. It passes only if nothing was left unchecked."""
    proves, notes = ", ".join(found.proves), (*found.unchecked, *found.notes)
    seen = "; ".join(found.seen)
    if found.problems:
        return Layer("integrity", False, proves, seen, tuple(found.problems), notes)
    if not seen:
        return Layer(
            "integrity", None, proves, "there are no checksums to check the files against", (), notes
        )
    return Layer("integrity", None if found.unchecked else True, proves, seen, (), notes)


def check_rank_files(checkpoint: Checkpoint, workers: int | None, on_read: OnRead = None) -> Found:
    """Compare the CRC-32 of every entry of every rank file; a damaged entry is reported by the tensors in it.

    Args:
        checkpoint: the checkpoint.
        workers: threads; None for one per core and one more.
        on_read: called with the bytes that were read.
    """
    paths = zip_files(checkpoint)
    checked: dict[str, list[CheckedEntry]] = {}

    @contextmanager
    def worker() -> Iterator[Callable[[str], None]]:
        def do(path: str) -> None:
            entries = checked[path] = []
            for entry in check_crcs(path):
                if entry.nbytes:
                    entries.append(entry)
                if on_read:
                    on_read(entry.nbytes)

        yield do

    threads.for_each(paths, worker, threads.count(workers))
    found = Found()
    total = sum(map(len, checked.values()))
    count = sum(entry.is_checked for entries in checked.values() for entry in entries)
    if count:
        of_all = f" of {total:,}" if count < total else ""
        found.seen.append(f"{count:,}{of_all} checksums in {len(paths):,} {_files('rank file', paths)}")
        found.proves.append("no byte changed since torch.save wrote it")
    if count < total:
        without = [path for path in paths if not all(entry.is_checked for entry in checked[path])]
        found.unchecked.append(
            f"{total - count:,} entries in {len(without):,} {_files('rank file', without)} were saved without a CRC: "
            "their bytes cannot be checked"
        )
    others = [file.path for file in checkpoint.files if file.path not in checked]
    if paths and others:
        found.unchecked.append(f"{len(others):,} {_files('other file', others)} have no checksums")
    for path in paths:
        if damaged := [entry.name for entry in checked[path] if entry.is_damaged]:
            found.problems += _damage(checkpoint, path, damaged)
    return found


def _files(word: str, paths: Sequence[object]) -> str:
    return word if len(paths) == 1 else f"{word}s"


def zip_files(checkpoint: Checkpoint) -> list[str]:
    """The rank files that torch.save wrote (zip archives, whose entries have a CRC-32)."""
    return [file.path for file in checkpoint.files if file.path.endswith(SUFFIXES)]


def _damage(checkpoint: Checkpoint, path: str, entries: list[str]) -> Iterator[Problem]:
    """One problem for each damaged entry of a rank file."""
    rank = checkpoint.rank_of.get(path)
    hint = "copy the file again from the node where it was written, or take an earlier step"
    storages = open_torch_zip(path).entries
    for entry in entries:
        key = entry.partition("/data/")[2]
        low, high = (
            (storages[key].start, storages[key].start + storages[key].nbytes) if key in storages else (0, 0)
        )
        names = [
            name
            for name, tensor in checkpoint.tensors.items()
            for view in (tensor.view, *(copy for _, copy in tensor.replicas))
            if any(chunk.file == path and low <= chunk.start < high for chunk in view.chunks)
        ]
        where = f"rank {rank}, {entry} in {path}"
        yield Problem(
            ", ".join(dict.fromkeys(names)) or entry,
            "its stored bytes do not match their CRC-32",
            where,
            hint,
        )


def check_folder(folder: Path) -> tuple[Found, dict[str, Stretch]]:
    """Check the headers of a model folder's safetensors files, and its index.

    Returns:
        The findings, and tensor name -> its bytes.
    """
    found, places = Found(), dict[str, Stretch]()
    index = read_json(folder / INDEX, found)
    paths = _weight_files(folder, index)
    for path in paths:
        held = read_file(path, found)
        for name in held.keys() & places.keys():
            found.problems.append(
                Problem(name, "is in two files", f"{places[name].file.name} and {path.name}")
            )
        places.update(held)
    if paths:
        found.seen.append(f"{len(paths):,} header{'s' if len(paths) > 1 else ''}")
        found.proves.append("the headers are sound")
    if index is not None:
        _index(index, places, found)
    return found, places


def _weight_files(folder: Path, index: Mapping[str, Any] | None) -> list[Path]:
    """The files that transformers opens: those in the index, else model.safetensors, else all. The folder may have more."""
    weight_map = (index or {}).get("weight_map")
    single = folder / "model.safetensors"
    if isinstance(weight_map, dict):
        return sorted(
            path for name in {*map(str, weight_map.values())} if is_file(path := folder / Path(name).name)
        )
    return [single] if is_file(single) else matching(folder, "*.safetensors")


def read_file(path: Path, found: Found) -> dict[str, Stretch]:
    """Check one file's header: safetensors must open it, and see the tensors that the header lists.

    Args:
        path: the file.
        found: gets the problems and notes.

    Returns:
        Tensor name -> its bytes; {} if safetensors cannot open the file.
    """
    from safetensors import SafetensorError

    try:
        theirs, metadata = header_by_library(path)
        with opened(path, "a safetensors file") as file:
            length = int.from_bytes(file.read(0, 8), "little")
            header: dict[str, Any] = json.loads(file.read(8, length))
    except (SafetensorError, OSError, ValueError) as error:
        hint = "it is truncated or damaged: write it again"
        found.problems.append(Problem(path.name, f"safetensors cannot open it: {error}", str(path), hint))
        return {}
    if metadata.get("format") != "pt":
        found.notes.append(
            f"{path.name} does not declare format pt, which older versions of transformers require"
        )
    header.pop("__metadata__", None)
    if {name: (entry["dtype"], tuple(entry["shape"])) for name, entry in header.items()} != theirs:
        found.problems.append(
            Problem(path.name, "safetensors reads different tensors than the header lists", str(path))
        )
    return {
        name: Stretch(
            path, 8 + length + entry["data_offsets"][0], entry["data_offsets"][1] - entry["data_offsets"][0]
        )
        for name, entry in header.items()
    }


def _index(index: Mapping[str, Any], places: Mapping[str, Stretch], found: Found) -> None:
    """Check that the index names each tensor with its file, and states their total size."""
    weight_map = index.get("weight_map")
    if not isinstance(weight_map, dict):
        found.problems.append(Problem(INDEX, "has no weight map"))
        return
    for name, file in weight_map.items():
        if name not in places:
            found.problems.append(Problem(name, "the index names it, but no file holds it", str(file)))
        elif places[name].file.name != file:
            found.problems.append(
                Problem(name, f"the index says {file}", f"it is in {places[name].file.name}")
            )
    found.problems += [
        Problem(name, "the index does not name it", places[name].file.name)
        for name in places
        if name not in weight_map
    ]
    stated = (index.get("metadata") or {}).get("total_size")
    total = sum(place.nbytes for place in places.values())
    if stated is not None and stated != total:
        found.problems.append(Problem(INDEX, f"total_size is {stated:,}, the tensors have {total:,} bytes"))
    found.seen.append(f"an index of {len(weight_map):,} names")
    found.proves.append("the index matches the files")


def read_json(path: Path, found: Found) -> dict[str, Any] | None:
    """Read a JSON object next to the weights.

    Args:
        path: the file.
        found: gets the problem, if the file is not a JSON object.

    Returns:
        The object; None if there is no such file, or if it has a problem.
    """
    if not exists(path):
        return None
    try:
        data = json_text.read_json(path)
    except CkptconvError as error:
        found.problems.append(Problem(path.name, f"cannot be read: {error.found or error.what}", str(path)))
        return None
    if not isinstance(data, dict):
        found.problems.append(Problem(path.name, "is not a JSON object", str(path)))
        return None
    return data
