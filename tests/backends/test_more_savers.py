"""Checkpoints of Composer's, XTuner's, AReaL's, verl's and torchtune's own savers (tests/make/savers), bit for bit."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pytest
from safetensors.numpy import load_file
from support.helpers import assert_equal, cli, tensors, unpacked

from ckptconv import CkptconvError, inspect, merge
from ckptconv.backends import open_checkpoint
from ckptconv.errors import Incomplete
from ckptconv.read.reader import read_numpy


class Case(NamedTuple):
    """One run that a trainer's own saver wrote.

    fixture: the packed fixture, and the folder in it.
    run: what a user names.
    writer: what `inspect` calls the trainer.
    step, ranks: the latest step, and how many ranks hold weights.
    earlier: another step of the run; None if there is none.
    hf: the truth is `hf/`, which the trainer exported, and config.json is there; else `truth.safetensors`.
    lost: a file of the latest step, without which the model is not whole.
    """

    fixture: str
    run: str
    writer: str
    step: int | None
    ranks: int
    earlier: int | None
    hf: bool
    lost: str


TRIAL = "run/checkpoints/user/exp/trial"
XTUNER = "run/20260821101112/checkpoints/ckpt-step-10/weights"
CASES = {
    "composer": Case("saver_composer", "run", "Composer", 2, 3, 1, False, "run/ep0-ba2/__1_0.distcp"),
    "composer_full": Case("saver_composer_full", "run", "Composer", 2, 1, 1, False, "run/ep0-ba2-rank0.pt"),
    "areal": Case(
        "saver_areal",
        TRIAL,
        "AReaL",
        7,
        3,
        4,
        False,
        f"{TRIAL}/actor/epoch1epochstep2globalstep7/__2_0.distcp",
    ),
    "xtuner": Case("saver_xtuner/dense", "run", "XTuner", 10, 3, 5, True, f"{XTUNER}/__2_0.distcp"),
    "xtuner_ep": Case("saver_xtuner/moe_ep3", "run", "XTuner", 10, 3, 5, True, f"{XTUNER}/__0_0.distcp"),
    "xtuner_etp": Case("saver_xtuner/moe_etp2", "run", "XTuner", 10, 4, 5, True, f"{XTUNER}/__3_0.distcp"),
    "verl_automodel": Case(
        "saver_verl/automodel",
        "run",
        "NeMo-Automodel",
        7,
        3,
        None,
        False,
        "run/global_step_7/actor/model/shard-00003-model-00001-of-00001.safetensors",
    ),
    "verl_torchtitan": Case(
        "saver_verl/torchtitan", "run", "torchtitan", 8, 3, 6, True, "run/global_step_8/step-8/__2_0.distcp"
    ),
    "torchtune_hf": Case(
        "saver_torchtune_hf",
        "run",
        "Hugging Face",
        1,
        6,
        0,
        False,
        "run/epoch_1/model-00004-of-00006.safetensors",
    ),
}
SHARDED = [name for name in CASES if name not in ("composer_full", "torchtune_hf")]


def home(name: str) -> Path:
    fixture, _, below = CASES[name].fixture.partition("/")
    return unpacked(fixture) / below


def options(name: str) -> dict[str, Path]:
    return {"config": home(name) / "hf"} if CASES[name].hf else {}


def copied(name: str, tmp_path: Path) -> Path:
    return shutil.copytree(home(name), tmp_path / "copy", symlinks=True)


@pytest.mark.parametrize("name", CASES)
def test_the_run_is_the_model_that_the_saver_was_given(name: str, tmp_path: Path) -> None:
    case = CASES[name]
    truth = home(name) / ("hf" if case.hf else "truth.safetensors")
    # XTuner exports bfloat16, as its config says
    dtype = "auto" if name.startswith("xtuner") else "keep"
    merged = merge(home(name) / case.run, tmp_path / "out", dtype=dtype, **options(name))
    assert_equal(tensors(tmp_path / "out"), tensors(truth))
    assert merged.plan.checkpoint.step == case.step


@pytest.mark.parametrize("name", CASES)
def test_inspect_names_the_trainer_the_step_and_the_ranks(name: str) -> None:
    case = CASES[name]
    found = inspect(home(name) / case.run)
    assert case.writer in found.layout
    assert len([rank for rank in found.ranks if rank.nbytes]) == case.ranks
    assert found.step == case.step
    latest = inspect(home(name) / case.run, step="latest")
    assert (latest.step, latest.root) == (found.step, found.root)


@pytest.mark.parametrize("name", CASES)
def test_verify_agrees_with_the_checkpoint(name: str, tmp_path: Path) -> None:
    run = home(name) / CASES[name].run
    merge(run, tmp_path / "out", **options(name))
    named = ("--config", home(name) / "hf") if CASES[name].hf else ()
    done = cli("verify", tmp_path / "out", "--against", run, *named)
    assert done.code == 0, done.out + done.err


@pytest.mark.parametrize("name", [name for name, case in CASES.items() if case.earlier is not None])
def test_step_takes_the_earlier_step_which_differs(name: str, tmp_path: Path) -> None:
    case = CASES[name]
    run = home(name) / case.run
    first = merge(run, tmp_path / "first", step=case.earlier, dtype="keep", **options(name))
    merge(run, tmp_path / "last", dtype="keep", **options(name))
    assert first.plan.checkpoint.step == case.earlier
    same = tensors(tmp_path / "first") == tensors(tmp_path / "last")
    # AReaL's and torchtitan's fixtures save one model twice
    assert same == (name in ("areal", "verl_torchtitan"))


@pytest.mark.parametrize("name", SHARDED)
def test_a_lost_file_is_refused(name: str, tmp_path: Path) -> None:
    copy, case = copied(name, tmp_path), CASES[name]
    (copy / case.lost).unlink()
    with pytest.raises((Incomplete, CkptconvError), match=r"missing|incomplete|consolidated"):
        merge(copy / case.run, tmp_path / "out", **options(name))
    assert not (tmp_path / "out").exists()


def test_a_shard_that_is_lost_shows_in_the_optimizer_next_to_it(tmp_path: Path) -> None:
    copy = copied("verl_automodel", tmp_path)
    model = copy / "run/global_step_7/actor/model"
    shutil.rmtree(model / "consolidated")
    assert not any("how many ranks" in note for note in open_checkpoint(copy / "run").notes)
    (model / "shard-00003-model-00001-of-00001.safetensors").unlink()
    with pytest.raises(Incomplete, match="the optimizer next to them knows a larger one") as error:
        merge(copy / "run", tmp_path / "out")
    assert error.value.wanted == "[131, 23]"


@pytest.mark.parametrize("which", ["composer", "composer_full"])
def test_the_config_comes_from_composers_own_state(which: str, tmp_path: Path) -> None:
    merge(home(which) / "run", tmp_path / "out", dtype="keep")
    config = json.loads((tmp_path / "out" / "config.json").read_text())
    assert (config["architectures"], config["hidden_size"]) == (["Qwen3ForCausalLM"], 23)
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / "config.json").write_text(json.dumps(config | {"rms_norm_eps": 0.5}))
    with pytest.raises(CkptconvError, match="two values of rms_norm_eps"):
        merge(home(which) / "run", tmp_path / "again", config=tmp_path / "other")


def test_composers_link_decides_the_latest_step(tmp_path: Path) -> None:
    copy = copied("composer_full", tmp_path) / "run"
    assert open_checkpoint(copy / "latest-rank0.pt").tensors
    (copy / "latest-rank0.pt").unlink()
    (copy / "latest-rank0.pt").symlink_to("ep0-ba1-rank0.pt")
    found = open_checkpoint(copy)
    assert found.step == 1
    assert any("also holds step 2" in note for note in found.notes)
    (copy / "latest-rank0.pt").unlink()
    (copy / "latest-rank0.pt.symlink").write_text("run-name/checkpoints/ep0-ba1-rank0.pt")
    assert open_checkpoint(copy).step == 1
    (copy / "ep0-ba1-rank0.pt").unlink()
    with pytest.raises(CkptconvError, match="step 1 its latest"):
        open_checkpoint(copy)


def test_a_copy_of_a_run_may_hold_the_step_in_place_of_the_link(tmp_path: Path) -> None:
    whole = shutil.copytree(home("composer_full"), tmp_path / "full") / "run"
    assert not (whole / "latest-rank0.pt").is_symlink()
    assert open_checkpoint(whole).step == 2
    sharded = shutil.copytree(home("composer"), tmp_path / "sharded") / "run"
    assert (sharded / "latest-rank0.pt").is_dir()
    assert open_checkpoint(sharded).step == 2


def test_a_state_of_another_step_is_refused(tmp_path: Path) -> None:
    copy = copied("xtuner", tmp_path)
    steps = copy / "run/20260821101112/checkpoints"
    shutil.copyfile(steps / "ckpt-step-5/train_state.json", steps / "ckpt-step-10/train_state.json")
    with pytest.raises(CkptconvError, match="another step than its folder's name says") as error:
        open_checkpoint(copy / "run")
    assert (error.value.found, error.value.wanted) == ("cur_step 5", "10")
    verl = shutil.copytree(home("verl_torchtitan"), tmp_path / "verl") / "run"
    shutil.move(verl / "global_step_8/step-8", verl / "global_step_8/step-9")
    with pytest.raises(CkptconvError, match="another step than its folder's name says"):
        open_checkpoint(verl)


@pytest.mark.parametrize(
    "named", ["run", "run/20260821101112", "run/20260821101112/checkpoints", XTUNER[:-8], XTUNER]
)
def test_every_folder_above_xtuners_weights_can_be_named(named: str) -> None:
    found = open_checkpoint(home("xtuner") / named)
    assert found.root.parts[-2:] == ("ckpt-step-10", "weights")


def test_two_runs_in_xtuners_folder_are_refused_with_a_list(tmp_path: Path) -> None:
    run = copied("xtuner", tmp_path) / "run"
    shutil.copytree(run / "20260821101112", run / "20260822101112")
    with pytest.raises(CkptconvError, match="several folders of steps") as error:
        open_checkpoint(run)
    assert "20260821101112" in str(error.value.found)


def test_xtuners_config_comes_from_its_last_export(tmp_path: Path) -> None:
    copy = copied("xtuner", tmp_path)
    run = copy / "run/20260821101112"
    shutil.copytree(copy / "hf", run / "hf-5")
    (run / "hf-latest").symlink_to("hf-5")
    merge(run, tmp_path / "out")
    assert_equal(tensors(tmp_path / "out"), tensors(copy / "hf"))


@pytest.mark.parametrize("named", [TRIAL, f"{TRIAL}/actor", f"{TRIAL}/actor/recover_checkpoint"])
def test_areals_recover_checkpoint_is_read_where_it_is_alone(named: str, tmp_path: Path) -> None:
    copy = copied("areal", tmp_path)
    for step in (copy / TRIAL / "actor").glob("epoch*"):
        shutil.rmtree(step)
    merge(copy / named, tmp_path / "out", dtype="keep")
    assert_equal(tensors(tmp_path / "out"), tensors(copy / "truth.safetensors"))


def test_the_experts_of_one_rank_are_in_several_boxes() -> None:
    """XTuner's planner cuts inside every expert; each rank has several boxes, in the coordinates of the whole tensor."""
    stored = open_checkpoint(home("xtuner_etp") / "run").tensors
    gate_up = stored["layers.0.experts.fused_w1w3.weight"].view
    ranks = {chunk.file for chunk in gate_up.chunks}
    assert gate_up.shape == (6 * 2 * 20, 24)
    assert (len(ranks), len(gate_up.chunks)) == (4, 24)
    starts = [{c.offsets[0] for c in gate_up.chunks if c.file == rank} for rank in ranks]
    assert all(len(offsets) == 6 and np.ptp(sorted(offsets)) > 240 // 4 for offsets in starts)


def test_torchtunes_intermediate_epochs_are_whole_folders(tmp_path: Path) -> None:
    run = home("torchtune_hf") / "run"
    merge(run, tmp_path / "out", step=0, dtype="keep")
    found = load_file(tmp_path / "out" / "model.safetensors")
    last = load_file(home("torchtune_hf") / "truth.safetensors")
    assert found.keys() == last.keys()
    assert all(np.allclose(last[name] - found[name], 2 / 1024, atol=1e-6) for name in last)


def test_open_instructs_adapter_is_read_from_the_file_that_zero_3_gathered() -> None:
    checkpoint = open_checkpoint(unpacked("saver_open_instruct") / "run")
    truth = open_checkpoint(unpacked("saver_open_instruct") / "truth.safetensors")
    assert checkpoint.tensors.keys() == truth.tensors.keys()
    for name, tensor in truth.tensors.items():
        assert np.array_equal(read_numpy(checkpoint.tensors[name].view), read_numpy(tensor.view)), name
    assert (checkpoint.step, checkpoint.lora.settings["r"]) == (3, 3)
    assert any("adapter_model.bin is read, since" in note for note in checkpoint.notes)


def test_an_adapter_of_empty_tensors_alone_is_refused(tmp_path: Path) -> None:
    copy = Path(shutil.copytree(unpacked("saver_open_instruct") / "run", tmp_path / "run"))
    (copy / "step_3" / "adapter_model.bin").unlink()
    for more in ({}, {"lora": "adapter"}):
        with pytest.raises(Incomplete, match="every tensor of the adapter is empty"):
            merge(copy, tmp_path / "out", **more)  # type: ignore[arg-type]
    checked = cli("verify", copy / "step_3")
    assert (checked.code, "has no elements" in checked.out) == (1, True)
