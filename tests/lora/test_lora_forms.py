"""Forms of LoRA: small PEFT models saved by plain torch.save, halves and mixtures."""

from __future__ import annotations

import json
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from support.helpers import (
    Tensors,
    assert_equal,
    largest_difference,
    own_copy,
    parse,
    rank_file,
    save_ws1,
    tensors,
)
from support.lora_tools import META

from ckptconv.commands.merge.run import merge
from ckptconv.errors import CkptconvError
from ckptconv.models import skeleton
from ckptconv.models.lora.kinds import check_name
from ckptconv.models.lora.names import is_of_an_adapter

Made = Callable[[str], Path]


# --- forms of LoRA that the made checkpoints lack: small PEFT models, saved by plain torch.save


def peft_run(folder: Path, meta: dict[str, Any] | None = None, **options: Any) -> tuple[Path, Tensors]:
    """A run of one rank with such a PEFT model, and what merge_and_unload makes of it."""
    import torch
    from peft import LoraConfig, get_peft_model
    from safetensors.torch import save
    from transformers import Qwen2Config, Qwen2ForCausalLM

    torch.manual_seed(0)
    sizes = {"num_hidden_layers": 1, "num_attention_heads": 3, "num_key_value_heads": 1}
    config = Qwen2Config(
        vocab_size=41, hidden_size=18, intermediate_size=23, tie_word_embeddings=False, **sizes
    )
    settings = {"r": 4, "lora_alpha": 6} | options
    model = get_peft_model(Qwen2ForCausalLM(config), LoraConfig(task_type="CAUSAL_LM", **settings))
    for parameter in model.parameters():
        parameter.data = torch.randn(parameter.shape)
    written = {"architectures": ["Qwen2ForCausalLM"], "model_type": "qwen2", **config.to_diff_dict()}
    run = save_ws1(model.state_dict(), json.loads(json.dumps(written, default=str)), folder)
    stated = {
        "r": settings["r"],
        "lora_alpha": settings["lora_alpha"],
        "task_type": "CAUSAL_LM",
        **(meta or {}),
    }
    (run / META).write_text(json.dumps(stated))
    model.save_pretrained(folder.parent / "pefts")
    merged = {
        name: tensor.contiguous().clone() for name, tensor in model.merge_and_unload().state_dict().items()
    }
    return run, parse(save(merged))


@pytest.mark.parametrize(
    "options",
    [
        {"target_modules": ["q_proj", "down_proj"]},
        {"target_modules": ["embed_tokens", "v_proj"]},
        {"target_modules": ["lm_head", "o_proj"]},
        {"target_modules": ["q_proj"], "modules_to_save": ["lm_head"]},
        {"target_modules": ["q_proj"], "modules_to_save": ["embed_tokens", "norm"]},
        {"target_modules": ["q_proj", "down_proj"], "use_dora": True},
        {"target_modules": ["embed_tokens"], "use_dora": True},
        {"target_modules": ["k_proj"], "lora_bias": True},
    ],
    ids=[
        *("some", "embedding", "head", "trained_head", "trained_embedding_and_norm"),
        *("dora", "dora_embedding", "lora_bias"),
    ],
)
def test_every_form_of_lora_merges_as_peft_merges_it(tmp_path: Path, options: dict[str, Any]) -> None:
    run, wanted = peft_run(tmp_path / "run", **options)
    merge(run, tmp_path / "out", dtype="keep")
    assert largest_difference(tensors(tmp_path / "out"), wanted) <= 5e-6


def test_rslora_merges_as_peft_merges_it(tmp_path: Path) -> None:
    run, wanted = peft_run(tmp_path / "run", {"use_rslora": True}, target_modules=["q_proj"], use_rslora=True)
    merge(run, tmp_path / "out", dtype="keep")
    assert largest_difference(tensors(tmp_path / "out"), wanted) <= 5e-6


