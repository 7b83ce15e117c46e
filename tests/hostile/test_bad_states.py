"""Optimizer states, trainers' settings, step marks and file names that lie: one clear error, and soon."""

from __future__ import annotations

import json
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from support.helpers import edit_config, own_copy, rank_file

from ckptconv.backends import open_checkpoint
from ckptconv.backends.base import backends
from ckptconv.backends.locate import locate
from ckptconv.backends.megatron.lora import lora_settings
from ckptconv.backends.megatron.settings import read_settings
from ckptconv.commands.inspect import inspect
from ckptconv.commands.merge.run import merge
from ckptconv.commands.merge.steps import merge_steps
from ckptconv.errors import CkptconvError

Made = Callable[[str], Path]
BIG = 10**12


def folded(depth: int = 60) -> list[Any]:
    value: list[Any] = []
    for _ in range(depth):
        value = [value, value]
    return value


@pytest.fixture(autouse=True)
def soon() -> Any:
    """Whatever a file says, it is not counted up to."""
    begun = time.monotonic()
    yield
    assert time.monotonic() - begun < 20


def read_or_refused(read: Callable[[], object]) -> str:
    """What the one error says that it may give; "" without one."""
    said = ""
    try:
        read()
    except CkptconvError as error:
        said = str(error)
    assert len(said) < 10_000
    return said


# --- DeepSpeed


def deepspeed(
    folder: Path, model: dict[str, Any] | None = None, optimizer: dict[str, Any] | None = None
) -> Path:
    """One rank of stage 2, as DeepSpeed writes it, but for the fields that are given."""
    step = folder / "global_step1"
    step.mkdir(parents=True)
    (folder / "latest").write_text("global_step1")
    states = {
        "module": {"w": torch.zeros(2, 3)},
        "param_shapes": [{"w": torch.Size([2, 3])}],
        "dp_world_size": 1,
        "global_steps": 1,
        "buffer_names": [],
        "shared_params": {},
        "frozen_param_shapes": None,
        **(model or {}),
    }
    held = {
        "zero_stage": 2,
        "partition_count": [1],
        "single_partition_of_fp32_groups": [torch.zeros(6)],
        "param_alignment_paddings": [[0]],
        "param_slice_mappings": [],
        **(optimizer or {}),
    }
    torch.save(states, step / "mp_rank_00_model_states.pt")
    torch.save({"optimizer_state_dict": held}, step / "zero_pp_rank_0_mp_rank_00_optim_states.pt")
    return folder


def test_the_good_states_are_read(tmp_path: Path) -> None:
    assert open_checkpoint(deepspeed(tmp_path / "run")).tensors["w"].view.shape == (2, 3)


