"""Safetensors that ranks wrote for themselves (torch's HuggingFaceStorageWriter) become whole tensors, bit for bit."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
from support.helpers import assert_equal, opened, tensors

from ckptconv import CkptconvError, inspect, merge
from ckptconv.backends import open_checkpoint
from ckptconv.errors import Incomplete

Made = Callable[[str], Path]

SHARDED = ("dcp_hf_w2", "dcp_automodel_w2", "dcp_hf_tp_w4", "dcp_hf_small_w4")


@pytest.mark.parametrize("variant", SHARDED)
def test_every_tensor_comes_back_bit_for_bit(made: Made, variant: str) -> None:
    folder = made(variant)
    assert open_checkpoint(folder / "run").backend == "hf_shards"
    assert_equal(opened(folder / "run"), tensors(folder / "truth.safetensors"))


@pytest.mark.parametrize("variant", SHARDED)
def test_inspect_reads_it_and_finds_the_config(made: Made, variant: str) -> None:
    found = inspect(made(variant) / "run")
    assert found.config["architectures"]
    assert found.world_size == int(variant[-1])
    unsure = any("how many ranks" in note for note in found.notes)
    assert unsure == (variant != "dcp_automodel_w2")  # its optimizer states the whole shapes


def test_shards_are_read_and_not_the_model_consolidated_from_them(made: Made) -> None:
    folder = made("dcp_hf_whole_w2")
    checkpoint = open_checkpoint(folder / "run")
    assert checkpoint.backend == "hf_shards"
    assert "made from the shards, which are read" in {item.reason for item in checkpoint.skipped}
    assert checkpoint.notes == ()
    assert_equal(opened(folder / "run"), tensors(folder / "truth.safetensors"))
    assert_equal(opened(folder / "run" / "hf" / "sharded"), tensors(folder / "truth.safetensors"))


def test_a_scalar_that_torchs_consolidation_loses_comes_from_the_shards(tmp_path: Path) -> None:
    """torch 2.13 and 2.14 write 0.0 for every 0-dim tensor of a consolidated file."""
    import torch
    import torch.distributed.checkpoint as dcp

    truth = {"layers.0.weight": torch.randn(6, 5), "layers.0.scale": torch.tensor(0.375)}
    run = tmp_path / "run"
    writer = dcp.HuggingFaceStorageWriter(str(run), save_distributed=True, enable_consolidation=True)
    dcp.save(dict(truth), storage_writer=writer, no_dist=True)
    (run / "config.json").write_text('{"model_type": "odd", "architectures": ["Odd"]}')
    merge(run, tmp_path / "out", dtype="keep")
    assert tensors(tmp_path / "out")["layers.0.scale"].data == truth["layers.0.scale"].numpy().tobytes()


def test_a_model_with_more_rows_than_its_shards_is_refused(made: Made, tmp_path: Path) -> None:
    """The last rank's shards are missing, which nothing but the consolidated model tells."""
    run = shutil.copytree(made("dcp_hf_whole_w2") / "run", tmp_path / "run")
    for path in (run / "hf" / "sharded").glob("shard-00002-*"):
        path.unlink()
    with pytest.raises(Incomplete, match="consolidated from them differ"):
        open_checkpoint(run)


def test_a_shard_that_is_there_twice_with_other_bytes_is_refused(made: Made, tmp_path: Path) -> None:
    run = shutil.copytree(made("dcp_hf_w2") / "run", tmp_path / "run")
    (tmp_path / "other").mkdir()
    first = next((run / "hf").glob("shard-00001-*"))
    path = Path(shutil.copy(first, tmp_path / "other"))
    truth = tensors(made("dcp_hf_w2") / "truth.safetensors")
    assert_equal(opened(run, also=[tmp_path / "other"]), truth)
    data = path.read_bytes()
    path.write_bytes(data[:-1] + bytes([data[-1] ^ 1]))
    shutil.copystat(first, path)  # the same size and time
    with pytest.raises(CkptconvError, match=r"two files named .* have different bytes"):
        open_checkpoint(run, also=[tmp_path / "other"])