def test_patterns_of_rank_and_alpha_merge_as_peft_merges_them(tmp_path: Path) -> None:
    patterns = {"rank_pattern": {"q_proj": 2}, "alpha_pattern": {"q_proj": 11}}
    run, wanted = peft_run(tmp_path / "run", patterns, target_modules=["q_proj", "v_proj"], **patterns)
    merge(run, tmp_path / "out", dtype="keep")
    assert largest_difference(tensors(tmp_path / "out"), wanted) <= 5e-6


def test_an_embeddings_adapter_has_pefts_own_names(tmp_path: Path) -> None:
    run, _ = peft_run(tmp_path / "run", target_modules=["embed_tokens", "v_proj"])
    merge(run, tmp_path / "out", lora="adapter")
    pefts = {n: t for n, t in tensors(tmp_path / "pefts").items() if "lora_" in n}
    assert_equal(tensors(tmp_path / "out"), pefts)


def test_an_adapter_keeps_the_modules_that_were_trained_whole(tmp_path: Path) -> None:
    run, _ = peft_run(tmp_path / "run", target_modules=["q_proj"], modules_to_save=["lm_head"])
    merge(run, tmp_path / "out", lora="adapter", dtype="keep")
    assert_equal(tensors(tmp_path / "out"), tensors(tmp_path / "pefts"))
    assert json.loads((tmp_path / "out" / "adapter_config.json").read_text())["modules_to_save"] == [
        "lm_head"
    ]


def test_biases_that_were_trained_with_lora_are_merged(tmp_path: Path) -> None:
    """PEFT stores them under base_layer; they are the model's own."""
    run, wanted = peft_run(tmp_path / "run", target_modules=["q_proj"], bias="all")
    merge(run, tmp_path / "out", dtype="keep")
    assert largest_difference(tensors(tmp_path / "out"), wanted) <= 5e-6


def test_a_conv1d_layer_merges_as_peft_merges_it(tmp_path: Path) -> None:
    """GPT-2's weights are (in, out). A square one would be merged wrong in silence."""
    import torch
    from peft import LoraConfig, get_peft_model
    from safetensors.torch import save
    from transformers import GPT2Config, GPT2LMHeadModel

    sizes = {"n_layer": 1, "n_head": 3, "vocab_size": 41, "n_positions": 16}
    config = GPT2Config(n_embd=18, tie_word_embeddings=False, **sizes)
    lora = LoraConfig(r=4, lora_alpha=6, target_modules=["attn.c_proj"], fan_in_fan_out=True)
    model = get_peft_model(GPT2LMHeadModel(config), lora)
    for parameter in model.parameters():
        parameter.data = torch.randn(parameter.shape)
    run = save_ws1(model.state_dict(), {"model_type": "gpt2", "tie_word_embeddings": False}, tmp_path / "run")
    wanted = {n: t.contiguous() for n, t in model.merge_and_unload().state_dict().items()}
    merge(run, tmp_path / "out", dtype="keep", lora_alpha=6)
    found, whole = tensors(tmp_path / "out"), parse(save(wanted))
    assert largest_difference({n: found[n] for n in whole}, whole) <= 5e-6


# --- halves and mixtures


def test_half_a_lora_pair_is_refused(tmp_path: Path) -> None:
    import torch

    stem = "base_model.model.model.layers.0.mlp.up_proj"
    run = save_ws1(
        {f"{stem}.base_layer.weight": torch.ones(4, 3), f"{stem}.lora_A.default.weight": torch.ones(2, 3)},
        {},
        tmp_path,
    )
    with pytest.raises(CkptconvError, match="only one of lora_A / lora_B is stored"):
        merge(run, tmp_path / "out", lora_alpha=1)


