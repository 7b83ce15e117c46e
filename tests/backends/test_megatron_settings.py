"""What the trainer wrote about the model against config.json, and what rank files say about their save and their rank.

Real checkpoints with one thing changed: without these checks each becomes a model of the right shapes that computes
something else.
"""

from __future__ import annotations

import json
import pickle
import re
import shutil
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from support.helpers import unpacked

from ckptconv import CkptconvError, merge
from ckptconv.backends import open_checkpoint
from ckptconv.models.megatron import agree
from ckptconv.tensors.checkpoint import Checkpoint, StoredTensor, TrainerSettings
from ckptconv.tensors.view import stored

# Where each kind of trainer keeps its settings: case -> the file that an error must name.
KINDS = {
    "qwen2_tp2": "transformer_config.json",
    "qwen2_v2": "transformer_config.json",
    "qwen2_verl_legacy": "transformer_config.json",
    "olmoe_mcb": "common.pt",
    "qwen2_mb": "run_config.yaml",
    "qwen2_mlm_legacy": "model_optim_rng.pt",
}


def copy_of(case: str, tmp_path: Path) -> Path:
    return Path(shutil.copytree(unpacked(f"megatron/{case}") / "run", tmp_path / "run"))


def config_with(case: str, tmp_path: Path, **changed: Any) -> Path:
    """A folder with the case's config.json, changed."""
    config = json.loads((unpacked(f"megatron/{case}") / "hf" / "config.json").read_text())
    (tmp_path / "hf").mkdir()
    (tmp_path / "hf" / "config.json").write_text(json.dumps({**config, **changed}))
    return tmp_path / "hf"


def refused(run: Path, config: Path, tmp_path: Path, match: str) -> CkptconvError:
    with pytest.raises(CkptconvError, match=match) as error:
        merge(run, tmp_path / "out", config=config)
    assert not (tmp_path / "out").exists()
    return error.value


@pytest.mark.parametrize("case", KINDS)
def test_another_epsilon_in_config_json_is_refused_with_both_values_and_their_places(
    case: str, tmp_path: Path
) -> None:
    config = config_with(case, tmp_path, rms_norm_eps=1e-5)
    error = refused(unpacked(f"megatron/{case}") / "run", config, tmp_path, "two values of rms_norm_eps")
    assert "1e-05 in config.json" in str(error.found)
    assert "layernorm_epsilon 1e-06" in str(error.wanted)
    assert str(error.where).endswith(KINDS[case])
    assert "--config" in str(error.hint)


@pytest.mark.parametrize("case", ["qwen2_mb", "olmoe_mcb", "deepseek_v3_tp2pp2ep2", "deepseek_v3_mlm_legacy"])
def test_another_rotary_base_in_config_json_is_refused(case: str, tmp_path: Path) -> None:
    config = config_with(case, tmp_path, rope_theta=1e6)
    error = refused(unpacked(f"megatron/{case}") / "run", config, tmp_path, "two values of rope_theta")
    assert "rotary_base 10000" in str(error.wanted)


def test_a_rotary_base_in_rope_parameters_is_compared_too(tmp_path: Path) -> None:
    config = config_with("qwen2_mb", tmp_path, rope_theta=None, rope_parameters={"rope_theta": 5e5})
    refused(unpacked("megatron/qwen2_mb") / "run", config, tmp_path, "two values of rope_theta")


def test_a_model_with_two_rotary_bases_has_both(tmp_path: Path) -> None:
    """gemma3's run_config.yaml lists them, and config.json has a key for each."""
    run = unpacked("megatron/gemma3_mb") / "run"
    config = config_with("gemma3_mb", tmp_path, rope_local_base_freq=777.0)
    refused(run, config, tmp_path, "rope_theta|rope_local_base_freq")


@pytest.mark.parametrize(
    ("case", "key", "value"),
    [
        ("qwen2_tp2", "num_attention_heads", 3),
        ("qwen2_tp2", "num_key_value_heads", 1),
        ("qwen2_tp2", "head_dim", 10),
        ("qwen2_mb", "num_hidden_layers", 4),
        ("qwen2_mlm_legacy", "num_attention_heads", 10),
        ("qwen2_mlm_legacy", "num_hidden_layers", 2),
        ("qwen3_moe_tp2pp2ep2", "num_experts_per_tok", 1),
        ("mixtral_mlm_legacy", "num_experts_per_tok", 1),
        ("kimi_k2_mcb", "topk_group", 9),
        ("deepseek_v3_tp2pp2ep2", "routed_scaling_factor", 9.0),
    ],
)
def test_other_sizes_in_config_json_are_refused(case: str, key: str, value: Any, tmp_path: Path) -> None:
    config = config_with(case, tmp_path, **{key: value})
    error = refused(unpacked(f"megatron/{case}") / "run", config, tmp_path, f"two values of {key}")
    assert f"{key} {value:g} in config.json" in str(error.found)


