"""DeepSpeed folders whose files are of different saves, or of one rank twice: real ones with one thing changed."""

from __future__ import annotations

import os
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from support.helpers import unpacked

from ckptconv import CkptconvError, merge
from ckptconv.backends import open_checkpoint
from ckptconv.formats.torch_zip import open_torch_zip
from ckptconv.read import low_precision
from ckptconv.read.low_precision import require_casts
from ckptconv.tensors.checkpoint import Checkpoint, StoredTensor
from ckptconv.tensors.view import cat, stored

torch = pytest.importorskip("torch")
OPTIM = "zero_pp_rank_{}_mp_rank_00_optim_states.pt"
ZERO_12 = [
    "trainer_z2_w2", "accelerate_z2_w2", "lora_z2_w2", "lora_only_z2_w2", "universal_z1_w2", "z1_bf16_opt_w2", "z1_bf16_w3",
    "z1_bf16_w3_0_14_5", "z2_aligned_w3", "z2_bf16_w1", "z2_fp16_w3", "z2_fp16_w3_0_14_5", "z2_fp32_w4", "z2_offload_w2",
    "z2_round_robin_w4",
]  # fmt: skip
ZERO_3 = [
    "trainer_z3_w3", "lora_z3_w2", "z3_bf16_w4", "z3_bf16_w4_0_14_5", "z3_fp32_w3", "z3_hpz_w4", "z3_offload_w2",
]  # fmt: skip


def step_folder(case: str, tmp_path: Path) -> Path:
    """The step folder of a fixture's own copy."""
    run = shutil.copytree(unpacked(f"deepspeed_{case}") / "run", tmp_path / case)
    return next(path.parent for path in sorted(run.rglob("*model_states.pt")))


def optim(folder: Path, rank: int) -> Path:
    return next(folder.glob("*" + OPTIM.format(rank)))


def poke(path: Path, start: int, values: Any) -> None:
    """Other bytes in place of some, as a file of another step has them."""
    with path.open("r+b") as file:
        file.seek(start)
        file.write(np.asarray(values).tobytes())


def later(path: Path, steps: int) -> None:
    """A rank's optimizer state with another number of steps."""
    root = torch.load(path, weights_only=False, pickle_module=_pickles())
    state = root["optimizer_state_dict"]
    for each in (state.get("base_optimizer_state") or state["optimizer_state_dict"])["state"].values():
        each["step"] = torch.tensor(float(steps))
    torch.save(root, path)


def _pickles() -> Any:
    """pickle, with attribute tables in place of DeepSpeed's own classes, which are not installed."""
    import pickle
    from types import SimpleNamespace

    class Unpickler(pickle.Unpickler):
        def find_class(self, module: str, name: str) -> Any:
            return _Foreign if module.startswith("deepspeed") else super().find_class(module, name)

    return SimpleNamespace(Unpickler=Unpickler, load=pickle.load, __name__="pickle")


class _Foreign(dict):  # type: ignore[type-arg]
    """An enum, a LossScaler, a fragment_address."""

    def __new__(cls, *values: Any) -> Any:
        return values[0] if values and isinstance(values[0], int) else super().__new__(cls)


@pytest.mark.parametrize("case", ZERO_12)
def test_masters_that_agree_with_the_modules_copy_pass_in_silence(case: str) -> None:
    checkpoint = open_checkpoint(unpacked(f"deepspeed_{case}") / "run")
    assert checkpoint.low_precision
    require_casts(checkpoint)
    assert checkpoint.notes == ()


@pytest.mark.parametrize("case", ZERO_3)
def test_steps_that_agree_pass_in_silence(case: str) -> None:
    assert open_checkpoint(unpacked(f"deepspeed_{case}") / "run").notes == ()


@pytest.mark.parametrize("case", ["trainer_z2_w2", "accelerate_z2_w2"])
@pytest.mark.parametrize("rank", [0, 1])
def test_one_ranks_masters_of_another_step_are_refused(case: str, rank: int, tmp_path: Path) -> None:
    folder = step_folder(case, tmp_path)
    file = open_torch_zip(str(optim(folder, rank)))
    for record in file.root["optimizer_state_dict"]["single_partition_of_fp32_groups"]:
        view = file.view(record)
        values = np.fromfile(file.path, np.float32, view.numel, offset=view.chunks[0].start)
        poke(Path(file.path), view.chunks[0].start, values * np.float32(1.01))
    with pytest.raises(CkptconvError, match=r"copy of .* does not have the optimizer's values") as error:
        merge(folder.parent, tmp_path / "out")
    assert not (tmp_path / "out").exists()
    assert "mp_rank_00_model_states.pt" in str(error.value.where)
    assert "in bfloat16, as in" in str(error.value.wanted)
    assert "elements differ" in str(error.value.found)


def test_the_way_out_that_the_error_names_works(tmp_path: Path) -> None:
    folder = step_folder("trainer_z2_w2", tmp_path)
    for path in folder.glob("*_optim_states.pt"):
        path.unlink()
    merge(folder.parent, tmp_path / "out")
    assert (tmp_path / "out" / "model.safetensors").is_file()


@pytest.mark.parametrize(
    "case", ["universal_z1_w2", "z2_fp32_w4", "z2_fp16_w3", "z1_bf16_opt_w2", "z2_round_robin_w4"]
)
def test_one_element_of_the_module_that_is_not_the_masters_is_refused(case: str, tmp_path: Path) -> None:
    folder = step_folder(case, tmp_path)
    checkpoint = open_checkpoint(folder)
    name, view = list(checkpoint.low_precision.items())[-1]
    poke(Path(view.files[0]), view.chunks[0].start, np.zeros(1, "u4" if view.dtype == "float32" else "u2"))
    with pytest.raises(CkptconvError, match=f"own copy of {name} does not have") as error:
        require_casts(checkpoint)
    assert str(error.value.found).startswith("0 at [0")


