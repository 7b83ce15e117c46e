"""Real distributed checkpoints (tests/make/dcp.py) give back what torch itself gathers, bit for bit."""

from __future__ import annotations

import pickle
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
from support.helpers import assert_equal, assert_one_error, cli, largest_difference, opened, tensors

from ckptconv import CkptconvError, inspect, merge
from ckptconv.backends import open_checkpoint
from ckptconv.errors import Incomplete

Made = Callable[[str], Path]

WHOLE = (
    "dcp_alone_w2",
    "dcp_app_w2",
    "dcp_titan_w2",
    "dcp_base_w2",
    "dcp_async_w2",
    "dcp_unflattened_w2",
    "dcp_accelerate_w2",
    "dcp_accelerate_fsdp1_w2",
    "dcp_actor_critic_w2",
    "dcp_ema_w2",
    "dcp_nemo_rl_w2",
    "dcp_hsdp_w4",
    "dcp_tp_w4",
    "dcp_small_w4",
    "dcp_buffers_w4",
)


@pytest.mark.parametrize("variant", WHOLE)
def test_every_tensor_comes_back_bit_for_bit(made: Made, variant: str) -> None:
    folder = made(variant)
    assert_equal(opened(folder / "run"), tensors(folder / "truth.safetensors"))


@pytest.mark.parametrize("variant", WHOLE)
def test_inspect_reads_it_and_finds_the_config(made: Made, variant: str) -> None:
    found = inspect(made(variant) / "run")
    assert found.backend == "dcp"
    assert found.config["architectures"]
    assert found.world_size == (1 if "alone" in variant else int(variant[-1]))


def made_copy(made: Made, variant: str, tmp_path: Path) -> Path:
    return Path(shutil.copytree(made(variant) / "run", tmp_path / "run"))


def test_the_screen_does_not_say_that_cut_tensors_are_whole(made: Made) -> None:
    ran = cli("inspect", made("dcp_tp_w4") / "run")
    assert ran.code == 0
    assert "unsharded" not in ran.flat


def test_a_merge_makes_a_model_and_takes_no_trainers_files_along(made: Made, tmp_path: Path) -> None:
    merge(made("dcp_accelerate_fsdp1_w2") / "run", tmp_path / "out", dtype="keep")
    assert_equal(tensors(tmp_path / "out"), tensors(made("dcp_accelerate_fsdp1_w2") / "truth.safetensors"))
    names = {path.name for path in (tmp_path / "out").iterdir()}
    assert {"config.json", "tokenizer.json", "chat_template.jinja"} <= names
    assert not {"checkpoint-7", "trainer_state.json"} & names


def test_a_tied_head_is_written_once(made: Made, tmp_path: Path) -> None:
    merge(made("dcp_alone_w2") / "run", tmp_path / "out", dtype="keep")
    wanted = tensors(made("dcp_alone_w2") / "truth.safetensors")
    del wanted["lm_head.weight"]
    assert_equal(tensors(tmp_path / "out"), wanted)


def test_an_adapter_of_the_hf_trainer_is_exported_and_merged(made: Made, tmp_path: Path) -> None:
    folder = made("dcp_lora_w2")
    merge(folder / "run", tmp_path / "adapter")
    assert_equal(tensors(tmp_path / "adapter"), tensors(folder / "adapter"))
    merge(folder / "run", tmp_path / "whole", base=folder / "base", dtype="keep")
    assert largest_difference(tensors(tmp_path / "whole"), tensors(folder / "hub")) < 1e-5


def test_files_of_several_threads_belong_to_their_rank(made: Made) -> None:
    checkpoint = open_checkpoint(made("dcp_app_w2") / "run")
    assert len(checkpoint.files) > 2
    assert {file.rank for file in checkpoint.files} == {0, 1}


def test_what_lies_beside_the_model_is_counted_with_a_reason(made: Made) -> None:
    skipped = {item.reason: item.nbytes for item in open_checkpoint(made("dcp_titan_w2") / "run").skipped}
    assert set(skipped) == {"optimizer", "scheduler", "data loader", "trainer state"}
    assert all(skipped.values())
    beside = open_checkpoint(made("dcp_accelerate_w2") / "run").skipped
    assert [(item.what, item.reason) for item in beside] == [("optimizer_0/", "optimizer")]
    assert beside[0].nbytes


def test_the_second_model_of_accelerate_is_named_and_can_be_read(made: Made) -> None:
    run = made("dcp_accelerate_w2") / "run"
    assert "pytorch_model_fsdp_1" in " ".join(open_checkpoint(run).notes)
    assert set(opened(run / "checkpoint-7" / "pytorch_model_fsdp_1")) == {
        *("one", "two", "three", "five", "lead", "wide.weight", "wide.bias")
    }


@pytest.mark.parametrize(("variant", "other"), [("dcp_actor_critic_w2", "critic"), ("dcp_ema_w2", "ema")])
def test_a_second_model_is_left_out_and_named(made: Made, variant: str, other: str) -> None:
    checkpoint = open_checkpoint(made(variant) / "run")
    assert f"another model: {other}" in [item.reason for item in checkpoint.skipped]
    assert other in " ".join(checkpoint.notes)