DIFFERENT_SAVES = "the model file and the optimizer files are of different saves"
SHAPES = "param_shapes of w is not made of whole numbers"
UNNAMED = "a tensor's name is not a string"
UNPRINTABLE = "is too long or has unprintable characters"
ENDS = "the partitions end before w does"
NO_LIST = "a pickle has another type where a list is expected"
MODEL: dict[str, tuple[dict[str, Any], str]] = {
    "more ranks than there can be": ({"dp_world_size": BIG}, DIFFERENT_SAVES),
    "negative ranks": ({"dp_world_size": -1}, DIFFERENT_SAVES),
    "a module that is a list": ({"module": [1]}, "not a model file of DeepSpeed"),
    "a module of numbers": ({"module": {1: torch.zeros(2)}}, UNNAMED),
    "a name with an escape": ({"module": {"w\x1b[2J": torch.zeros(2, 3)}}, UNPRINTABLE),
    "a module of texts": ({"module": {"w": "x"}}, "w is stored, but not as a tensor"),
    "shapes that are a number": ({"param_shapes": 3}, "param_shapes is not a dict with string keys"),
    "a shape that is negative": ({"param_shapes": [{"w": (-2, -3)}]}, SHAPES),
    "a shape that is huge": ({"param_shapes": [{"w": (1 << 40, 1 << 40)}]}, ENDS),
    "a shape that is wider": ({"param_shapes": [{"w": (1 << 70,)}]}, SHAPES),
    "a shape of many dims": ({"param_shapes": [{"w": (1,) * 1000}]}, SHAPES),
    "a shape that unfolds": ({"param_shapes": [{"w": folded()}]}, SHAPES),
    "frozen shapes that are a text": ({"frozen_param_shapes": "x"}, "frozen_param_shapes is not a dict with string keys"),
    "a frozen weight without values": ({"frozen_param_shapes": {"f": (2,)}}, "f is frozen, but its values are missing"),
    "tied weights that are a list": ({"shared_params": [1]}, "shared_params is not a dict with string keys"),
    "a tied weight that is a list": ({"shared_params": {"t": ["w"]}}, UNNAMED),
    "buffers that are a number": ({"module": {"w": torch.zeros(2, 3), "b": torch.zeros(1)}, "buffer_names": 7}, NO_LIST),
}  # fmt: skip
OPTIMIZER: dict[str, tuple[dict[str, Any], str]] = {
    "a stage that is none": ({"zero_stage": 9}, DIFFERENT_SAVES),
    "a stage that unfolds": ({"zero_stage": folded()}, DIFFERENT_SAVES),
    "partitions without end": ({"partition_count": [BIG]}, DIFFERENT_SAVES),
    "masters that are none": ({"single_partition_of_fp32_groups": [None]}, "has no flat fp32 master weights"),
    "masters that are too short": ({"single_partition_of_fp32_groups": [torch.zeros(2)]}, ENDS),
    "masters of two dims": ({"single_partition_of_fp32_groups": [torch.zeros(2, 3)]}, "has more than one dim"),
    "a group too many": ({"single_partition_of_fp32_groups": [torch.zeros(6), torch.zeros(6)]}, "parameter groups differ"),
    "negative paddings": ({"param_alignment_paddings": [[-1]]}, "the paddings between parameters are not integers"),
    "huge paddings": ({"param_alignment_paddings": [[1 << 62]]}, "parameter group 0 does not fill its partitions"),
    "paddings of text": ({"param_alignment_paddings": [["x"]]}, "the paddings between parameters are not integers"),
    "paddings of another group": ({"param_alignment_paddings": []}, "different numbers of paddings"),
    "a map of other things": ({"param_slice_mappings": [{1: 2, "w": folded()}]}, "map places w elsewhere"),
    "paddings that are a number": ({"param_alignment_paddings": 3}, NO_LIST),
}  # fmt: skip


@pytest.mark.parametrize("case", MODEL)
def test_a_model_file_that_lies(case: str, tmp_path: Path) -> None:
    model, says = MODEL[case]
    with pytest.raises(CkptconvError, match=says) as error:
        open_checkpoint(deepspeed(tmp_path / "run", model=model))
    assert len(str(error.value)) < 10_000


@pytest.mark.parametrize("case", OPTIMIZER)
def test_an_optimizer_file_that_lies(case: str, tmp_path: Path) -> None:
    optimizer, says = OPTIMIZER[case]
    with pytest.raises(CkptconvError, match=says) as error:
        open_checkpoint(deepspeed(tmp_path / "run", optimizer=optimizer))
    assert len(str(error.value)) < 10_000


def test_a_map_that_is_none_says_nothing(tmp_path: Path) -> None:
    assert open_checkpoint(deepspeed(tmp_path / "run", optimizer={"param_slice_mappings": 7})).tensors


@pytest.mark.parametrize(
    "tag",
    ["../outside", "/etc", "..", ".", "a/b", "x" * 5000, "x" * 300, "\x1b[2J", "a\nb", "", "\0"],
    ids=ascii,
)
def test_a_tag_that_is_no_folder_of_the_run(tag: str, tmp_path: Path) -> None:
    deepspeed(tmp_path / "outside")
    run = tmp_path / "run"
    run.mkdir()
    (run / "latest").write_text(tag)
    with pytest.raises(CkptconvError, match="no checkpoint found here"):
        open_checkpoint(run)


