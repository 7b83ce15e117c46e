"""GPT-NeoX and Megatron-DeepSpeed over tensor parallel ranks: what their names and patterns say, and what is refused."""

from __future__ import annotations

import re
import shutil
from pathlib import Path
from typing import Any

import pytest
from support.helpers import edit_json, opened, unpacked
from support.torch_files import saved

from ckptconv import CkptconvError, merge
from ckptconv.backends import open_checkpoint
from ckptconv.backends.deepspeed.cuts import layouts_by_names, whole_shapes
from ckptconv.errors import Incomplete

INFO = "universal_checkpoint_info"


def copied(case: str, tmp_path: Path) -> Path:
    return shutil.copytree(unpacked(f"deepspeed_{case}") / "run", tmp_path / case)


def layouts(tmp_path: Path, info: dict[str, Any], parts: dict[str, list[tuple[int, ...]]]) -> dict[str, Any]:
    return layouts_by_names({INFO: info}, parts, saved(tmp_path, {}))


def test_placements_follow_the_names() -> None:
    found = open_checkpoint(unpacked("deepspeed_neox_tp2_pp2_w4") / "run").tensors
    placed = {name: tensor.placement.split(" over")[0] for name, tensor in found.items() if name[0] in "023"}
    assert placed["2.attention.query_key_value.weight"] == placed["0.word_embeddings.weight"] == "Shard(0)"
    assert placed["2.attention.dense.weight"] == placed["3.mlp.linear2.weight"] == "Shard(1)"
    assert placed["2.attention.dense.bias"] == placed["3.mlp.linear2.bias"] == "Partial"
    assert placed["2.input_layernorm.weight"] == "Replicate"
    assert found["2.attention.dense.bias"].view.shape == (2, 24)


def test_without_a_class_the_layers_are_read_under_their_numbers() -> None:
    names = opened(unpacked("deepspeed_megatron_ds_tp2_pp2_w4") / "run")
    assert {"1.word_embeddings.weight", "4.weight", "5.lm_head.weight"} < set(names)
    assert names["2.mlp.dense_h_to_4h.weight"].shape == (76, 24)


def test_biases_that_ranks_add_need_parallel_residuals(tmp_path: Path) -> None:
    run = copied("neox_sequential_tp2_w2", tmp_path)
    edit_json(run / "config.json", use_parallel_residual=False)
    with pytest.raises(
        CkptconvError, match=r"biases after row-parallel weights .* only with parallel residuals"
    ):
        merge(run, tmp_path / "out")


@pytest.mark.parametrize(
    ("case", "lost", "says"),
    [
        ("neox_tp2_pp2_w4", "layer_03-model_01-*", "the file of layer 3 of tensor parallel rank 1 is missing"),
        ("neox_tp2_pp2_w4", "layer_03-*", "the file of layer 3 is missing"),
        ("neox_tp2_pp2_w4", "mp_rank_02_*", "the model file of rank 0 of 1 is missing"),
        ("neox_tp2_pp2_w4", "*mp_rank_03_*", "the files of model parallel rank 3 of 4 are missing"),
        ("neox_tied_tp3_pp2_w6", "layer_00-*", "the layer file with the shared module 'embed' is missing"),
        ("neox_llama_tp2_pp1_w4", "*rank_1_mp_rank_01_optim*", "the optim file of rank 1 of 2 is missing"),
        ("neox_sequential_tp2_w2", "mp_rank_01_model*", "the model file of rank 0 of 1 is missing"),
        ("megatron_ds_tp2_pp2_w4", "layer_01-*", "the file of layer 1 is missing"),
        ("megatron_ds_universal_w4", "zero/4.weight/fp32.pt", "4.weight is missing"),
    ],
)  # fmt: skip
def test_a_missing_file_is_named(case: str, lost: str, says: str, tmp_path: Path) -> None:
    run = copied(case, tmp_path)
    (step,) = (path for path in run.iterdir() if path.is_dir())
    for path in list(step.glob(lost)):
        path.unlink()
    with pytest.raises(Incomplete, match=re.escape(says)):
        open_checkpoint(run)


