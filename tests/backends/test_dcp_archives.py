"""Places in `.distcp` files: one archive of a kind is looked at, the others follow, and all are checked when read."""

from __future__ import annotations

import pickle
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from support.helpers import cli
from torch.distributed import checkpoint as dcp
from torch.distributed.checkpoint.metadata import Metadata, MetadataIndex

from ckptconv.backends import open_checkpoint
from ckptconv.backends.dcp import archives
from ckptconv.backends.dcp.archive_file import ArchiveFile
from ckptconv.errors import CkptconvError
from ckptconv.read.reader import read_numpy
from ckptconv.tensors.checkpoint import Checkpoint

LAYERS = 6


def weights(**others: torch.Tensor) -> dict[str, torch.Tensor]:
    layers = {f"model.layers.{n}.w": torch.arange(12.0).reshape(3, 4) + 100 * n for n in range(LAYERS)}
    return {**layers, **others}


def save(tensors: dict[str, torch.Tensor], folder: Path) -> Path:
    dcp.save(tensors, checkpoint_id=folder, no_dist=True)
    return folder


@pytest.fixture(scope="module")
def saved(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save(weights(), tmp_path_factory.mktemp("dcp") / "run")


@pytest.fixture
def folder(saved: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(saved, tmp_path / "run"))


def values(checkpoint: Checkpoint) -> dict[str, np.ndarray]:
    return {name: read_numpy(tensor.view) for name, tensor in checkpoint.tensors.items()}


def changed(folder: Path, change: Callable[[Metadata], None]) -> Path:
    metadata = pickle.loads((folder / ".metadata").read_bytes())
    change(metadata)
    (folder / ".metadata").write_bytes(pickle.dumps(metadata))
    return folder


def test_one_archive_of_a_kind_is_opened(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    opened: list[str] = []
    read = archives.read_archive

    def counted(path, handle, piece, load):  # type: ignore[no-untyped-def]
        opened.append(piece.name)
        return read(path, handle, piece, load)

    monkeypatch.setattr(archives, "read_archive", counted)
    checkpoint = open_checkpoint(folder)
    assert len(opened) == 1
    for name, tensor in weights().items():
        assert np.array_equal(values(checkpoint)[name], tensor.numpy())


def test_tensors_of_other_forms_are_read_as_they_are(tmp_path: Path) -> None:
    """A transposed weight has strides of its own, and a tensor that is a part of its storage is cloned by torch."""
    others = {
        "model.layers.0.turned": torch.arange(12.0).reshape(3, 4).t(),
        "model.layers.1.turned": torch.arange(12.0).reshape(3, 4).t() + 1,
        "model.layers.0.odd": torch.arange(7.0),
        "model.layers.1.odd": torch.arange(7.0)[::2],
        "model.norm": torch.ones(3, dtype=torch.bfloat16),
        "model.scale": torch.tensor(3.0),
        "model.layers.0.empty": torch.empty(0, 4),
    }
    tensors = weights(**others)
    found = open_checkpoint(save(tensors, tmp_path / "run")).tensors
    for name, tensor in tensors.items():
        assert (
            read_numpy(found[name].view).tobytes()
            == tensor.contiguous().reshape(-1).view(torch.uint8).numpy().tobytes()
        ), name


def shifted(metadata: Metadata) -> None:
    index = MetadataIndex("model.layers.3.w", torch.Size((0, 0)))
    info = metadata.storage_data[index]
    metadata.storage_data[index] = replace(info, offset=info.offset - 64)


def test_a_place_without_an_archive_is_refused_when_it_is_read(folder: Path, tmp_path: Path) -> None:
    checkpoint = open_checkpoint(changed(folder, shifted))
    good = checkpoint.tensors["model.layers.2.w"]
    assert np.array_equal(read_numpy(good.view), weights()["model.layers.2.w"].numpy())
    with pytest.raises(CkptconvError, match=r"not a torch\.save file|truncated or damaged") as refused:
        read_numpy(checkpoint.tensors["model.layers.3.w"].view)
    assert "__0_0.distcp" in str(refused.value.where)


def test_a_merge_of_a_damaged_archive_publishes_nothing(folder: Path, tmp_path: Path) -> None:
    (folder / "config.json").write_text('{"model_type": "not-known", "architectures": ["NoSuchModel"]}')
    assert cli("merge", str(folder), str(tmp_path / "whole")).code == 0
    changed(folder, shifted)
    ran = cli("merge", str(folder), str(tmp_path / "out"))
    assert ran.code == 2
    assert "__0_0.distcp" in ran.err
    assert not (tmp_path / "out").exists()


FIRST, SECOND = (MetadataIndex(f"model.layers.{n}.w", torch.Size((0, 0))) for n in (1, 2))


def one_place(metadata: Metadata) -> None:
    metadata.storage_data[SECOND] = metadata.storage_data[FIRST]


def not_described(metadata: Metadata) -> None:
    del metadata.state_dict_metadata[SECOND.fqn]


@pytest.mark.parametrize(
    ("change", "says"),
    [
        (one_place, "the metadata locates two parts in one place"),
        (not_described, r"the metadata locates model\.layers\.2\.w, but does not describe it"),
    ],
)
def test_metadata_that_contradicts_itself_is_refused(
    folder: Path, change: Callable[[Metadata], None], says: str
) -> None:
    with pytest.raises(CkptconvError, match=says) as refused:
        open_checkpoint(changed(folder, change))
    assert ".metadata" in str(refused.value.where)


def test_tied_weights_have_an_archive_each(tmp_path: Path) -> None:
    tensor = torch.arange(12.0).reshape(3, 4)
    found = open_checkpoint(save({"model.embed": tensor, "model.head": tensor}, tmp_path / "run")).tensors
    assert [read_numpy(found[name].view).tolist() for name in found] == [tensor.tolist()] * 2


def test_a_header_with_another_length_is_called_damage(folder: Path) -> None:
    info = pickle.loads((folder / ".metadata").read_bytes()).storage_data[SECOND]
    with (folder / info.relative_path).open("r+b") as file:
        file.seek(info.offset)
        at = file.read(info.length).index(b"archive/data/0") - 2  # where the length of the padding is
        file.seek(info.offset + at)
        padding = int.from_bytes(file.read(2), "little")
        file.seek(info.offset + at)
        file.write((padding + 4).to_bytes(2, "little"))
    checkpoint = open_checkpoint(folder)
    with pytest.raises(CkptconvError, match="disagree on where its elements begin") as refused:
        read_numpy(checkpoint.tensors[SECOND.fqn].view)
    assert info.relative_path in str(refused.value.where)


def rewritten(folder: Path, name: str, tensor: torch.Tensor) -> None:
    """Put another archive of the same length at a tensor's place."""
    import io

    info = pickle.loads((folder / ".metadata").read_bytes()).storage_data[
        MetadataIndex(name, torch.Size((0, 0)))
    ]
    buffer = io.BytesIO()
    torch.save(tensor, buffer)
    assert len(buffer.getvalue()) == info.length
    with (folder / info.relative_path).open("r+b") as file:
        file.seek(info.offset)
        file.write(buffer.getvalue())


@pytest.mark.parametrize(
    ("tensor", "says"),
    [
        (torch.arange(12.0).reshape(4, 3), "does not match the metadata"),
        (torch.arange(12, dtype=torch.int32).reshape(3, 4), "does not match the metadata"),
        (torch.arange(12.0).reshape(4, 3).t(), "another form than the parts of tensors like it"),
    ],
)
def test_an_archive_of_another_tensor_is_refused_when_it_is_read(
    folder: Path, tensor: torch.Tensor, says: str
) -> None:
    try:
        rewritten(folder, "model.layers.4.w", tensor)
    except AssertionError:
        pytest.skip("torch wrote it in another length")
    checkpoint = open_checkpoint(folder)
    with pytest.raises(CkptconvError, match=says):
        read_numpy(checkpoint.tensors["model.layers.4.w"].view)


def test_a_pickled_path_still_checks(folder: Path) -> None:
    """A Ray task gets the plan pickled."""
    checkpoint = open_checkpoint(changed(folder, shifted))
    view = pickle.loads(pickle.dumps(checkpoint.tensors["model.layers.3.w"].view))
    assert isinstance(view.chunks[0].file, ArchiveFile)
    with pytest.raises(CkptconvError, match=r"not a torch\.save file|truncated or damaged"):
        read_numpy(view)
