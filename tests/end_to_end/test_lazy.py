"""ckptconv.open: a checkpoint is a mapping of tensors that are read when they are asked for."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

import ckptconv
from ckptconv.commands.open import LazyCheckpoint, LazyTensor
from ckptconv.read.reader import Reader
from ckptconv.tensors.view import stored

Made = Callable[[str], Path]


def bits(tensor: torch.Tensor) -> bytes:
    return tensor.contiguous().reshape(-1).view(torch.uint8).numpy().tobytes()


@pytest.fixture(params=["fsdp2_w4", "fsdp2_bf16_w4", "buffers_w2"])
def both(request: pytest.FixtureRequest, made: Made) -> tuple[LazyCheckpoint, dict[str, torch.Tensor]]:
    """A checkpoint, and the same tensors as torch gathered them."""
    folder = made(request.param)
    return ckptconv.open(folder), load_file(folder / "truth.safetensors")


def test_it_is_a_mapping_of_the_trainers_names(both: tuple[LazyCheckpoint, dict[str, torch.Tensor]]) -> None:
    opened, truth = both
    assert isinstance(opened, Mapping)
    assert set(opened) == set(truth)
    assert len(opened) == len(truth)
    assert all(isinstance(tensor, LazyTensor) for tensor in opened.values())
    assert "no such tensor" not in opened
    assert opened.get("no such tensor") is None
    with pytest.raises(KeyError):
        opened["no such tensor"]


def test_shapes_and_dtypes_are_known_without_reading(
    both: tuple[LazyCheckpoint, dict[str, torch.Tensor]],
) -> None:
    opened, truth = both
    said = {name: (tensor.shape, tensor.dtype) for name, tensor in opened.items()}
    assert said == {name: (tuple(t.shape), str(t.dtype).removeprefix("torch.")) for name, t in truth.items()}


def test_numpy_and_torch_are_bit_for_bit(both: tuple[LazyCheckpoint, dict[str, torch.Tensor]]) -> None:
    opened, truth = both
    for name, wanted in truth.items():
        array, tensor = opened[name].numpy(), opened[name].torch()
        assert array.shape == tuple(wanted.shape), name
        assert array.tobytes() == bits(wanted), name
        assert tensor.dtype == wanted.dtype, name
        assert tensor.shape == wanted.shape, name
        assert bits(tensor) == bits(wanted), name


def test_bfloat16_is_ml_dtypes(made: Made) -> None:
    opened = ckptconv.open(made("fsdp2_bf16_w4"))
    dtypes = {tensor.dtype: tensor.numpy().dtype for tensor in opened.values()}
    assert dtypes == {"bfloat16": np.dtype(ml_dtypes.bfloat16), "float32": np.dtype(np.float32)}


def test_what_is_read_is_the_callers_own(made: Made) -> None:
    tensor = next(iter(ckptconv.open(made("fsdp2_w4")).values()))
    tensor.torch().zero_()
    tensor.numpy()[:] = 0
    assert tensor.torch().any()


def test_it_says_what_it_is(made: Made) -> None:
    opened = ckptconv.open(made("fsdp2_w4"))
    assert repr(opened["model.norm.weight"]) == "LazyTensor('model.norm.weight', float32, [27])"
    assert opened.checkpoint.backend == "fsdp"


def test_run_step_and_role_folders_are_the_same_checkpoint(made: Made) -> None:
    run = made("fsdp2_w4")
    first, *others = (ckptconv.open(run / part) for part in (".", "global_step_7", "global_step_7/actor"))
    assert all(list(other) == list(first) for other in others)
    assert list(ckptconv.open(run, backend="fsdp", step=7)) == list(first)


def test_a_folder_that_holds_nothing_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ckptconv.CkptconvError, match="the folder is empty"):
        ckptconv.open(tmp_path)


def test_a_hugging_face_folder_opens_too(tmp_path: Path) -> None:
    tensors = {"a": torch.randn(3, 5).to(torch.float8_e4m3fn), "b": torch.tensor(7), "c": torch.empty(0, 2)}
    save_file(tensors, tmp_path / "model.safetensors", metadata={"format": "pt"})
    opened = ckptconv.open(tmp_path)
    assert {name: bits(tensor.torch()) for name, tensor in opened.items()} == {
        n: bits(t) for n, t in tensors.items()
    }
    assert {name: tensor.torch().dtype for name, tensor in opened.items()} == {
        n: t.dtype for n, t in tensors.items()
    }


@pytest.mark.parametrize("dtype", ["bool", "uint16", "complex64", "float8_e8m0fnu", "float64"])
@pytest.mark.parametrize("shape", [(), (0, 3), (2, 3)], ids=str)
def test_torch_has_every_dtype_and_shape(dtype: str, shape: tuple[int, ...], tmp_path: Path) -> None:
    (tmp_path / "raw").write_bytes(bytes(n % 2 for n in range(64)))
    tensor = LazyTensor("x", stored(str(tmp_path / "raw"), 8, shape, dtype)).torch()
    assert (tensor.dtype, tuple(tensor.shape)) == (getattr(torch, dtype), shape)
    assert bits(tensor) == (tmp_path / "raw").read_bytes()[8 : 8 + tensor.nbytes]


class Counted(Reader):
    """A reader that counts the bytes it is asked for."""

    nbytes_read = 0

    def __exit__(self, *args: object) -> None:
        Counted.nbytes_read += self.nbytes
        super().__exit__(*args)


@pytest.fixture
def counted(monkeypatch: pytest.MonkeyPatch) -> type[Counted]:
    monkeypatch.setattr("ckptconv.read.reader.Reader", Counted)
    monkeypatch.setattr(Counted, "nbytes_read", 0)
    return Counted


SLICES = [
    np.s_[2:5],
    np.s_[-3:],
    np.s_[4],
    np.s_[-1],
    np.s_[:, 3],
    np.s_[..., 1:4],
    np.s_[1:3, 2:6],
    np.s_[0, 0],
    np.s_[7:2],
    np.s_[:],
    np.s_[...],
]


@pytest.mark.parametrize("key", SLICES, ids=str)
def test_a_slice_is_numpys_and_reads_only_itself(key: Any, made: Made, counted: type[Counted]) -> None:
    tensor = ckptconv.open(made("fsdp2_tp_uneven_w4"))["lm_head.weight"]
    whole = tensor.numpy()
    counted.nbytes_read = 0
    part = tensor[key]
    assert isinstance(part, LazyTensor)
    assert counted.nbytes_read == 0
    wanted = whole[key]
    assert (part.shape, part.nbytes, part.numel) == (wanted.shape, wanted.nbytes, wanted.size)
    assert np.array_equal(part.numpy(), wanted)
    assert counted.nbytes_read == wanted.nbytes
    assert torch.equal(part.torch(), tensor.torch()[key])


def test_slices_of_slices(made: Made) -> None:
    tensor = ckptconv.open(made("fsdp2_w4"))["lm_head.weight"]
    assert np.array_equal(tensor[3:9][2:4][1].numpy(), tensor.numpy()[6])
    assert len(tensor[3:9]) == 6


@pytest.mark.parametrize("key", [10**6, (0, 0, 0), (..., ...)], ids=str)
def test_an_index_outside_the_tensor_is_an_index_error(key: Any, made: Made) -> None:
    with pytest.raises(IndexError):
        ckptconv.open(made("fsdp2_w4"))["lm_head.weight"][key]


def test_steps_are_refused(made: Made) -> None:
    with pytest.raises(ckptconv.CkptconvError, match="sliced with step 1"):
        ckptconv.open(made("fsdp2_w4"))["lm_head.weight"][::2]


@pytest.mark.parametrize("variant", ["fsdp2_w4", "fsdp2_tied_w4", "qwen3_moe_w4", "lora_w4"])
def test_under_hub_names_it_is_what_merge_writes(variant: str, made: Made, tmp_path: Path) -> None:
    ckptconv.merge(made(variant), tmp_path / "out", dtype="bf16")
    wanted = load_file(tmp_path / "out" / "model.safetensors")
    opened = ckptconv.open(made(variant), names="hub", options=ckptconv.Options(dtype="bf16"))
    assert set(opened) == set(wanted)
    for name, tensor in opened.items():
        assert (tensor.shape, tensor.dtype, tensor.nbytes) == (
            tuple(wanted[name].shape),
            str(wanted[name].dtype).removeprefix("torch."),
            wanted[name].nbytes,
        )
        assert bits(tensor.torch()) == bits(wanted[name]), name
        assert bits(tensor[1:].torch()) == bits(wanted[name][1:]), name


def test_hub_names_know_the_head_of_a_checkpoint_without_reading_the_rest(
    made: Made, counted: type[Counted]
) -> None:
    rows = ckptconv.open(made("lora_w4"), names="hub")["model.layers.0.self_attn.q_proj.weight"][:2]
    assert rows.numpy().shape == rows.shape
    assert 0 < counted.nbytes_read < 10 * rows.nbytes


def test_what_goes_with_hub_names_only_is_refused_without_them(made: Made) -> None:
    with pytest.raises(ckptconv.CkptconvError, match="options goes with names='hub' only"):
        ckptconv.open(made("fsdp2_w4"), options=ckptconv.Options())
    with pytest.raises(ckptconv.CkptconvError, match="names does not accept"):
        ckptconv.open(made("fsdp2_w4"), names="trainer")  # type: ignore[arg-type]


def test_its_repr_fits_a_notebook_cell(made: Made) -> None:
    opened = ckptconv.open(made("fsdp2_w4"))
    lines = repr(opened).splitlines()
    assert lines[0].startswith("LazyCheckpoint(verl FSDP")
    assert len(lines) <= 22
    assert "<table>" in opened._repr_html_()
    assert "lm_head.weight" in repr(opened) or len(opened) > 20
