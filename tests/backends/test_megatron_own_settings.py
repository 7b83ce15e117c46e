"""Megatron's settings against the tensors next to them, and against what the class in config.json computes.

Real checkpoints with one setting or one file changed. All shapes stay right, so nothing but the settings tells.
"""

from __future__ import annotations

import json
import re
import shutil
from pathlib import Path
from typing import Any

import pytest
from backends.test_megatron_settings import change, config_with, copy_of, refused
from support.helpers import FIXTURES, unpacked

from ckptconv import CkptconvError, merge
from ckptconv.backends import open_checkpoint
from ckptconv.models.megatron import agree
from ckptconv.models.megatron.computation import check_computation
from ckptconv.models.nested import text_of
from ckptconv.tensors.checkpoint import TrainerSettings

CASES = tuple(sorted(path.name.removesuffix(".tar.xz") for path in (FIXTURES / "megatron").iterdir()))


def with_settings(case: str, tmp_path: Path, **changed: Any) -> Path:
    """A case whose transformer_config.json or run_config.yaml states something else."""
    run = copy_of(case, tmp_path)
    for path in run.rglob("transformer_config.json"):
        path.write_text(json.dumps({**json.loads(path.read_text()), **changed}))
    for path in run.rglob("run_config.yaml"):
        text = path.read_text()
        for name, value in changed.items():
            text, count = re.subn(rf"(?m)^  {name}: .*$", f"  {name}: {json.dumps(value)}", text, count=1)
            assert count, name
        path.write_text(text)
    return run


@pytest.mark.parametrize(
    ("case", "name", "value"),
    [
        ("qwen2_tp2", "layernorm_zero_centered_gamma", True),
        ("qwen2_tp2", "rotary_interleaved", True),
        ("qwen2_tp2", "normalization", "LayerNorm"),
        ("qwen2_tp2", "softmax_scale", 0.5),
        ("qwen2_tp2", "window_size", [127, 0]),
        ("qwen2_tp2", "no_rope_freq", 2),
        ("qwen2_tp2", "qk_l2_norm", True),
        ("qwen2_tp2", "glu_linear_offset", 1.0),
        ("qwen2_tp2", "num_moe_experts", 4),
        ("qwen3_moe_tp2pp2ep2", "moe_router_score_function", "sigmoid"),
        ("qwen2_mb", "position_embedding_type", "none"),
        ("qwen2_mb", "rotary_percent", 0.5),
        ("qwen2_mb", "rope_scaling", True),
        ("qwen2_mb", "seq_len_interpolation_factor", 4.0),
        ("gemma3_mb", "layernorm_zero_centered_gamma", False),
    ],
)
def test_a_computation_that_the_class_does_not_have_is_refused(
    case: str, name: str, value: Any, tmp_path: Path
) -> None:
    run = with_settings(case, tmp_path, **{name: value})
    error = refused(
        run, unpacked(f"megatron/{case}") / "hf", tmp_path, "computed something else than model type"
    )
    assert str(error.found).startswith(f"{name} ")
    assert "--config" in str(error.hint)


@pytest.mark.parametrize(
    "changed",
    [
        {"hidden_act": "gelu"},
        {"rope_scaling": {"rope_type": "llama3", "factor": 8.0, "original_max_position_embeddings": 32}},
    ],
)
def test_a_config_that_computes_what_the_trainer_did_not_is_refused(
    changed: dict[str, Any], tmp_path: Path
) -> None:
    config = config_with("qwen2_mb", tmp_path, **changed)
    refused(
        unpacked("megatron/qwen2_mb") / "run", config, tmp_path, "computed something else than model type"
    )


@pytest.mark.parametrize(
    ("case", "name", "value", "found"),
    [
        ("qwen2_tp2", "tensor_model_parallel_size", 4, "2 TP ranks"),
        ("qwen2_tp2", "tensor_model_parallel_size", 1, "2 TP ranks"),
        ("qwen2_tp2", "pipeline_model_parallel_size", 2, "1 PP rank"),
        ("qwen2_tp2", "ffn_hidden_size", 84, "42 columns"),
        ("qwen2_tp2", "gated_linear_unit", False, "a gate in"),
        ("qwen2_tp2", "qk_layernorm", True, "no q_layernorm"),
        ("qwen2_tp2", "add_bias_linear", True, "no linear_proj.bias"),
        ("qwen2_mb", "vocab_size", 91, "with 90 rows"),
        ("qwen3_moe_tp2pp2ep2", "num_moe_experts", 8, "6 experts"),
        ("qwen3_moe_tp2pp2ep2", "moe_ffn_hidden_size", 99, "10 columns"),
        ("qwen2_tied_pp2", "untie_embeddings_and_output_weights", True, "no output_layer.weight"),
    ],
)
def test_settings_of_other_tensors_than_are_stored_are_refused(
    case: str, name: str, value: Any, found: str, tmp_path: Path
) -> None:
    run = with_settings(case, tmp_path, **{name: value})
    error = refused(
        run, unpacked(f"megatron/{case}") / "hf", tmp_path, "settings are not those of the stored tensors"
    )
    assert found in str(error.found)
    assert f"{name} {value}" in str(error.wanted) or "a head of its own" in str(error.wanted)