def checkpoint_of(tmp_path: Path, masters: Any, copy: Any, parts: int = 1) -> Checkpoint:
    """Masters in so many files, and their copy in one."""
    each, views = len(masters) // parts, []
    for part in range(parts):
        path = tmp_path / f"masters{part}"
        path.write_bytes(masters[part * each : (part + 1) * each].tobytes())
        views.append(stored(str(path), 0, (each,), "float32"))
    (tmp_path / "copy").write_bytes(copy.tobytes())
    low = stored(str(tmp_path / "copy"), 0, (len(copy),), str(copy.dtype))
    return Checkpoint("", "", tmp_path, 1, (), {"w": StoredTensor(cat(views, 0))}, low_precision={"w": low})


def bf16(values: Any) -> Any:
    import ml_dtypes

    return values.astype(ml_dtypes.bfloat16)


@pytest.mark.parametrize("part", range(8))
def test_each_ranks_part_of_a_large_tensor_is_looked_at(part: int, tmp_path: Path) -> None:
    values = np.random.default_rng(0).normal(size=8 * 100_000).astype(np.float32)
    assert len(values) > low_precision._WHOLE
    require_casts(checkpoint_of(tmp_path, values, bf16(values), 8))
    other = values.copy()
    other[part * 100_000 : (part + 1) * 100_000] *= np.float32(
        1.0001
    )  # a few of a thousand are rounded otherwise
    with pytest.raises(CkptconvError, match="own copy of w does not have"):
        require_casts(checkpoint_of(tmp_path, other, bf16(values), 8))


def test_a_copy_that_was_cut_off_is_the_masters_too_but_no_mixture_of_both(tmp_path: Path) -> None:
    """Kernels for masters on the CPU drop the lower bits of bfloat16."""
    values = np.random.default_rng(1).normal(size=5_000).astype(np.float32)
    cut = (values.view(np.uint32) >> 16).astype(np.uint16).view(bf16(values).dtype)
    require_casts(checkpoint_of(tmp_path, values, cut))
    mixed = cut.copy()
    mixed[:2_500] = bf16(values)[:2_500]
    with pytest.raises(CkptconvError, match="own copy of w does not have"):
        require_casts(checkpoint_of(tmp_path, values, mixed))


def test_numbers_that_are_none_and_too_large_ones_are_equal_to_themselves(tmp_path: Path) -> None:
    values = np.array([np.nan, np.inf, -np.inf, 1e6, -1e6, -0.0], np.float32)
    with np.errstate(over="ignore"):
        copy = values.astype(np.float16)
    require_casts(checkpoint_of(tmp_path, values, copy))


# --- steps


@pytest.mark.parametrize("case", ["trainer_z2_w2", "trainer_z3_w3", "z3_fp32_w3", "z2_fp32_w4"])
def test_ranks_of_different_steps_are_refused(case: str, tmp_path: Path) -> None:
    folder = step_folder(case, tmp_path)
    later(optim(folder, 1), 6)
    with pytest.raises(CkptconvError, match="optimizer files are of different steps") as error:
        open_checkpoint(folder)
    assert (error.value.found, optim(folder, 1).name in str(error.value.where)) == ("6 steps", True)


def test_an_optimizer_ahead_of_the_model_is_refused(tmp_path: Path) -> None:
    folder = step_folder("trainer_z3_w3", tmp_path)
    for rank in range(3):
        later(optim(folder, rank), 9)
    with pytest.raises(CkptconvError, match="of a later step than the model file") as error:
        open_checkpoint(folder)
    assert "global_steps 7" in str(error.value.wanted)


def test_an_optimizer_behind_the_model_is_reported(tmp_path: Path) -> None:
    """It may have begun anew: only a person can tell."""
    folder = step_folder("trainer_z3_w3", tmp_path)
    for rank in range(3):
        later(optim(folder, rank), 5)
    (note,) = open_checkpoint(folder).notes
    assert "counts 5 steps, the model file 7" in note


def test_a_file_whose_time_lies_apart_is_reported(tmp_path: Path) -> None:
    folder = step_folder("z3_bf16_w4", tmp_path)
    for path in folder.iterdir():
        os.utime(path, (1_700_000_000, 1_700_000_000))
    assert open_checkpoint(folder).notes == ()
    os.utime(optim(folder, 2), (1_700_090_000, 1_700_090_000))
    (note,) = open_checkpoint(folder).notes
    assert optim(folder, 2).name in note


# --- one rank's file twice


@pytest.mark.parametrize("case", ["trainer_z3_w3", "lora_z3_w2"])
def test_a_rank_file_that_is_another_ranks_is_refused(case: str, tmp_path: Path) -> None:
    folder = step_folder(case, tmp_path)
    shutil.copy(optim(folder, 0), optim(folder, 1))
    with pytest.raises(CkptconvError, match="a copy of another rank's") as error:
        open_checkpoint(folder)
    assert optim(folder, 1).name in str(error.value.where)
    assert optim(folder, 0).name in str(error.value.found)


def test_frozen_parts_that_are_another_ranks_are_refused(tmp_path: Path) -> None:
    folder = step_folder("lora_z3_w2", tmp_path)
    name = "zero_pp_rank_{}_mp_rank_00_model_states.pt"
    shutil.copy(folder / name.format(1), folder / name.format(0))
    with pytest.raises(CkptconvError, match="a copy of another rank's"):
        open_checkpoint(folder)
