"""Links and things that are no files: nothing outside a checkpoint is copied, and nothing waits for ever."""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from pathlib import Path

import pytest
from support.bad_tools import refused
from support.helpers import ROLE, assert_one_error, cli, own_copy, rank_file

from ckptconv.errors import CkptconvError
from ckptconv.formats.crcs import check_crcs
from ckptconv.formats.safetensors import read_header
from ckptconv.formats.torch_zip import open_torch_zip
from ckptconv.publish import assets

Made = Callable[[str], Path]
SECRET = "a secret of this machine"


@pytest.fixture
def run(made: Made, tmp_path: Path) -> Path:
    """A checkpoint, with a secret beside its folder."""
    (tmp_path / "outside").mkdir()
    (tmp_path / "outside" / "secret.txt").write_text(SECRET)
    (tmp_path / "outside" / "secret.json").write_text(json.dumps({"auths": SECRET}))
    return own_copy(made("fsdp2_w4"), tmp_path / "run")


def everything(folder: Path) -> bytes:
    return b"".join(path.read_bytes() for path in sorted(folder.rglob("*")) if path.is_file())


LINKS: dict[str, Callable[[Path, Path], object]] = {
    "a tokenizer": lambda folder, outside: (folder / "tokenizer.json").symlink_to(outside / "secret.txt"),
    "a relative one": lambda folder, _: (folder / "vocab.txt").symlink_to("../../../../outside/secret.txt"),
    "a link to a link": lambda folder, outside: (
        (folder / "b.txt").symlink_to(outside / "secret.txt"), (folder / "a.txt").symlink_to("b.txt")),
    "a folder": lambda folder, outside: (folder / "code").symlink_to(outside, target_is_directory=True),
    "a file in a linked folder": lambda folder, outside: (
        (folder / "code").symlink_to(outside, target_is_directory=True),
        (folder / "x.txt").symlink_to(folder / "code" / "secret.txt")),
    "a circle": lambda folder, _: ((folder / "a").symlink_to("b"), (folder / "b").symlink_to("a")),
    "the folder itself": lambda folder, _: (folder / "self").symlink_to(".", target_is_directory=True),
    "what is not there": lambda folder, _: (folder / "gone.txt").symlink_to("/no/such/file"),
    "a device": lambda folder, _: (folder / "zero.txt").symlink_to("/dev/zero"),
    "a process's memory": lambda folder, _: (folder / "environ").symlink_to("/proc/self/environ"),
    "a pipe": lambda folder, _: os.mkfifo(folder / "merges.txt"),
}  # fmt: skip


@pytest.mark.parametrize("case", LINKS)
def test_a_link_out_of_the_folder_is_not_copied(case: str, run: Path, place: Path, tmp_path: Path) -> None:
    folder = run / ROLE / "huggingface"
    (folder / "tokenizer.json").unlink(missing_ok=True)
    LINKS[case](folder, tmp_path / "outside")
    ran = cli("merge", run, place / "out")
    assert ran.code == 0, ran.err
    assert SECRET.encode() not in everything(place / "out")
    assert not any(path.is_symlink() for path in (place / "out").rglob("*"))
    assert not (place / "out" / "zero.txt").exists()


def test_a_link_inside_the_folder_is_copied_as_a_file(run: Path, place: Path) -> None:
    folder = run / ROLE / "huggingface"
    (folder / "real.txt").write_text("words")
    (folder / "vocab.txt").symlink_to("real.txt")
    assert cli("merge", run, place / "out").code == 0
    assert (place / "out" / "vocab.txt").read_text() == "words"
    assert not (place / "out" / "vocab.txt").is_symlink()


def test_a_config_that_is_a_link_out_of_the_folder_is_refused(run: Path, place: Path, tmp_path: Path) -> None:
    """It would be copied as it is: any JSON of this machine, credentials too, would be in the model that is pushed."""
    config = run / ROLE / "huggingface" / "config.json"
    config.unlink()
    config.symlink_to(tmp_path / "outside" / "secret.json")
    refused(run, place, r"link to a file outside its folder", names=("--config FILE",))
    assert_one_error(cli("inspect", run), r"link to a file outside its folder")


def test_a_config_in_the_cache_of_the_hub_is_a_link_that_is_followed(tmp_path: Path) -> None:
    """huggingface_hub keeps SNAPSHOT/config.json -> ../../blobs/HASH."""
    (tmp_path / "blobs").mkdir()
    (tmp_path / "blobs" / "abc").write_text('{"model_type": "odd"}')
    snapshot = tmp_path / "snapshots" / "1"
    snapshot.mkdir(parents=True)
    (snapshot / "config.json").symlink_to("../../blobs/abc")
    assert assets.read_config(snapshot) == {"model_type": "odd"}


@pytest.mark.parametrize("kind", ["a pipe", "a device", "a folder", "a circle", "a socket's place"])
def test_a_rank_file_that_is_no_file(kind: str, run: Path, place: Path) -> None:
    file = rank_file(run, 1)
    file.unlink()
    match kind:
        case "a pipe":
            os.mkfifo(file)
        case "a device":
            file.symlink_to("/dev/zero")
        case "a folder":
            file.mkdir()
        case "a circle":
            file.symlink_to(file.name)
        case _:
            file.symlink_to("/proc/self/fd/0")
    assert cli("merge", run, place / "out").code != 0
    circle = "cannot be read: Too many levels of symbolic links"
    says = circle if kind == "a circle" else "not a torch.save file, but a folder, a pipe or a device"
    for read in (lambda: open_torch_zip(str(file)), lambda: list(check_crcs(str(file)))):
        with pytest.raises(CkptconvError, match=says):
            read()


@pytest.mark.parametrize("name", ["config.json", "tokenizer.json"])
def test_a_pipe_in_the_place_of_a_small_file(name: str, run: Path, place: Path) -> None:
    path = run / ROLE / "huggingface" / name
    path.unlink(missing_ok=True)
    os.mkfifo(path)
    ran = cli("merge", run, place / "out")
    assert ran.code == (2 if name == "config.json" else 0)


def test_a_pipe_in_the_place_of_weights(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "model.safetensors")
    (tmp_path / "config.json").write_text("{}")
    assert cli("inspect", tmp_path).code == 2
    shards = tmp_path / "shards"
    shards.mkdir()
    os.mkfifo(shards / "shard-00001-model-00001-of-00001.safetensors")
    assert cli("inspect", shards).code == 2
    with pytest.raises(CkptconvError, match="not a safetensors file, but a folder, a pipe or a device"):
        read_header(tmp_path / "model.safetensors")
