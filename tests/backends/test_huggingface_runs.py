"""Runs of the HF Trainer and of accelerate: which folder of a run is taken, and what is left beside it."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from make.hf import MOE, accelerated, model_of, save_bin, trained
from support.helpers import assert_equal, assert_one_error, cast, cli, opened, tensors

from ckptconv import CkptconvError, merge
from ckptconv.backends import open_checkpoint


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Checkpoints 8 to 11, and the model that the run ended with, which is another one."""
    folder = tmp_path_factory.mktemp("trainer") / "run"
    trainer = trained(folder, 11, save_total_limit=4)
    with torch.no_grad():
        next(trainer.model.parameters()).add_(1)
    trainer.save_model()
    return folder


@pytest.fixture
def run(finished: Path, tmp_path: Path) -> Path:
    """The same run before its end: checkpoints alone."""
    copy = Path(shutil.copytree(finished, tmp_path / "run"))
    for path in copy.iterdir():
        if path.is_file():
            path.unlink()
    return copy


def test_the_newest_checkpoint_is_the_highest_number(run: Path, tmp_path: Path) -> None:
    assert sorted(path.name for path in run.iterdir())[-1] == "checkpoint-9"
    plan = merge(run, tmp_path / "out").plan
    assert plan.checkpoint.step == 11
    assert_equal(tensors(tmp_path / "out"), tensors(run / "checkpoint-11"))
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == [
        "ckptconv.json", "config.json", "generation_config.json", "model.safetensors",
    ]  # fmt: skip
    assert merge(run, tmp_path / "nine", step=9).plan.checkpoint.root == run / "checkpoint-9"


def test_a_trainers_state_is_counted_and_never_opened(run: Path) -> None:
    folder = run / "checkpoint-11"
    state = ("optimizer.pt", "scheduler.pt", "rng_state.pth", "training_args.bin")
    size = sum((folder / name).stat().st_size for name in state)
    for name in state:
        (folder / name).write_bytes(b"no pickle" + bytes((folder / name).stat().st_size - 9))
        (folder / name).chmod(0)
    (skipped,) = open_checkpoint(folder).skipped
    assert (skipped.nbytes, skipped.reason) == (size, "not part of the model")


def test_the_runs_own_model_comes_first_and_the_steps_are_told(finished: Path, tmp_path: Path) -> None:
    ran = cli("merge", finished, tmp_path / "out")
    assert ran.code == 0, ran.err
    assert "4 intermediate ones (step 8 to 11: --step N converts one)" in ran.flat
    assert_equal(tensors(tmp_path / "out"), tensors(finished / "model.safetensors"))
    assert opened(finished) != opened(finished / "checkpoint-11")
    assert opened(finished, step=9) == opened(finished / "checkpoint-9")
    assert not any(path.is_dir() for path in (tmp_path / "out").iterdir())
    assert_one_error(cli("inspect", finished, "--step", "7"), "no step 7 in this run", names=["8, 9, 10, 11"])


def test_the_runs_own_model_comes_before_shards_in_its_steps(
    finished: Path, made: Callable[[str], Path]
) -> None:
    shards = made("fsdp2_w4") / "global_step_7"
    run = Path(shutil.copytree(finished, finished.parent / "sharded"))
    shutil.copytree(shards / "actor", run / "checkpoint-12")
    assert open_checkpoint(run).backend == "huggingface"
    (run / "model.safetensors").unlink()
    assert open_checkpoint(run).backend == "fsdp"


def test_a_newest_checkpoint_without_weights(run: Path) -> None:
    (run / "checkpoint-11" / "model.safetensors").unlink()
    ran = cli("inspect", run)
    assert_one_error(ran, "step 11 is the newest of the run, but has no weights", names=["--step 10"])
    assert cli("inspect", run, "--step", "10").code == 0


def test_a_save_that_ended_after_the_weights(run: Path) -> None:
    (run / "checkpoint-11" / "trainer_state.json").unlink()
    assert "the save was interrupted after the weights" in " ".join(open_checkpoint(run).notes)
    assert not open_checkpoint(run, step=10).notes


def test_an_adapter_run_as_trl_leaves_it(tmp_path: Path) -> None:
    from peft import LoraConfig, get_peft_model

    model = get_peft_model(model_of(), LoraConfig(r=3, lora_alpha=6, target_modules=["q_proj"]))
    trained(tmp_path / "run", 2, model).save_model()
    found = open_checkpoint(tmp_path / "run")
    assert (found.root, found.layout) == (tmp_path / "run", "PEFT adapter")
    assert "2 intermediate ones (step 1 to 2" in found.notes[0]
    assert open_checkpoint(tmp_path / "run", step=1).root == tmp_path / "run" / "checkpoint-1"


