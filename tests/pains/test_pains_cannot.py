"""Pains of the other converters: checkpoints that they cannot convert."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
import types
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from support.helpers import (
    FIXTURES,
    ROLE,
    VARIANTS,
    Tensors,
    assert_equal,
    edit_config,
    environment,
    largest_difference,
    own_copy,
    rank_file,
    save_ws1,
    tensors,
)
from support.published import as_published

from ckptconv.backends import open_checkpoint
from ckptconv.commands.merge.run import merge

Made = Callable[[str], Path]
Merged = Callable[..., Tensors]


def test_rank_files_scattered_over_nodes(made: Made, tmp_path: Path) -> None:
    """Rank files scattered over nodes (the most repeated complaint)."""
    nodes = []
    for rank in range(4):
        nodes.append(tmp_path / f"node{rank}")
        (nodes[-1] / ROLE).mkdir(parents=True)
        shutil.copy(rank_file(made("fsdp2_w4"), rank), nodes[-1] / ROLE)
    shutil.copytree(made("fsdp2_w4") / ROLE / "huggingface", nodes[0] / ROLE / "huggingface")
    merge(nodes[0], tmp_path / "out", also=nodes[1:], dtype="keep")
    assert_equal(tensors(tmp_path / "out"), tensors(made("fsdp2_w4") / "hub"))


RSS = """
import sys
from ckptconv.commands.merge.run import merge
done = merge(sys.argv[1], sys.argv[2], max_memory=64 << 20)
assert not {"torch", "transformers", "verl"} & set(sys.modules), sorted(sys.modules)
(peak,) = (line for line in open("/proc/self/status") if line.startswith("VmHWM")) if sys.platform == "linux" else ("0 0",)
print(int(peak.split()[1]) * 1024)
"""


def test_the_host_does_not_run_out_of_memory(tmp_path: Path) -> None:
    """host out of memory: 200 MB of weights, 64 MiB of buffers."""
    import torch

    whole = torch.arange(50_000_000, dtype=torch.float32).reshape(1_000, 50_000)
    run = save_ws1({"one": whole[:500], "two": whole[500:]}, {"model_type": "odd"}, tmp_path / "run")
    words = [sys.executable, "-c", RSS, str(run), str(tmp_path / "out")]
    done = subprocess.run(words, env=environment(), capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    assert int(done.stdout) < 170e6
    assert tensors(tmp_path / "out")["two"].data == whole[500:].bfloat16().view(torch.int16).numpy().tobytes()


@pytest.mark.parametrize("variant", ["fsdp2_w4", "fsdp1_sharded_tensor_w2", "lora_w4"])
def test_neither_a_gpu_nor_the_trainer_nor_torch_is_needed(made: Made, tmp_path: Path, variant: str) -> None:
    """a GPU or the trainer needed."""
    words = [sys.executable, "-c", RSS, str(made(variant)), str(tmp_path / "out")]
    done = subprocess.run(
        words, env=environment(CUDA_VISIBLE_DEVICES=""), capture_output=True, text=True, timeout=60
    )
    assert done.returncode == 0, done.stderr
    merge(made(variant), tmp_path / "here")
    assert_equal(tensors(tmp_path / "out"), tensors(tmp_path / "here"))


def test_layout_drift_fsdp_config_json_missing(made: Made, tmp_path: Path, merged: Merged) -> None:
    """layout drift (fsdp_config.json missing)."""
    run = own_copy(made("fsdp2_tp_uneven_w4"), tmp_path / "run")
    (run / ROLE / "fsdp_config.json").unlink()
    assert_equal(merged(run), tensors(made("fsdp2_tp_uneven_w4") / "hub"))


@pytest.mark.parametrize("variant", ["ws1_fsdp1", "ws1_fsdp2"])
def test_single_gpu_runs_have_plain_tensors(made: Made, variant: str, merged: Merged) -> None:
    """single-GPU runs (plain tensors)."""
    assert_equal(merged(made(variant)), tensors(made(variant) / "hub"))


def test_unknown_mesh_names(made: Made, merged: Merged) -> None:
    """unknown mesh names."""
    assert open_checkpoint(made("hsdp_oddnames_w4")).meshes[0].names == ("replica_group", "dp_shard_cp")
    assert_equal(merged(made("hsdp_oddnames_w4")), tensors(made("hsdp_oddnames_w4") / "hub"))


@pytest.mark.parametrize("variant", ["fsdp2_tp_even_w4", "fsdp2_tp_uneven_w4"])
def test_fsdp_and_tp(made: Made, variant: str, merged: Merged) -> None:
    """FSDP+TP."""
    assert_equal(merged(made(variant)), tensors(made(variant) / "hub"))


@pytest.mark.parametrize("variant", ["fsdp1_sharded_tensor_w2", "fsdp1_flat_noorig_w2"])
def test_sharded_tensor(made: Made, variant: str, merged: Merged) -> None:
    """ShardedTensor."""
    assert_equal(merged(made(variant)), tensors(made(variant) / "hub"))


def test_classes_in_pickles_that_moved(tmp_path: Path) -> None:
    """classes in pickles that moved: torch._tensor of 2.4 is torch.tensor since 2.5."""
    folders = sorted(FIXTURES.glob("torch_*/fsdp1_mesh_w2"))
    if len(folders) < 2:
        pytest.skip("no fixtures of older torch here")
    assert any(b"distributed._tensor" in next(f.glob("*_rank_0.pt")).read_bytes() for f in folders)
    for folder in folders:
        config = tmp_path / folder.parent.name
        config.mkdir()
        (config / "config.json").write_text('{"model_type": "odd"}')
        merge(folder, config / "out", config=config, dtype="keep")
        assert_equal(tensors(config / "out"), tensors(folder.parent / "truth.safetensors"))


def test_classes_in_pickles_that_vanished(
    tmp_path: Path, merged: Merged, monkeypatch: pytest.MonkeyPatch
) -> None:
    """classes in pickles that (moved or) vanished: beside the weights they are skipped, not imported."""
    import torch

    module = types.ModuleType("vanished_module")
    exec("class Config:\n    pass", vars(module))
    whole = torch.arange(6.0)
    whole.tag = module.Config()  # type: ignore[attr-defined]
    with monkeypatch.context() as there:
        there.setitem(sys.modules, "vanished_module", module)
        run = save_ws1({"w": whole}, {"model_type": "odd"}, tmp_path / "run")
    assert b"vanished_module" in rank_file(run, 0).read_bytes()
    assert merged(run)["w"].data == np.arange(6, dtype="<f4").tobytes()
    assert "vanished_module" not in sys.modules


@pytest.mark.parametrize("variant", [v for v in VARIANTS if v.startswith("arch_")])
def test_transformers_5_fused_experts_and_renamed_parts(made: Made, variant: str, merged: Merged) -> None:
    """transformers 5 (fused experts, renamed auto classes); towers and turned experts are written as published."""
    wanted = as_published(variant, tensors(made(variant) / "hub"))
    assert_equal(merged(made(variant)), wanted)


def test_architectures_missing(made: Made, tmp_path: Path, merged: Merged) -> None:
    """`architectures` missing."""
    run = own_copy(made("qwen2_5_vl_w4"), tmp_path / "run")
    edit_config(run, architectures=None)
    assert_equal(merged(run), tensors(made("qwen2_5_vl_w4") / "hub"))
    config = json.loads((tmp_path / "out" / "config.json").read_text())
    assert config["architectures"] == ["Qwen2_5_VLForConditionalGeneration"]


def test_lora_only_checkpoints(made: Made, tmp_path: Path) -> None:
    """LoRA-only checkpoints."""
    merge(made("lora_only_w2"), tmp_path / "adapter")
    assert_equal(tensors(tmp_path / "adapter"), tensors(made("lora_only_w2") / "adapter"))
    merge(made("lora_only_w2"), tmp_path / "merged", base=made("lora_only_w2") / "base", dtype="keep")
    peft = tensors(made("lora_only_w2") / "lora_merged.safetensors")
    assert largest_difference(tensors(tmp_path / "merged"), peft) <= 1e-6