@pytest.mark.parametrize("changed", [{"args_tensor_model_parallel_size": 1}, {"args_world_size": 6}])
def test_rank_files_of_other_numbers_of_ranks_are_refused(changed: dict[str, int], tmp_path: Path) -> None:
    run = copy_of("qwen2_mlm_legacy", tmp_path)
    for path in run.rglob("model_optim_rng.pt"):
        change(path, **changed)
    config = unpacked("megatron/qwen2_mlm_legacy") / "hf"
    refused(run, config, tmp_path, "settings are not those of the stored tensors")


def test_arguments_that_swiglu_sets_in_the_model_are_not_compared(tmp_path: Path) -> None:
    """Megatron-LM leaves them at their defaults, and --swiglu decides."""
    run = copy_of("qwen2_mlm_legacy", tmp_path)
    for path in run.rglob("model_optim_rng.pt"):
        change(path, args_swiglu=True, args_gated_linear_unit=False, args_activation_func="gelu")
    merge(run, tmp_path / "out", config=unpacked("megatron/qwen2_mlm_legacy") / "hf")


@pytest.mark.parametrize("case", CASES)
def test_every_trainers_settings_agree_with_its_tensors(case: str) -> None:
    config = json.loads((unpacked(f"megatron/{case}") / "hf" / "config.json").read_text())
    agree(open_checkpoint(unpacked(f"megatron/{case}") / "run"), config)
    assert text_of(config)


# --- files of one rank


def test_two_files_of_one_rank_are_read_only_with_the_same_bytes(tmp_path: Path) -> None:
    run, config = copy_of("qwen2_mlm_legacy", tmp_path), unpacked("megatron/qwen2_mlm_legacy") / "hf"
    first = next(run.rglob("mp_rank_00_000"))
    again = Path(shutil.copytree(first, first.parent / "mp_rank_0_0"))
    merge(run, tmp_path / "out", config=config)
    shutil.rmtree(again)
    shutil.copytree(first.parent / "mp_rank_01_000", again)
    with pytest.raises(CkptconvError, match="two files of one rank have different bytes") as error:
        open_checkpoint(run)
    assert str(again) in str(error.value.where)
    shutil.rmtree(again)
    other = Path(shutil.copytree(first.parent, tmp_path / "also" / first.parent.name))
    change(other / "mp_rank_01_001" / "model_optim_rng.pt", num_floating_point_operations_so_far=5)
    with pytest.raises(CkptconvError, match="two files of one rank have different bytes"):
        open_checkpoint(run, also=[other])


@pytest.mark.parametrize("part", ["linear_qkv.layer_norm_weight", "linear_fc1.weight"])
def test_a_tensor_that_one_rank_of_a_stage_lacks_is_refused(part: str, tmp_path: Path) -> None:
    torch = pytest.importorskip("torch")
    run = copy_of("qwen2_mlm_legacy", tmp_path)
    path = next(run.rglob("mp_rank_01_000")) / "model_optim_rng.pt"
    change(path)
    root = torch.load(path, weights_only=False)
    root["model"] = {name: value for name, value in root["model"].items() if part not in name}
    torch.save(root, path)
    with pytest.raises(CkptconvError, match=f"one rank lacks decoder.layers.0.*{part}") as error:
        open_checkpoint(run)
    assert "TP rank 1, PP rank 0" in str(error.value.found)


@pytest.mark.parametrize("case", ["qwen2_tp2", "qwen2_v2", "qwen2_mb"])
def test_a_save_without_its_metadata_is_called_unfinished(case: str, tmp_path: Path) -> None:
    run = copy_of(case, tmp_path)
    path = next(run.rglob(".metadata"))
    path.unlink()
    with pytest.raises(CkptconvError, match="incomplete save") as error:
        open_checkpoint(run)
    assert str(error.value.where) == str(path.parent)


def test_a_model_type_that_is_no_text_is_left_to_the_checks_of_config_json() -> None:
    settings = [TrainerSettings({"swiglu": True}, "common.pt")]
    check_computation(settings, {"model_type": ["qwen2"]})