def test_settings_that_the_trainer_does_not_use_are_not_compared() -> None:
    """Latent attention has no groups of heads, a dense model no experts, and mcore-bridge leaves rotary_percent at 1."""
    latent = {"num_query_groups": 1, "kv_channels": 128}
    dense = {"moe_router_topk": 2, "num_moe_experts": None, "rotary_percent": 1.0}
    one_group = {
        "group_query_attention": False,
        "num_query_groups": 1,
        "position_embedding_type": "none",
        "rotary_base": 5,
    }
    config = {
        "num_attention_heads": 4, "num_key_value_heads": 4, "head_dim": 6, "num_experts_per_tok": 1,
        "partial_rotary_factor": 0.5, "rope_theta": 10000.0,
    }  # fmt: skip
    assert agree(checkpoint_with(0, dense, one_group), config) == []
    assert agree(checkpoint_with(0, latent), {**config, "kv_lora_rank": 8}) == []
    with pytest.raises(CkptconvError, match="two values of num_key_value_heads"):
        agree(checkpoint_with(0, latent), config)


# --- the vocabulary's padding


def checkpoint_with(rows: int, *settings: dict[str, Any]) -> Checkpoint:
    """A checkpoint with an embedding of so many rows."""
    view = stored("file", 0, (rows, 2), "bfloat16")
    tensors = {"embedding.word_embeddings.weight": StoredTensor(view)} if rows else {}
    trainer = tuple(TrainerSettings(values, f"file {n}") for n, values in enumerate(settings))
    return Checkpoint("megatron", "", Path("folder"), 1, (), tensors, trainer=trainer)


def test_rows_that_are_cut_off_are_reported(tmp_path: Path) -> None:
    run, config = unpacked("megatron/olmoe_mcb") / "run", unpacked("megatron/olmoe_mcb") / "hf"
    result = merge(run, tmp_path / "out", config=config)
    assert any("rows 82 to 95 of the vocabulary are padding" in note for note in result.plan.notes)


def test_no_rows_are_reported_where_none_are_cut_off(tmp_path: Path) -> None:
    run, config = unpacked("megatron/qwen2_mb") / "run", unpacked("megatron/qwen2_mb") / "hf"
    assert not any("vocabulary" in note for note in merge(run, tmp_path / "out", config=config).plan.notes)


def test_more_rows_than_the_trainer_pads_are_not_cut_off(tmp_path: Path) -> None:
    """Megatron-Bridge wrote make_vocab_size_divisible_by 2, so over two TP ranks at most 3 rows are padding."""
    config = config_with("qwen2_mb", tmp_path, vocab_size=86)
    error = refused(
        unpacked("megatron/qwen2_mb") / "run", config, tmp_path, "more rows .* than padding explains"
    )
    assert "90 rows" in str(error.found)
    assert "at most 3 rows" in str(error.wanted)
    assert "run_config.yaml" in str(error.wanted)


def test_the_way_out_that_the_error_names_works(tmp_path: Path) -> None:
    config = config_with("qwen2_mb", tmp_path, vocab_size=86)
    run = copy_of("qwen2_mb", tmp_path)
    (run / "iter_0000000" / "transformer_config.json").write_text('{"make_vocab_size_divisible_by": 8}')
    result = merge(run, tmp_path / "out", config=config)
    assert any("rows 86 to 89" in note for note in result.plan.notes)


def test_without_a_setting_the_usual_padding_is_the_limit() -> None:
    tp2 = {"tensor_model_parallel_size": 2}
    assert agree(checkpoint_with(1255, tp2), {"vocab_size": 1000})
    for rows, settings in ((1256, tp2), (1128, {})):
        with pytest.raises(CkptconvError, match="than padding explains") as error:
            agree(checkpoint_with(rows, settings), {"vocab_size": 1000})
        assert "Megatron's default" in str(error.value.wanted)