# --- Megatron


def rank(folder: Path, **values: Any) -> Path:
    """One rank of Megatron-LM."""
    weights = {"decoder.final_layernorm.weight": torch.zeros(3), **values.pop("model", {})}
    path = folder / values.pop("place", "mp_rank_00") / "model_optim_rng.pt"
    path.parent.mkdir(parents=True)
    torch.save({"model": weights, **values}, path)
    return folder


FC1 = {"decoder.layers.0.mlp.experts.local_experts.0.linear_fc1.weight": torch.zeros(8, 3)}
MEGATRON: dict[str, tuple[dict[str, Any], str]] = {
    "ranks without end": ({"place": "mp_rank_99999999"}, "too many ranks or files"),
    "stages without end": ({"place": "mp_rank_00_99999999"}, "too many ranks or files"),
    "a name that is a number": ({"model": {1: torch.zeros(2)}}, UNNAMED),
    "a name of 5,000 digits": ({"model": {"decoder.layers." + "1" * 5000 + ".x": torch.zeros(2)}}, UNPRINTABLE),
    "a weight that unfolds": ({"model": {"w": folded()}}, "w is not a tensor"),
    "a scalar where a matrix is": ({"model": {"decoder.layers.0.mlp.linear_fc1.weight": torch.zeros(())}}, "too few dims"),
}  # fmt: skip


@pytest.mark.parametrize("case", MEGATRON)
def test_a_rank_of_megatron_that_lies(case: str, tmp_path: Path) -> None:
    values, says = MEGATRON[case]
    with pytest.raises(CkptconvError, match=says) as error:
        open_checkpoint(rank(tmp_path / "run", **values))
    assert len(str(error.value)) < 10_000


SIZES = (0, -1, 1, 3, BIG, 1 << 70, True, "4", None, [4], 2.0)


@pytest.mark.parametrize("value", SIZES, ids=str)
@pytest.mark.parametrize(
    "key",
    [
        "tensor_model_parallel_size",
        "pipeline_model_parallel_size",
        "expert_model_parallel_size",
        "expert_tensor_parallel_size",
        "moe_mlp_glu_interleave_size",
    ],
)
def test_settings_of_a_trainer_that_lie(key: str, value: object, tmp_path: Path) -> None:
    """Read, or one clear error; a number is not counted up to."""
    run = rank(tmp_path / "run", model=FC1)
    stated = {"tensor_model_parallel_size": 1, "expert_tensor_parallel_size": 1, key: value}
    (run / "transformer_config.json").write_text(json.dumps(stated))
    read_or_refused(lambda: open_checkpoint(run))


BOMBS: dict[str, bytes] = {
    "empty lines": b"\n" * 1_000_000 + b"x",
    "lines of blanks": (b" " * 1_000 + b"\n") * 1_000,
    "one line of blanks": b" " * 1_000_000,
    "a section of blanks": b"peft:\n" + b" \n" * 300_000 + b"x",
    "a section that never ends": b"peft:\n" + b"  a: 1\n" * 200_000,
    "aliases of aliases": b"a: &a [x,x]\n" + b"".join(b"%c: &%c [*%c,*%c]\n" % (c + 1, c + 1, c, c) for c in range(97, 121)),
    "an object": b"peft: !!python/object/apply:os.system ['touch it-ran']\n",
    "no text": b"\xff\xfe\x00" * 1000,
}  # fmt: skip


@pytest.mark.parametrize("case", BOMBS)
def test_a_settings_file_that_is_a_bomb(case: str, tmp_path: Path) -> None:
    (tmp_path / "run_config.yaml").write_bytes(BOMBS[case])
    begun = time.monotonic()
    assert lora_settings(tmp_path) == {}
    assert read_settings(tmp_path, tmp_path).settings == ()
    assert time.monotonic() - begun < 5
    assert not Path("it-ran").exists()


