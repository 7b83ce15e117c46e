"""Files that real frameworks wrote from the tensors of a GPU: each storage says `cuda:0`, and this machine needs no GPU."""

from __future__ import annotations

import zipfile
from pathlib import Path

import pytest
from support.helpers import assert_equal, cli, opened, tensors, unpacked

from ckptconv import merge

LAYOUTS = sorted(path.name for path in unpacked("torch_2_11_cuda").glob("fsdp*_w*"))
TRAINED = {
    "trainer_fsdp2_cuda_w2": "run/checkpoint-2",
    "lightning_fsdp1_cuda_w2": "run/lightning_logs/version_0/checkpoints/epoch=0-step=2.ckpt",
}


def pickles(file: Path) -> bytes:
    """The pickled part of a zip of torch.save."""
    with zipfile.ZipFile(file) as archive:
        return b"".join(archive.read(name) for name in archive.namelist() if name.endswith("data.pkl"))


def test_the_shards_are_those_of_a_gpu() -> None:
    files = sorted(unpacked("torch_2_11_cuda").rglob("*.pt"))
    assert len(files) == 18
    assert all(b"cuda:0" in pickles(file) for file in files)


@pytest.mark.parametrize("case", LAYOUTS)
def test_every_layout_of_fsdp1_and_fsdp2_comes_back_bit_for_bit(case: str) -> None:
    folder = unpacked("torch_2_11_cuda")
    assert_equal(opened(folder / case), tensors(folder / "truth.safetensors"))


@pytest.mark.parametrize("case", TRAINED)
def test_trained_checkpoints_of_the_trainer_and_of_lightning_are_exact(case: str, tmp_path: Path) -> None:
    folder = unpacked(case)
    merge(folder / TRAINED[case], tmp_path / "out", config=folder / "run", dtype="keep")
    truth = tensors(folder / "truth.safetensors")
    truth.pop("lm_head.weight", None)  # tied
    assert_equal(tensors(tmp_path / "out"), truth)


def test_the_config_above_the_step_is_found(tmp_path: Path) -> None:
    ran = cli("merge", unpacked("trainer_fsdp2_cuda_w2") / TRAINED["trainer_fsdp2_cuda_w2"], tmp_path / "out")
    assert ran.code == 0
    assert (tmp_path / "out" / "config.json").exists()