def test_a_vocabulary_that_grew_while_training_is_not_cut_to_the_old_config(tmp_path: Path) -> None:
    """The rows would pass for padding: 3 of 4, and the trainer says that it trained two of them."""
    run = copy_of("qwen2_mb", tmp_path)
    path = next(run.rglob("run_config.yaml"))
    path.write_text(re.sub(r"\n  vocab_size: 90\n", "\n  vocab_size: 89\n", path.read_text()))
    config = config_with("qwen2_mb", tmp_path, vocab_size=87)
    error = refused(run, config, tmp_path, "smaller vocabulary than was trained")
    assert "vocab_size 89" in str(error.wanted)


def test_settings_of_another_padding_are_refused(tmp_path: Path) -> None:
    run = copy_of("qwen2_tp2", tmp_path)
    path = next(run.rglob("transformer_config.json"))
    path.write_text(json.dumps({**json.loads(path.read_text()), "padded_vocab_size": 256}))
    refused(run, unpacked("megatron/qwen2_tp2") / "hf", tmp_path, "another number of rows than are stored")


# --- one save, and each file in its rank's folder


class Foreign(pickle.Unpickler):
    """Megatron's own classes, which are not installed, as text: enums among the arguments."""

    def find_class(self, module: str, name: str) -> Any:
        return (lambda *values: name) if module.startswith("megatron") else super().find_class(module, name)


def change(path: Path, **values: Any) -> None:
    """Save a rank file again, with other values; those of `args` by `args_NAME`."""
    torch = pytest.importorskip("torch")
    reader = SimpleNamespace(Unpickler=Foreign, load=pickle.load, __name__="pickle")
    root = torch.load(path, weights_only=False, pickle_module=reader)
    for name, value in values.items():
        if name.startswith("args_"):
            setattr(root["args"], name.removeprefix("args_"), value)
        else:
            root[name] = value
    torch.save(root, path)


def numbered(case: str, tmp_path: Path, ranks: dict[str, int]) -> Path:
    """The case with the ranks' numbers in args, as Megatron-LM's own have them."""
    run = copy_of(case, tmp_path)
    for folder, rank in ranks.items():
        change(next(run.rglob(folder)) / "model_optim_rng.pt", args_rank=rank)
    return run


TP2PP2 = {"mp_rank_00_000": 0, "mp_rank_01_000": 1, "mp_rank_00_001": 2, "mp_rank_01_001": 3}


def exchange(run: Path, one: str, two: str) -> None:
    """Two ranks' folders change their names."""
    first, second = next(run.rglob(one)), next(run.rglob(two))
    first.rename(run / "aside")
    second.rename(first)
    (run / "aside").rename(second)


def test_ranks_in_their_own_folders_are_read(tmp_path: Path) -> None:
    run = numbered("qwen2_mlm_legacy", tmp_path, TP2PP2)
    assert open_checkpoint(run).world_size == 4


