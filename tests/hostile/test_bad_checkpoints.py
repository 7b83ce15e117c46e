"""Folders and rank files that are no checkpoint: one clear error, the right exit code, and nothing left behind."""

from __future__ import annotations

import io
import os
import tarfile
import zipfile
from collections.abc import Callable
from pathlib import Path

import pytest
from support.bad_tools import refused
from support.helpers import (
    ROLE,
    assert_one_error,
    cli,
    own_copy,
    rank_file,
    save_ws1,
    state,
)

from ckptconv.commands.merge.run import merge
from ckptconv.errors import CkptconvError

Made = Callable[[str], Path]


# --- the folder


def test_an_empty_folder(tmp_path: Path, place: Path) -> None:
    (tmp_path / "run").mkdir()
    refused(tmp_path / "run", place, r"the folder is empty", names=(tmp_path / "run",))
    assert_one_error(cli("inspect", tmp_path / "run"), r"the folder is empty")


def test_a_folder_that_is_not_a_checkpoint(tmp_path: Path, place: Path) -> None:
    (tmp_path / "run").mkdir()
    for name in ("holiday.jpg", "taxes.pdf"):
        (tmp_path / "run" / name).write_text("x")
    wanted = ("holiday.jpg, taxes.pdf", "model_world_size_W_rank_R.pt", "safetensors")
    refused(tmp_path / "run", place, r"no checkpoint found here", names=wanted)
    assert_one_error(cli("inspect", tmp_path / "run"), r"no checkpoint found here")


def test_a_file_where_a_folder_should_be(made: Made, place: Path) -> None:
    refused(rank_file(made("fsdp2_w4"), 0), place, r"one rank's part of a sharded tensor")


def test_a_run_without_a_step(tmp_path: Path, place: Path) -> None:
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "latest_checkpointed_iteration.txt").write_text("12")
    refused(tmp_path / "run", place, r"no checkpoint found here|step 12")


def test_a_step_whose_save_never_finished(tmp_path: Path, place: Path) -> None:
    (tmp_path / "run" / "global_step_3" / "actor").mkdir(parents=True)
    refused(tmp_path / "run", place, r"step 3 is the newest of the run, but has no weights")


# --- rank files


def test_a_missing_rank(made: Made, tmp_path: Path, place: Path) -> None:
    run = own_copy(made("fsdp2_w4"), tmp_path / "run")
    rank_file(run, 3).unlink()
    wanted = (run / ROLE, "model_world_size_4_rank_3.pt", "0 1 2 ✗", "--also")
    refused(run, place, r"rank 3 of 4 is missing", names=wanted)


@pytest.mark.parametrize("share", [0.0, 0.001, 0.3, 0.9, 0.999])
def test_a_truncated_rank_file(made: Made, tmp_path: Path, place: Path, share: float) -> None:
    """At any length: nothing of it, the pickle, a storage, the directory."""
    run = own_copy(made("fsdp2_w4"), tmp_path / "run")
    file = rank_file(run, 2)
    os.truncate(file, int(file.stat().st_size * share))
    refused(run, place, r"truncated|empty|not a torch\.save file", names=(file,))


def test_a_rank_file_cut_after_it_was_planned(made: Made, tmp_path: Path, place: Path) -> None:
    """Found while its bytes are read: what was written until then goes too."""
    run = own_copy(made("fsdp2_w4"), tmp_path / "run")
    before = state(place)

    def cut(*_: object) -> None:
        os.truncate(rank_file(run, 2), 2_000)

    with pytest.raises(CkptconvError, match="changed while it was read; nothing was written") as error:
        merge(run, place / "out", on_plan=cut)
    assert "model_world_size_4_rank_2.pt" in str(error.value)
    assert state(place) == before