@pytest.mark.parametrize(
    "value", ["1e999", "1.2.3", "-", "e", "+", "nan", "inf", "0x10", "1" * 5000, "[1]", "1e", "²"]
)
def test_a_rank_of_lora_that_is_no_number(value: str, tmp_path: Path) -> None:
    (tmp_path / "run_config.yaml").write_text(f"peft:\n  dim: {value}\n  alpha: 1.6e1\n", encoding="utf-8")
    assert lora_settings(tmp_path) == {"lora_alpha": 16}


# --- runs, names and configs


@pytest.mark.parametrize(
    "text", ["²", "1" * 5000, "-1", "1e3", "\x1b[2J", "global_step_" + "9" * 30, "\0", "٣"], ids=ascii
)
def test_a_mark_of_the_latest_step_that_is_none(text: str, made: Made, tmp_path: Path) -> None:
    run = own_copy(made("ws1_fsdp1"), tmp_path / "run")
    (run / "latest_checkpointed_iteration.txt").write_text(text)
    said = read_or_refused(lambda: open_checkpoint(run))
    assert not said or "step" in said


@pytest.mark.parametrize(
    "text", ["1" * 200_000 + "x", "1 " * 200_000 + "x", " " * 400_000 + "x", "9" * 5_000], ids=len
)
def test_a_latest_mark_cannot_make_the_regex_run_for_minutes(text: str, tmp_path: Path) -> None:
    """--all-steps and --watch look at it again and again."""
    (tmp_path / "run" / "global_step_1").mkdir(parents=True)
    (tmp_path / "run" / "latest_checkpointed_iteration.txt").write_text(text)
    begun = time.monotonic()
    (step,) = merge_steps(tmp_path / "run", tmp_path / "models")
    assert step.merged is None
    assert time.monotonic() - begun < 5


def test_a_huge_mark_is_not_read(tmp_path: Path) -> None:
    (tmp_path / "global_step_1").mkdir()
    with (tmp_path / "latest").open("wb") as file:
        file.truncate(1 << 36)
    assert locate(tmp_path, backends()) is None


@pytest.mark.parametrize("world", [10**12, 1 << 21])
def test_a_world_of_more_ranks_than_there_can_be(world: int, made: Made, tmp_path: Path) -> None:
    run = own_copy(made("ws1_fsdp1"), tmp_path / "run")
    file = rank_file(run, 0)
    file.rename(file.with_name(f"model_world_size_{world}_rank_0.pt"))
    (file.parent / "fsdp_config.json").unlink(missing_ok=True)
    with pytest.raises(CkptconvError, match="too many ranks or files"):
        open_checkpoint(run)


VALUES = (
    10**90,
    -(10**90),
    0,
    -1,
    1e308,
    True,
    "x\x1b[2J",
    "\ud800",
    [],
    [[]],
    {},
    None,
    [1] * 1000,
    {"a": {"b": [1]}},
)
KEYS = ("num_hidden_layers", "hidden_size", "vocab_size", "num_attention_heads", "num_key_value_heads", "intermediate_size",
        "head_dim", "model_type", "architectures", "dtype", "torch_dtype", "tie_word_embeddings", "id2label", "text_config",
        "auto_map", "quantization_config", "num_nextn_predict_layers", "num_experts", "rope_scaling")  # fmt: skip


@pytest.mark.parametrize("key", KEYS)
def test_configs_of_hostile_values(key: str, made: Made, tmp_path: Path) -> None:
    """Planned, or one clear error."""
    run = own_copy(made("ws1_fsdp1"), tmp_path / "run")
    for value in VALUES:
        edit_config(run, **{key: "x"})
        edit_config(run, **{key: value})
        read_or_refused(lambda: merge(run, tmp_path / "out", dry_run=True))
        read_or_refused(lambda: inspect(run))