# --- accelerate


@pytest.mark.parametrize("safe", [True, False])
@pytest.mark.parametrize("values", [{"tie_word_embeddings": True}, {"model_type": "qwen3_moe"} | MOE])
def test_save_state_becomes_what_the_model_saves(
    tmp_path: Path, values: dict[str, object], safe: bool
) -> None:
    model = model_of(**values)
    model.save_pretrained(tmp_path / "truth")
    state = accelerated(tmp_path / "checkpoints" / "checkpoint_0", model, safe=safe)
    assert not (state / "config.json").exists()
    merge(state.parent, tmp_path / "out", config=tmp_path / "truth", dtype="keep")
    assert_equal(tensors(tmp_path / "out"), tensors(tmp_path / "truth"))
    found = open_checkpoint(state.parent)
    assert (found.step, [item.what for item in found.skipped]) == (0, ["optimizer and trainer state"])


def test_masters_of_a_trainers_state_become_what_the_config_says(tmp_path: Path) -> None:
    state = accelerated(tmp_path / "state", model_of())
    config = save_bin(model_of(dtype="bfloat16"), tmp_path / "base")
    plan = merge(state, tmp_path / "out", config=config, dry_run=True).plan
    assert {output.dtype for output in plan.outputs.values()} == {"bfloat16"}


def test_a_second_model_is_told(tmp_path: Path) -> None:
    state = accelerated(tmp_path / "state", model_of(), model_of("llama"))
    assert (state / "model_1.safetensors").is_file()
    assert "not read: model_1.safetensors" in " ".join(open_checkpoint(state).notes)
    assert_equal(opened(state / "model_1.safetensors"), tensors(state / "model_1.safetensors"))


def test_a_full_state_dict_of_fsdp2(made: Callable[[str], Path], tmp_path: Path) -> None:
    """accelerate gathers the whole state dict on rank 0 and saves it by torch; a second model lies beside it."""
    run = made("dcp_accelerate_full_w2") / "run"
    truth = tensors(made("dcp_accelerate_full_w2") / "truth.safetensors")
    assert_equal(opened(run), truth)
    merge(run, tmp_path / "out", dtype="keep")
    assert_equal(tensors(tmp_path / "out"), truth)
    found = open_checkpoint(run)
    assert (found.step, found.root.name) == (7, "checkpoint-7")
    assert (
        "pytorch_model_fsdp.bin is read; also in the folder but not read: pytorch_model_fsdp_1.bin"
        in found.notes
    )
    assert [item.what for item in found.skipped[:2]] == [
        "optimizer and trainer state",
        "pytorch_model_fsdp_1.bin",
    ]


def test_a_full_state_dict_is_a_trainers_state_with_the_config_above_it(
    made: Callable[[str], Path], tmp_path: Path
) -> None:
    """As the sharded form: masters are cast to the serving dtype, and the run's folder may hold the config."""
    run = Path(shutil.copytree(made("dcp_accelerate_full_w2") / "run", tmp_path / "run"))
    truth = tensors(made("dcp_accelerate_full_w2") / "truth.safetensors")
    assert open_checkpoint(run).naming == "transformers"
    (run / "checkpoint-7" / "config.json").rename(run / "config.json")
    for named in (run, run / "checkpoint-7", run / "checkpoint-7" / "pytorch_model_fsdp.bin"):
        merge(named, tmp_path / "out", overwrite=True)
        assert_equal(tensors(tmp_path / "out"), cast(truth))


@pytest.mark.parametrize("name", ["pytorch_model_fsdp_rank0.bin", "pytorch_model_fsdp_0_rank1.bin"])
def test_ranks_files_that_accelerate_saves_apart_are_refused(name: str, tmp_path: Path) -> None:
    (tmp_path / name).touch()
    with pytest.raises(CkptconvError, match="every rank's part by itself"):
        open_checkpoint(tmp_path)


def test_no_torch_is_imported(tmp_path: Path) -> None:
    source = save_bin(model_of(), tmp_path / "in")
    code = (
        "import sys; from ckptconv import merge; merge(sys.argv[1], sys.argv[2]);"
        "assert not {'torch', 'transformers'} & set(sys.modules)"
    )

    subprocess.run([sys.executable, "-c", code, str(source), str(tmp_path / "out")], check=True)
    assert json.loads((tmp_path / "out" / "ckptconv.json").read_text())