@pytest.mark.parametrize(
    ("case", "name", "by", "says"),
    [
        ("neox_tp2_pp2_w4", "mp_rank_01_model_states.pt", "neox_sequential_tp2_w2", "different saves"),
        ("neox_tp2_pp2_w4", "layer_02-model_01-model_states.pt", "megatron_ds_tp2_pp2_w4", "lacks"),
        ("neox_tp2_pp2_w4", "layer_02-model_01-model_states.pt", "neox_llama_tp2_pp1_w4", "lacks|another shape"),
    ],
)  # fmt: skip
def test_a_file_of_another_save_is_refused(case: str, name: str, by: str, says: str, tmp_path: Path) -> None:
    step = copied(case, tmp_path) / "global_step7"
    shutil.copy(unpacked(f"deepspeed_{by}") / "run" / "global_step7" / name, step / name)
    with pytest.raises(CkptconvError, match=says):
        merge(step.parent, tmp_path / "out")


def test_layer_files_that_changed_places_differ_from_the_masters(tmp_path: Path) -> None:
    step = copied("megatron_ds_tp2_pp2_w4", tmp_path) / "global_step7"
    one, two = (step / f"layer_03-model_0{rank}-model_states.pt" for rank in (0, 1))
    one.rename(step / "aside")
    two.rename(one)
    (step / "aside").rename(two)
    with pytest.raises(CkptconvError, match=r"module's own copy of 3\..* does not have"):
        merge(step.parent, tmp_path / "out")


def test_patterns_match_the_beginning_of_a_name_as_deepspeed_reads_them(tmp_path: Path) -> None:
    info = {
        "tp_replicated_parameter_patterns": [r"\d+.norm.weight"],
        "parameter_with_row_parallelism_patterns": [r"\d+\.mlp.down"],
        "parameter_with_2_sub_params_cat_dim_0": [r"\d+.mlp.gate_up"],
    }
    parts = {
        "12.norm.weight": [(5,), (5,)],
        "3.mlp.down.weight": [(7, 2), (7, 3)],
        "3.mlp.gate_up.weight": [(4, 7), (6, 7)],
        "3.other.weight": [(2, 7), (1, 7)],
    }
    found = layouts(tmp_path, info, parts)
    assert {name: layout.shape for name, layout in found.items()} == {
        "12.norm.weight": (5,),
        "3.mlp.down.weight": (7, 5),
        "3.mlp.gate_up.weight": (10, 7),
        "3.other.weight": (3, 7),
    }
    boxes = [(rank, source.offsets[0], dest.offsets[0], source.sizes[0])
             for rank, pieces in enumerate(found["3.mlp.gate_up.weight"].pieces) for source, dest in pieces]  # fmt: skip
    assert boxes == [(0, 0, 0, 2), (0, 5, 2, 2), (1, 2, 0, 3), (1, 7, 3, 3)]


@pytest.mark.parametrize(
    ("info", "says"),
    [
        ({"tp_replicated_parameter_patterns": ["(a+)+$"]}, "a pattern of names that is not read"),
        ({"tp_replicated_parameter_patterns": [7]}, "a pattern of names that is not read"),
        (
            {"tp_replicated_parameter_patterns": [], "parameter_to_average_patterns": [r"\d+.x"]},
            "an average of the ranks' parts",
        ),
        (
            {"tp_replicated_parameter_patterns": [], "parameter_with_sub_params": [{"patterns": ["x"]}]},
            "several parameters in one",
        ),
        (
            {
                "tp_replicated_parameter_patterns": [r"\d+.x"],
                "parameter_with_row_parallelism_patterns": [r"\d+.x"],
            },
            "says two things about how 1.x is cut",
        ),
    ],
)
def test_what_the_patterns_must_not_say(tmp_path: Path, info: dict[str, Any], says: str) -> None:
    with pytest.raises(CkptconvError, match=re.escape(says)):
        layouts(tmp_path, info, {"1.x": [(2, 2), (2, 2)]})


def test_parts_that_do_not_fit_together_are_refused(tmp_path: Path) -> None:
    with pytest.raises(CkptconvError, match=r"the parts of 1\.x do not fit together"):
        layouts(tmp_path, {"tp_replicated_parameter_patterns": []}, {"1.x": [(2, 2), (2, 3)]})


def test_a_universal_checkpoint_has_no_padding_of_the_vocabulary(tmp_path: Path) -> None:
    info = {
        "tp_replicated_parameter_patterns": [],
        "vocabulary_parameter_patterns": [r"\d+.word"],
        "original_vocab_size": 29,
    }
    parts = {"0.word.weight": [(15, 4), (15, 4)], "1.x": [(15, 4), (15, 4)]}
    found = whole_shapes({INFO: info}, parts, saved(tmp_path, {}))
    assert found == {"0.word.weight": (29, 4), "1.x": (30, 4)}