@pytest.mark.parametrize("options", [{"use_dora": True}, {"lora_bias": True}], ids=["dora", "lora_bias"])
def test_every_tensor_of_an_adapter_is_exported_as_peft_saves_it(
    tmp_path: Path, options: dict[str, Any]
) -> None:
    run, _ = peft_run(tmp_path / "run", target_modules=["q_proj", "v_proj"], **options)
    merge(run, tmp_path / "out", lora="adapter", dtype="keep")
    assert_equal(tensors(tmp_path / "out"), tensors(tmp_path / "pefts"))
    config = json.loads((tmp_path / "out" / "adapter_config.json").read_text())
    assert options.items() <= config.items()


def test_ranks_that_differ_are_written_into_the_adapters_config(tmp_path: Path) -> None:
    from peft import PeftConfig

    run, _ = peft_run(tmp_path / "run", target_modules=["q_proj", "v_proj"], rank_pattern={"q_proj": 2})
    merge(run, tmp_path / "out", lora="adapter", dtype="keep", lora_alpha=6)
    config = PeftConfig.from_pretrained(tmp_path / "out")
    ranks = {config.r, *config.rank_pattern.values()}
    assert ranks == {2, 4}


def test_other_adapters_that_are_trained_are_refused_by_name(tmp_path: Path) -> None:
    import torch

    stem = "base_model.model.model.layers.0.mlp.up_proj"
    run = save_ws1(
        {f"{stem}.base_layer.weight": torch.ones(4, 3), f"{stem}.ia3_l.default": torch.ones(4)}, {}, tmp_path
    )
    with pytest.raises(CkptconvError, match="IA3"):
        merge(run, tmp_path / "out")


def test_two_adapters_at_once_are_refused(tmp_path: Path) -> None:
    import torch

    stem = "base_model.model.model.layers.0.mlp.up_proj"
    state = {f"{stem}.base_layer.weight": torch.ones(4, 3)}
    for adapter in ("default", "reference"):
        state[f"{stem}.lora_A.{adapter}.weight"] = torch.ones(2, 3)
        state[f"{stem}.lora_B.{adapter}.weight"] = torch.ones(4, 2)
    with pytest.raises(CkptconvError, match="more than one adapter") as error:
        merge(save_ws1(state, {}, tmp_path), tmp_path / "out", lora_alpha=1)
    assert error.value.found == "default, reference"


def test_a_merged_lora_is_in_the_receipt(made: Made, tmp_path: Path) -> None:
    merge(made("lora_w4"), tmp_path / "out")
    receipt = json.loads((tmp_path / "out" / "ckptconv.json").read_text())
    stem = "base_model.model.model.layers.0.mlp.up_proj"
    assert receipt["tensors"]["model.layers.0.mlp.up_proj.weight"]["from"] == [
        f"{stem}.base_layer.weight",
        f"{stem}.lora_A.default.weight",
        f"{stem}.lora_B.default.weight",
    ]


def test_a_missing_rank_of_a_lora_run_is_an_error_too(made: Made, tmp_path: Path) -> None:
    run = own_copy(made("lora_only_w2"), tmp_path / "run")
    rank_file(run, 1).unlink()
    with pytest.raises(CkptconvError, match="rank 1 of 2 is missing"):
        merge(run, tmp_path / "out")


def test_no_module_of_a_known_class_is_taken_for_an_adapter() -> None:
    with zipfile.ZipFile(skeleton._DATA) as archive:
        packages = set(json.loads(archive.read("classes.json"))["classes"].values())
        classes = [
            each for p in packages for each in json.loads(archive.read(f"{p}.json"))["classes"].values()
        ]
    assert len(classes) > 500
    for record in classes:
        for _, _, members in record["groups"]:
            for pattern, *_ in members:
                name = pattern.replace("*", "0")
                check_name(name)
                assert not is_of_an_adapter(name), name
    for own in (
        "output.adapter_modules.en_XX.dense1.weight",
        "pixel_level_module.decoder.adapter_1.0.weight",
    ):
        check_name(f"encoder.layer.0.{own}")