def test_shards_are_read_where_the_consolidation_never_began(made: Made, tmp_path: Path) -> None:
    run = shutil.copytree(made("dcp_hf_whole_w2") / "run", tmp_path / "run")
    for path in [*(run / "hf").glob("model*.safetensors"), *(run / "hf").glob("*.index.json")]:
        path.unlink()
    assert open_checkpoint(run).backend == "hf_shards"
    assert_equal(opened(run), tensors(made("dcp_hf_whole_w2") / "truth.safetensors"))


def test_an_unconsolidated_folder_is_never_taken_for_a_model(made: Made) -> None:
    with pytest.raises(CkptconvError, match="no huggingface checkpoint here"):
        open_checkpoint(made("dcp_hf_w2") / "run", backend="huggingface")


def test_a_merge_of_nemo_automodels_folders(made: Made, tmp_path: Path) -> None:
    folder = made("dcp_automodel_w2")
    result = merge(folder / "run", tmp_path / "out", dtype="keep")
    assert result.plan.checkpoint.step == 7
    assert [(item.what, item.reason) for item in result.plan.checkpoint.skipped] == [("optim/", "optimizer")]
    assert_equal(tensors(tmp_path / "out"), tensors(folder / "truth.safetensors"))
    assert (tmp_path / "out" / "tokenizer.json").is_file()
    assert not (tmp_path / "out" / "fqn_to_file_index_mapping.json").exists()


def test_nemos_mark_on_an_unfinished_step_is_heeded(made: Made, tmp_path: Path) -> None:
    run = shutil.copytree(made("dcp_automodel_w2") / "run", tmp_path / "run", symlinks=True)
    (run / "epoch_0_step_7" / ".incomplete").touch()
    with pytest.raises(Incomplete, match="incomplete save"):
        open_checkpoint(run)


def test_names_that_nemos_map_has_and_no_shard_are_said(made: Made, tmp_path: Path) -> None:
    run = shutil.copytree(made("dcp_automodel_w2") / "run", tmp_path / "run", symlinks=True)
    path = run / "epoch_0_step_7" / "model" / ".hf_metadata" / "fqn_to_file_index_mapping.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), "model.lost.weight": 1}))
    assert any("model.lost.weight" in note for note in open_checkpoint(run).notes)


def test_a_missing_first_rank_leaves_a_hole(made: Made, tmp_path: Path) -> None:
    run = shutil.copytree(made("dcp_hf_w2") / "run", tmp_path / "run")
    for path in (run / "hf").glob("shard-00001-*"):
        path.unlink()
    with pytest.raises(Incomplete, match="are incomplete"):
        open_checkpoint(run)


def test_a_missing_last_rank_is_found_by_the_config(made: Made, tmp_path: Path) -> None:
    """No file says how long a tensor is; the model's config does."""
    run = shutil.copytree(made("dcp_hf_w2") / "run", tmp_path / "run")
    for path in (run / "hf").glob("shard-00002-*"):
        path.unlink()
    with pytest.raises(CkptconvError, match=r"config\.json does not match these tensors"):
        merge(run, tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_a_rank_on_another_disk_is_found_with_also(made: Made, tmp_path: Path) -> None:
    run = shutil.copytree(made("dcp_hf_w2") / "run", tmp_path / "run")
    (tmp_path / "other").mkdir()
    for path in (run / "hf").glob("shard-00001-*"):
        shutil.move(path, tmp_path / "other")
    truth = tensors(made("dcp_hf_w2") / "truth.safetensors")
    assert_equal(opened(run, also=[tmp_path / "other"]), truth)


def test_a_truncated_shard_is_refused(made: Made, tmp_path: Path) -> None:
    run = shutil.copytree(made("dcp_hf_w2") / "run", tmp_path / "run")
    path = next((run / "hf").glob("shard-00002-*"))
    path.write_bytes(path.read_bytes()[:-4])
    with pytest.raises(CkptconvError, match="do not fill it"):
        open_checkpoint(run)
