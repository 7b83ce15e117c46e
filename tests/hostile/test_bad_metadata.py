"""DCP's `.metadata` with places, sizes and names that no save writes. Written by torch, then changed."""

from __future__ import annotations

import pickle
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from support.torch_files import call, name, text
from torch.distributed import checkpoint as dcp
from torch.distributed.checkpoint.filesystem import _StorageInfo
from torch.distributed.checkpoint.metadata import (
    ChunkStorageMetadata,
    Metadata,
    MetadataIndex,
    TensorStorageMetadata,
)

from ckptconv.backends import open_checkpoint
from ckptconv.errors import CkptconvError
from ckptconv.formats.bounds import check_ranks, is_file_name, is_shape
from ckptconv.read.reader import read_numpy

KEY = "model.layers.0.w"
Change = Callable[[Metadata], object]


@pytest.fixture(scope="module")
def saved(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("dcp") / "run"
    dcp.save({KEY: torch.arange(12.0).reshape(3, 4)}, checkpoint_id=folder, no_dist=True)
    return folder


@pytest.fixture
def folder(saved: Path, tmp_path: Path) -> Path:
    """A copy, beside a file that it should not reach."""
    import shutil

    (tmp_path / "outside").write_bytes((saved / "__0_0.distcp").read_bytes())
    return Path(shutil.copytree(saved, tmp_path / "run"))


def changed(folder: Path, change: Change) -> Path:
    path = folder / ".metadata"
    metadata = pickle.loads(path.read_bytes())
    change(metadata)
    path.write_bytes(pickle.dumps(metadata))
    return folder


def place(**values: Any) -> Change:
    """Where the tensor lies."""

    def change(metadata: Metadata) -> None:
        (index, info), *_ = metadata.storage_data.items()
        metadata.storage_data = {index: replace(info, **values)}

    return change


def chunk(offsets: Any, sizes: Any, whole: Any = None) -> Change:
    """Which part of the tensor it is."""

    def change(metadata: Metadata) -> None:
        entry = metadata.state_dict_metadata[KEY]
        entry.chunks = [ChunkStorageMetadata(offsets, sizes)]
        entry.size = whole or entry.size
        (info,) = metadata.storage_data.values()
        metadata.storage_data = {MetadataIndex(KEY): info}

    return change


def fields(**values: Any) -> Change:
    return lambda metadata: [
        setattr(metadata.state_dict_metadata[KEY], key, value) for key, value in values.items()
    ]


def test_what_torch_wrote_is_read(folder: Path) -> None:
    changed(folder, lambda _: None)
    (tensor,) = open_checkpoint(folder).tensors.values()
    assert read_numpy(tensor.view).tolist() == torch.arange(12.0).reshape(3, 4).tolist()
    changed(folder, chunk((0, 0), (3, 4)))
    assert open_checkpoint(folder).tensors


BIG = 1 << 62
OUTSIDE = "the metadata refers to a file or range outside the checkpoint"
SHORT = "the file ends before its tensors do"
PART = "a part of model.layers.0.w is not made of whole numbers"
SHAPE = "the shape of model.layers.0.w is not made of whole numbers"
BEYOND = "a shard lies outside its tensor"
UNCOVERED = "the shards do not cover their tensor"
OTHER = "not the metadata of a distributed checkpoint"
UNPRINTABLE = "is too long or has unprintable characters"
CHANGES: dict[str, tuple[Change, str]] = {
    "a file above": (place(relative_path="../outside"), OUTSIDE),
    "a file anywhere": (place(relative_path="/etc/passwd"), OUTSIDE),
    "the folder above": (place(relative_path=".."), OUTSIDE),
    "a file below": (place(relative_path="a/b"), OUTSIDE),
    "no file": (place(relative_path=""), OUTSIDE),
    "a file that is none": (place(relative_path=None), OUTSIDE),
    "a file whose name no system takes": (place(relative_path="x" * 300), OUTSIDE),
    "a file with a NUL": (place(relative_path="__0_0.distcp\0"), OUTSIDE),
    "a file with an escape": (place(relative_path="\x1b[2J"), OUTSIDE),
    "a negative offset": (place(offset=-1), OUTSIDE),
    "a far negative offset": (place(offset=-BIG), OUTSIDE),
    "an offset past the end": (place(offset=1 << 40), SHORT),
    "an offset past all files": (place(offset=1 << 80), OUTSIDE),
    "an offset that is no number": (place(offset="0"), OUTSIDE),
    "an offset that is true": (place(offset=True), OUTSIDE),
    "an offset and a length that overflow": (place(offset=BIG, length=BIG), SHORT),
    "a negative length": (place(length=-1), OUTSIDE),
    "a length of nothing": (place(length=0), "the file is truncated or damaged"),
    "a length past the end": (place(length=1 << 40), SHORT),
    "a length past all files": (place(length=1 << 80), OUTSIDE),
    "a length that is none": (place(length=None), OUTSIDE),
    "a length that is a part": (place(length=1.5), OUTSIDE),
    "a chunk outside": (chunk((1, 0), (3, 4)), BEYOND),
    "a chunk with a negative offset": (chunk((-1, 0), (3, 4)), PART),
    "a chunk with a negative size": (chunk((0, 0), (-3, -4)), PART),
    "a chunk far outside": (chunk((BIG, BIG), (3, 4)), BEYOND),
    "a chunk with a number that is too wide": (chunk((1 << 70, 0), (3, 4)), PART),
    "a chunk of too few dims": (chunk((0,), (12,)), "the stored part of model.layers.0.w does not match the metadata"),
    "a chunk of no numbers": (chunk(("0", "0"), (3, 4)), PART),
    "a chunk of lists": (chunk(([0], [0]), (3, 4)), PART),
    "a chunk without a place": (chunk(None, None), PART),
    "a tensor that is larger than its chunks": (chunk((0, 0), (3, 4), (BIG, BIG)), UNCOVERED),
    "a tensor of a million dims": (chunk((0, 0), (3, 4), (2,) * 1_000_000), SHAPE),
    "a tensor of negative sizes": (chunk((0, 0), (3, 4), (-3, -4)), SHAPE),
    "a tensor of a number": (chunk((0, 0), (3, 4), 7), SHAPE),
    "a tensor without a size": (fields(size=None), SHAPE),
    "a tensor without chunks": (fields(chunks=None), UNCOVERED),
    "chunks that are none": (fields(chunks=[None, 3, "x"]), PART),
    "chunks that are a number": (fields(chunks=5), "a pickle has another type where a list is expected"),
    "one chunk twice": (
        lambda m: m.state_dict_metadata[KEY].chunks.append(m.state_dict_metadata[KEY].chunks[0]),
        "two shards hold the same part of a tensor",
    ),
    "no storage": (lambda m: setattr(m, "storage_data", None), OTHER),
    "storage that is a list": (lambda m: setattr(m, "storage_data", [1]), OTHER),
    "storage by number": (
        lambda m: setattr(m, "storage_data", {1: _StorageInfo("__0_0.distcp", 0, 10)}),
        "a tensor's name is not a string",
    ),
    "storage that is a number": (lambda m: setattr(m, "storage_data", {MetadataIndex(KEY): 1}), OUTSIDE),
    "a storage's offset of text": (lambda m: setattr(m, "storage_data", {MetadataIndex(KEY, torch.Size([0])): 1}), OUTSIDE),
    "no table": (lambda m: setattr(m, "state_dict_metadata", None), OTHER),
    "a name that is a number": (lambda m: m.state_dict_metadata.update({1: 2}), "a tensor's name is not a string"),
    "a name with an escape": (lambda m: m.state_dict_metadata.update({"a\x1b[2J": 2}), UNPRINTABLE),
    "a name of 5,000 digits": (lambda m: m.state_dict_metadata.update({"layers." + "1" * 5000: 2}), UNPRINTABLE),
}  # fmt: skip


@pytest.mark.parametrize("case", CHANGES)
def test_metadata_that_lies_is_refused(case: str, folder: Path) -> None:
    change, says = CHANGES[case]
    with pytest.raises(CkptconvError, match=says) as error:
        open_checkpoint(changed(folder, change))
    assert len(str(error.value)) < 10_000
    assert error.value.what.isprintable()


@pytest.mark.parametrize("values", [{"offset": 1 << 40}, {"length": 1 << 40}])
def test_a_place_past_the_end_is_said_to_be_a_short_file(values: dict[str, int], folder: Path) -> None:
    with pytest.raises(CkptconvError, match="the file ends before its tensors do"):
        open_checkpoint(changed(folder, place(**values)))


def in_one_place(name: str) -> Change:
    """The stored tensor under another name too."""

    def change(metadata: Metadata) -> None:
        metadata.state_dict_metadata[name] = metadata.state_dict_metadata[KEY]
        ((index, info),) = metadata.storage_data.items()
        metadata.storage_data[replace(index, fqn=name)] = info

    return change


def test_tied_weights_in_one_place_read_it_twice_and_no_more(folder: Path) -> None:
    """torch writes an archive for each name; another writer may not."""
    checkpoint = open_checkpoint(changed(folder, in_one_place("lm_head.weight")))
    assert {tensor.view.nbytes for tensor in checkpoint.tensors.values()} == {48}
    assert any("lm_head.weight have one place" in note for note in checkpoint.notes)


def test_two_parts_that_the_metadata_locates_without_offsets_are_refused(folder: Path) -> None:
    """One place for both would give the first part twice."""

    def change(metadata: Metadata) -> None:
        entry, zero = metadata.state_dict_metadata[KEY], torch.Size((0, 0))
        assert isinstance(entry, TensorStorageMetadata)
        entry.size = torch.Size((6, 4))
        entry.chunks = [ChunkStorageMetadata(torch.Size((at, 0)), torch.Size((3, 4))) for at in (0, 3)]
        metadata.storage_data = {MetadataIndex(KEY): metadata.storage_data[MetadataIndex(KEY, zero)]}

    with pytest.raises(
        CkptconvError, match=r"the metadata does not locate the part of model\.layers\.0\.w at \[0, 0\]"
    ):
        open_checkpoint(changed(folder, change))


def test_two_layers_in_one_place_are_refused(folder: Path) -> None:
    with pytest.raises(CkptconvError, match="the metadata locates two parts in one place"):
        open_checkpoint(changed(folder, in_one_place("model.layers.1.w")))


def test_metadata_that_would_run_code_runs_none(folder: Path, tmp_path: Path) -> None:
    (folder / ".metadata").write_bytes(
        b"\x80\x02" + call(name("os", "mkdir"), text(str(tmp_path / "canary"))) + b"."
    )
    with pytest.raises(CkptconvError, match=OTHER):
        open_checkpoint(folder)
    assert not (tmp_path / "canary").exists()


@pytest.mark.parametrize(
    ("content", "says"),
    [
        (b"", "a pickle is cut off"),
        (b"\x80", "a pickle is cut off"),
        (b"not a pickle", "a pickle has an opcode that does not exist"),
        *((content, OTHER) for content in (b"N.", b"K\x01.", b"\x80\x02}.", b"]q\x00h\x00a.")),
    ],
)
def test_a_file_that_does_not_hold_metadata_is_refused(content: bytes, says: str, folder: Path) -> None:
    (folder / ".metadata").write_bytes(content)
    with pytest.raises(CkptconvError, match=says):
        open_checkpoint(folder)


def test_the_bounds_are_where_they_are_said_to_be() -> None:
    assert all(map(is_shape, ((0, 1, (1 << 63) - 1), [1] * 64, ())))
    for value in ((1 << 63,), (-1,), (True,), (1.0,), [1] * 65, "12", None, 3, {1: 2}):
        assert not is_shape(value)
    assert all(map(is_file_name, ("__0_0.distcp", "é" * 127, "a b.pt")))
    for bad in ("", ".", "..", "a/b", "/a", "é" * 128, "a\0", "a\n", "\ud800", None, 3):
        assert not is_file_name(bad)
    check_ranks(1 << 20, "x")
    with pytest.raises(CkptconvError, match="too many ranks or files"):
        check_ranks((1 << 20) + 1, "x")