def test_two_models_of_equal_rank_are_refused(made: Made, tmp_path: Path) -> None:
    ran = cli("merge", made("dcp_rivals_w2") / "run", tmp_path / "out")
    assert_one_error(ran, "several models are stored", names=["left (27 tensors)", "right (27 tensors)"])


def test_the_step_and_role_are_found(made: Made) -> None:
    checkpoint = open_checkpoint(made("dcp_nemo_rl_w2") / "run")
    assert (checkpoint.step, checkpoint.role) == (7, "policy")
    assert "value" in " ".join(checkpoint.notes)
    assert open_checkpoint(made("dcp_titan_w2") / "run", step=7).step == 7
    value = made("dcp_nemo_rl_w2") / "run" / "step_7" / "value"
    assert "wide.weight" in open_checkpoint(value).tensors


def test_an_optimizers_folder_is_no_model(made: Made) -> None:
    run = made("dcp_accelerate_w2") / "run" / "checkpoint-7"
    with pytest.raises(CkptconvError, match="no checkpoint found here"):
        open_checkpoint(run / "optimizer_0")


def test_an_optimizers_folder_alone_says_what_it_is(made: Made, tmp_path: Path) -> None:
    shutil.copytree(
        made("dcp_accelerate_w2") / "run" / "checkpoint-7" / "optimizer_0", tmp_path / "optimizer_0"
    )
    with pytest.raises(CkptconvError, match="no model tensors") as error:
        open_checkpoint(tmp_path)
    assert "optimizer" in str(error.value.found)


# --- what is not whole


@pytest.mark.parametrize("left", [(), (".metadata.tmp",)], ids=["nothing", "tmp"])
def test_a_save_that_never_finished_is_said(made: Made, tmp_path: Path, left: tuple[str, ...]) -> None:
    run = made_copy(made, "dcp_accelerate_w2", tmp_path)
    metadata = run / "checkpoint-7" / "pytorch_model_fsdp_0" / ".metadata"
    for name in left:
        shutil.copy(metadata, metadata.with_name(name))
    metadata.unlink()
    ran = cli("merge", run, tmp_path / "out")
    assert_one_error(ran, "incomplete save", names=["pytorch_model_fsdp_0"])
    assert cli("inspect", run).code == 1


def test_an_earlier_step_can_be_taken_instead(made: Made, tmp_path: Path) -> None:
    run = made_copy(made, "dcp_accelerate_w2", tmp_path)
    later = shutil.copytree(run / "checkpoint-7", run / "checkpoint-9")
    (later / "pytorch_model_fsdp_0" / ".metadata").unlink()
    with pytest.raises(Incomplete, match="incomplete save") as error:
        open_checkpoint(run)
    assert "--step" in str(error.value.hint)
    assert open_checkpoint(run, step=7).step == 7


def test_ranks_that_saved_for_themselves_are_refused(made: Made) -> None:
    with pytest.raises(CkptconvError, match="each rank saved separately") as error:
        open_checkpoint(made("dcp_each_w2") / "run")
    assert "dcp.save" in str(error.value.hint)


def test_a_missing_file_is_named_and_found_with_also(made: Made, tmp_path: Path) -> None:
    run = made_copy(made, "dcp_accelerate_w2", tmp_path)
    lost = run / "checkpoint-7" / "pytorch_model_fsdp_0" / "__1_0.distcp"
    other = tmp_path / "other" / "checkpoint-7" / "pytorch_model_fsdp_0"
    other.mkdir(parents=True)
    shutil.move(lost, other)
    with pytest.raises(Incomplete, match=r"__1_0\.distcp is missing"):
        open_checkpoint(run)
    truth = tensors(made("dcp_accelerate_w2") / "truth.safetensors")
    for also in (tmp_path / "other", other.parent, other):
        assert_equal(opened(run, also=[also]), truth)


def test_a_short_file_is_refused(made: Made, tmp_path: Path) -> None:
    run = made_copy(made, "dcp_small_w4", tmp_path)
    file = run / "step-7" / "__0_0.distcp"
    file.write_bytes(file.read_bytes()[:-100])
    with pytest.raises(CkptconvError, match="ends before its tensors do"):
        open_checkpoint(run)


def test_metadata_of_another_save_is_refused(made: Made, tmp_path: Path) -> None:
    run = made_copy(made, "dcp_small_w4", tmp_path)
    shutil.copy(made("dcp_buffers_w4") / "run" / "step-7" / ".metadata", run / "step-7")
    with pytest.raises(CkptconvError, match="the file ends before its tensors do"):
        open_checkpoint(run)


def test_metadata_that_is_none_is_refused(made: Made, tmp_path: Path) -> None:
    run = made_copy(made, "dcp_small_w4", tmp_path)
    (run / "step-7" / ".metadata").write_bytes(pickle.dumps({"state_dict_metadata": {}}))
    with pytest.raises(CkptconvError, match="not the metadata"):
        open_checkpoint(run)