def flip(file: Path, key: str = "0") -> None:
    """Change one bit in the middle of a storage."""
    with zipfile.ZipFile(file) as archive:
        (info,) = (i for i in archive.infolist() if i.filename.endswith(f"/data/{key}"))
    with open(file, "r+b") as raw:
        raw.seek(info.header_offset)
        head = raw.read(30)
        at = (
            info.header_offset
            + 30
            + int.from_bytes(head[26:28], "little")
            + int.from_bytes(head[28:30], "little")
        )
        raw.seek(at + info.file_size // 2)
        byte = raw.read(1)[0]
        raw.seek(-1, os.SEEK_CUR)
        raw.write(bytes([byte ^ 0x10]))


def test_a_flipped_bit_is_found_by_verify(made: Made, tmp_path: Path) -> None:
    run = own_copy(made("fsdp2_w4"), tmp_path / "run")
    assert cli("verify", run).code == 0
    flip(rank_file(run, 1))
    ran = cli("verify", run, columns=200)
    assert ran.code == 1
    assert "model_world_size_4_rank_1.pt" in ran.flat
    assert cli("verify", run, "--against", made("fsdp2_w4") / "hub").code == 1


def test_a_flipped_bit_in_the_pickle(made: Made, tmp_path: Path, place: Path) -> None:
    """A pickle's damage could change a shape or an offset, so its checksum is always compared."""
    run = own_copy(made("fsdp2_w4"), tmp_path / "run")
    data = rank_file(run, 1).read_bytes()
    at = data.index(b"model.norm.weight")
    rank_file(run, 1).write_bytes(data[:at] + b"M" + data[at + 1 :])
    refused(run, place, r"damaged|disagree", names=("rank",))


def test_a_compressed_rank_file(made: Made, tmp_path: Path, place: Path) -> None:
    run = own_copy(made("ws1_fsdp1"), tmp_path / "run")
    file = rank_file(run, 0)
    with zipfile.ZipFile(file) as old:
        parts = {info.filename: old.read(info) for info in old.infolist()}
    with zipfile.ZipFile(file, "w", zipfile.ZIP_DEFLATED) as new:
        for name, data in parts.items():
            new.writestr(name, data)
    refused(run, place, r"compressed", names=("torch.save",))


def test_a_rank_file_in_the_form_from_before_torch_1_6(tmp_path: Path, place: Path) -> None:
    import torch

    run = save_ws1({"w": torch.ones(3)}, {"model_type": "odd"}, tmp_path / "run")
    torch.save({"w": torch.ones(3)}, rank_file(run, 0), _use_new_zipfile_serialization=False)
    refused(run, place, r"legacy", names=("torch.save it again",))


@pytest.mark.parametrize("kind", ["text", "zip", "tar"])
def test_a_rank_file_that_torch_did_not_write(made: Made, tmp_path: Path, place: Path, kind: str) -> None:
    run = own_copy(made("fsdp2_w4"), tmp_path / "run")
    file = rank_file(run, 0)
    if kind == "text":
        file.write_text("version https://git-lfs.github.com/spec/v1\noid sha256:12\nsize 2\n")
    elif kind == "zip":
        with zipfile.ZipFile(file, "w") as archive:
            archive.writestr("hello.txt", "hello")
    else:
        with tarfile.open(file, "w") as archive:
            archive.addfile(tarfile.TarInfo("hello"), io.BytesIO())
    refused(run, place, r"torch", names=(file,))


@pytest.mark.parametrize("root", [[1, 2], "weights", None], ids=["list", "text", "none"])
def test_a_rank_file_without_a_state_dict(tmp_path: Path, place: Path, root: object) -> None:
    import torch

    run = save_ws1({}, {"model_type": "odd"}, tmp_path / "run")
    torch.save(root, rank_file(run, 0))
    refused(run, place, r"does not hold a state dict", names=(rank_file(run, 0),))


def test_a_rank_file_without_a_tensor(tmp_path: Path, place: Path) -> None:
    refused(save_ws1({}, {"model_type": "odd"}, tmp_path / "run"), place, r"no model tensors|no tensors")


# --- model folders as input


def hub_copy(made: Made, target: Path) -> Path:
    merge(made("fsdp2_w4"), target, dtype="keep", max_shard_size="20KB")
    return target


def test_a_missing_shard_of_a_model_folder(made: Made, tmp_path: Path, place: Path) -> None:
    folder = hub_copy(made, tmp_path / "model")
    gone = min(folder.glob("*.safetensors"))
    gone.unlink()
    refused(folder, place, r"a shard named in the index is missing", names=(gone.name,))


def test_a_truncated_shard_of_a_model_folder(made: Made, tmp_path: Path, place: Path) -> None:
    folder = hub_copy(made, tmp_path / "model")
    file = min(folder.glob("*.safetensors"))
    os.truncate(file, file.stat().st_size - 4)
    refused(folder, place, r"truncated|do not fill it", names=(file.name,))


def test_an_index_that_names_a_file_outside_its_folder(made: Made, tmp_path: Path, place: Path) -> None:
    folder = hub_copy(made, tmp_path / "model")
    index = folder / "model.safetensors.index.json"
    index.write_text(index.read_text().replace("model-00001-of", "../model-00001-of"))
    refused(folder, place, r"outside its folder")


@pytest.mark.parametrize("length", [2**63, 2**31, 0])
def test_a_header_length_beyond_the_file(made: Made, tmp_path: Path, place: Path, length: int) -> None:
    folder = hub_copy(made, tmp_path / "model")
    file = min(folder.glob("*.safetensors"))
    data = file.read_bytes()
    file.write_bytes(length.to_bytes(8, "little") + data[8:])
    refused(folder, place, r"safetensors", names=(file.name,))