def test_ranks_with_experts_in_their_own_folders_are_read(tmp_path: Path) -> None:
    """With expert parallelism the folders are not a cross product: the data-parallel rank 0 of each group writes."""
    names = sorted(
        path.name for path in (unpacked("megatron/deepseek_v3_mlm_legacy") / "run").rglob("mp_rank_*")
    )
    coordinates = {name: [int(n) for n in name.split("_")[2:]] for name in names}
    ranks = {name: tp + 2 * (ep // 2) + 4 * pp for name, (tp, pp, ep) in coordinates.items()}
    assert len(set(ranks.values())) == 8
    assert open_checkpoint(numbered("deepseek_v3_mlm_legacy", tmp_path, ranks)).world_size == 8


@pytest.mark.parametrize(
    ("one", "two"), [("mp_rank_00_000", "mp_rank_01_000"), ("mp_rank_00_001", "mp_rank_01_001")]
)
def test_two_tp_ranks_that_changed_places_are_refused(one: str, two: str, tmp_path: Path) -> None:
    run = numbered("qwen2_mlm_legacy", tmp_path, TP2PP2)
    exchange(run, one, two)
    with pytest.raises(CkptconvError, match="in the folder of another rank") as error:
        open_checkpoint(run)
    assert "TP rank" in str(error.value.found)


def test_two_stages_that_changed_places_are_refused(tmp_path: Path) -> None:
    run = numbered("qwen2_mlm_legacy", tmp_path, TP2PP2)
    exchange(run, "mp_rank_00_000", "mp_rank_00_001")
    exchange(run, "mp_rank_01_000", "mp_rank_01_001")
    with pytest.raises(CkptconvError, match="in the folder of another rank") as error:
        open_checkpoint(run)
    assert "a rank after" in str(error.value.wanted)


def test_one_ranks_file_in_two_folders_is_refused(tmp_path: Path) -> None:
    run = numbered("qwen2_mlm_legacy", tmp_path, {name: n for name, n in TP2PP2.items() if n in (0, 1)})
    first, second = (
        next(run.rglob(name)) / "model_optim_rng.pt" for name in ("mp_rank_00_000", "mp_rank_00_001")
    )
    change(second, args_rank=0)
    with pytest.raises(CkptconvError, match="in the folder of another rank") as error:
        open_checkpoint(run)
    assert str(first) in str(error.value.found)


def test_a_rank_file_of_another_iteration_is_refused(tmp_path: Path) -> None:
    run = copy_of("qwen2_mlm_legacy", tmp_path)
    step = next(run.rglob("mp_rank_01_001")).parent
    change(step / "mp_rank_01_001" / "model_optim_rng.pt", iteration=5)
    with pytest.raises(CkptconvError, match="another iteration than its folder's name") as error:
        open_checkpoint(run)
    assert error.value.found == "iteration 5"
    moved = step.rename(tmp_path / "weights")  # a folder whose name says nothing
    with pytest.raises(CkptconvError, match="different values of iteration") as error:
        open_checkpoint(moved)
    assert "mp_rank_01_001" in str(error.value.where)


def test_a_rank_file_of_a_run_with_other_settings_is_refused(tmp_path: Path) -> None:
    run = copy_of("qwen2_mlm_legacy", tmp_path)
    change(next(run.rglob("mp_rank_01_001")) / "model_optim_rng.pt", args_layernorm_epsilon=1e-5)
    with pytest.raises(CkptconvError, match="different values of layernorm_epsilon"):
        open_checkpoint(run)


@pytest.mark.parametrize(
    ("case", "one", "two"),
    [
        ("qwen2_verl_legacy", "mp_rank_00_000", "mp_rank_01_000"),  # over TP
        ("llama_mlm_legacy_vpp", "mp_rank_00_000", "mp_rank_00_001"),  # over PP
        ("qwen3_moe_verl_legacy", "mp_rank_00_000", "mp_rank_01_001"),  # over TP and EP
    ],
)
def test_a_rank_file_that_is_another_ranks_is_refused(case: str, one: str, two: str, tmp_path: Path) -> None:
    run = copy_of(case, tmp_path)
    first, second = (next(path for path in next(run.rglob(name)).glob("*.pt")) for name in (one, two))
    shutil.copy(first, second)
    with pytest.raises(CkptconvError, match="a copy of another rank's") as error:
        open_checkpoint(run)
    assert str(error.value.where) == str(second)
    assert str(first) in str(error.value.found)


@pytest.mark.parametrize("case", ["olmoe_mcb", "qwen2_mb"])
def test_a_step_folder_of_another_iteration_is_refused(case: str, tmp_path: Path) -> None:
    run = copy_of(case, tmp_path)
    step = next(run.rglob("common.pt")).parent
    wrong = step.rename(step.parent / "iter_0000030")
    with pytest.raises(CkptconvError, match="another iteration than its folder's name") as error:
        open_checkpoint(wrong)
    assert "iter_0000030" in str(error.value.wanted)
    assert step.name in str(error.value.hint)


# --- copies on several ranks


@pytest.mark.parametrize(
    ("case", "name"),
    [
        ("qwen2_mlm_legacy", "final_layernorm.weight"),
        ("qwen2_verl_legacy", "linear_qkv.layer_norm_weight"),
        ("qwen3_moe_verl_legacy", "router.weight"),
        ("critic_verl_legacy", "output_layer.weight"),
    ],
)
def test_a_norm_that_differs_between_ranks_is_refused_by_default(
    case: str, name: str, tmp_path: Path
) -> None:
    run = copy_of(case, tmp_path)
    copied = {n: t for n, t in open_checkpoint(run).tensors.items() if n.endswith(name) and t.replicas}
    _, copy = next(iter(copied.values())).replicas[-1]
    with Path(copy.files[0]).open("r+b") as file:
        file.seek(copy.chunks[0].start)
        file.write(b"\x11\x22")
    error = refused(
        run, unpacked(f"megatron/{case}") / "hf", tmp_path, f"copies of .*{re.escape(name)} differ"
    )
    assert str(error.where) == copy.files[0]
