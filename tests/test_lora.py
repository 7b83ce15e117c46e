"""LoRA: what is merged is what PEFT merges, what is exported is what PEFT loads, and alpha is never guessed."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from helpers import (
    FIXTURES,
    ROLE,
    Tensors,
    assert_equal,
    cast,
    cli,
    edit_json,
    largest_difference,
    own_copy,
    parse,
    rank_file,
    save_ws1,
    tensors,
)

from ckptconv.commands.merge import merge
from ckptconv.errors import CkptconvError

Made = Callable[[str], Path]
META = f"{ROLE}/lora_train_meta.json"
CLOSE = 1e-6


def bare(found: Tensors) -> Tensors:
    """lora_merged.safetensors without the prefixes that a peft model had."""
    return {name.removeprefix("base_model.model."): tensor for name, tensor in found.items()}


# --- merged


@pytest.mark.parametrize("lora", [None, "merge"])
def test_merged_weights_are_those_of_pefts_merge_and_unload(
    made: Made, tmp_path: Path, lora: str | None
) -> None:
    merge(made("lora_w4"), tmp_path / "out", dtype="keep", lora=lora)
    peft = bare(tensors(made("lora_w4") / "lora_merged.safetensors"))
    assert largest_difference(tensors(tmp_path / "out"), peft) <= CLOSE
    assert largest_difference(tensors(tmp_path / "out"), tensors(made("lora_w4") / "base")) > 0.1


def test_what_was_merged_without_being_asked_is_said(made: Made, tmp_path: Path) -> None:
    (note,) = merge(made("lora_w4"), tmp_path / "out").plan.notes
    assert note.startswith("LoRA on 14 modules is merged into the weights")


def test_merged_in_bf16_is_the_fp32_result_rounded_once(made: Made, tmp_path: Path) -> None:
    merge(made("lora_w4"), tmp_path / "out")
    merge(made("lora_w4"), tmp_path / "wide", dtype="keep")
    assert_equal(tensors(tmp_path / "out"), cast(tensors(tmp_path / "wide")))


def test_a_bf16_base_is_fused_in_fp32_and_rounded_once(made: Made, tmp_path: Path) -> None:
    """PEFT merged the same model in fp32; bf16 arithmetic would be off by a bit in many places."""
    merge(made("lora_bf16_w2"), tmp_path / "out")
    merge(made("lora_bf16_w2"), tmp_path / "wide", dtype="float32")
    peft = bare(tensors(made("lora_bf16_w2") / "lora_merged.safetensors"))
    assert largest_difference(tensors(tmp_path / "wide"), peft) <= 4 * CLOSE
    wanted = cast(peft)
    found = tensors(tmp_path / "out")
    assert {n: t[:2] for n, t in found.items()} == {n: t[:2] for n, t in wanted.items()}
    off = sum(
        int(np.count_nonzero(np.frombuffer(t.data, "<u2") != np.frombuffer(wanted[n].data, "<u2")))
        for n, t in found.items()
    )
    assert (
        off <= sum(len(t.data) // 2 for t in found.values()) // 1000
    )  # where fp32 sums fall on a rounding edge


def test_verls_own_lora_checkpoint_merges_to_what_peft_made_of_it(tmp_path: Path) -> None:
    case = FIXTURES / "verl_lora_w2"
    merge(case / "run", tmp_path / "out", dtype="keep")
    fused = bare(tensors(case / "truth" / "global_step_1" / "actor" / "fused.safetensors"))
    fused.pop("lm_head.weight", None)  # tied
    assert largest_difference(tensors(tmp_path / "out"), fused) <= CLOSE


def test_verls_own_adapter_has_the_same_bytes(tmp_path: Path) -> None:
    """verl writes its adapter in bf16; the weights beside it are the base model's."""
    import hashlib

    case = FIXTURES / "verl_lora_w2"
    merge(case / "run", tmp_path / "out", dtype="bfloat16", lora="adapter")
    theirs = json.loads((case / "truth" / "global_step_1" / "actor" / "verl_merged.sha256.json").read_text())
    adapter = theirs["tensors"]["lora_adapter/adapter_model.safetensors"]
    found = tensors(tmp_path / "out" / "adapter_model.safetensors")
    assert {name: hashlib.sha256(t.data).hexdigest() for name, t in found.items()} == {
        name: tensor["sha256"] for name, tensor in adapter.items()
    }


# --- exported


def logits(model: Any) -> Any:
    import torch

    with torch.no_grad():
        return model.eval()(torch.tensor([[1, 5, 9, 33, 100, 2]])).logits


def test_the_adapter_on_its_base_gives_the_merged_models_logits(made: Made, tmp_path: Path) -> None:
    from peft import PeftModel
    from transformers import AutoModelForCausalLM

    merge(made("lora_w4"), tmp_path / "merged", dtype="keep")
    merge(made("lora_w4"), tmp_path / "adapter", lora="adapter")
    base = AutoModelForCausalLM.from_pretrained(made("lora_w4") / "base")
    without = logits(base)
    with_it = logits(PeftModel.from_pretrained(base, tmp_path / "adapter"))
    merged = logits(AutoModelForCausalLM.from_pretrained(tmp_path / "merged"))
    assert (with_it - merged).abs().max() <= 1e-4 * merged.abs().max()
    assert (with_it - without).abs().max() > 1e-2 * merged.abs().max()


def test_the_adapter_file_is_pefts_own(made: Made, tmp_path: Path) -> None:
    merge(made("lora_w4"), tmp_path / "out", lora="adapter")
    ours, theirs = tmp_path / "out", made("lora_w4") / "adapter"
    assert_equal(tensors(ours), tensors(theirs))
    config, pefts = (json.loads((folder / "adapter_config.json").read_text()) for folder in (ours, theirs))
    for key in ("r", "lora_alpha", "task_type", "peft_type", "bias", "fan_in_fan_out", "use_rslora"):
        assert config.get(key, False) == pefts[key], key
    assert {name.rsplit(".", 1)[-1] for name in pefts["target_modules"]} == set(config["target_modules"])


def test_an_adapter_folder_holds_no_base_weights_and_says_that_they_were_left(
    made: Made, tmp_path: Path
) -> None:
    done = merge(made("lora_w4"), tmp_path / "out", lora="adapter")
    names = {path.name for path in (tmp_path / "out").iterdir()}
    assert {"adapter_config.json", "adapter_model.safetensors", "tokenizer.json", "ckptconv.json"} <= names
    assert not {"model.safetensors", "config.json", "generation_config.json"} & names
    assert {d.reason for d in done.plan.dropped} == {"base weight, not part of an adapter"}


def test_both_writes_the_merged_model_and_the_adapter_beside_it(made: Made, tmp_path: Path) -> None:
    merge(made("lora_w4"), tmp_path / "both", dtype="keep", lora="both")
    merge(made("lora_w4"), tmp_path / "merged", dtype="keep", lora="merge")
    merge(made("lora_w4"), tmp_path / "adapter", dtype="keep", lora="adapter")
    assert_equal(tensors(tmp_path / "both"), tensors(tmp_path / "merged"))
    assert_equal(tensors(tmp_path / "both" / "lora_adapter"), tensors(tmp_path / "adapter"))
    one, two = (
        tmp_path / "both" / "lora_adapter" / "adapter_config.json",
        tmp_path / "adapter" / "adapter_config.json",
    )
    assert one.read_bytes() == two.read_bytes()


def test_both_in_shards_has_an_index_of_the_model_alone(made: Made, tmp_path: Path) -> None:
    merge(made("lora_w4"), tmp_path / "out", lora="both", max_shard_size="20KB")
    index = json.loads((tmp_path / "out" / "model.safetensors.index.json").read_text())
    assert set(index["weight_map"]) == set(tensors(tmp_path / "out"))
    assert index["metadata"]["total_size"] == sum(len(t.data) for t in tensors(tmp_path / "out").values())


# --- LoRA alone


def test_lora_alone_gives_an_adapter_and_says_so(made: Made, tmp_path: Path) -> None:
    done = merge(made("lora_only_w2"), tmp_path / "out")
    assert_equal(tensors(tmp_path / "out"), tensors(made("lora_only_w2") / "adapter"))
    assert any("LoRA tensors alone" in note and "--base" in note for note in done.plan.notes)


def test_lora_alone_with_its_base_gives_the_merged_model(made: Made, tmp_path: Path) -> None:
    base = made("lora_only_w2") / "base"
    merge(made("lora_only_w2"), tmp_path / "out", base=base, dtype="keep")
    peft = bare(tensors(made("lora_only_w2") / "lora_merged.safetensors"))
    assert largest_difference(tensors(tmp_path / "out"), peft) <= CLOSE
    assert json.loads((tmp_path / "out" / "config.json").read_text())["architectures"] == ["Qwen2ForCausalLM"]


def test_verls_lora_alone_with_its_base_gives_what_peft_merged(tmp_path: Path) -> None:
    case = FIXTURES / "verl_lora_only_w2"
    merge(case / "run", tmp_path / "out", base=case / "base", dtype="keep")
    fused = bare(tensors(case / "truth" / "global_step_1" / "actor" / "fused.safetensors"))
    found = tensors(tmp_path / "out")
    if {t.dtype for t in found.values()} == {"F32"}:
        assert largest_difference(found, fused) <= CLOSE
    else:  # a base that is stored in bf16
        assert {name: t.shape for name, t in found.items()} == {name: t.shape for name, t in fused.items()}


def test_lora_alone_merges_without_a_config_beside_it(made: Made, tmp_path: Path) -> None:
    run = own_copy(made("lora_only_w2"), tmp_path / "run")
    shutil.rmtree(run / ROLE / "huggingface")
    merge(run, tmp_path / "adapter")
    merge(run, tmp_path / "merged", base=made("lora_only_w2") / "base", dtype="keep")
    assert_equal(tensors(tmp_path / "adapter"), tensors(made("lora_only_w2") / "adapter"))
    assert set(tensors(tmp_path / "merged")) == set(tensors(made("lora_only_w2") / "base"))


@pytest.mark.parametrize("lora", ["merge", "both"])
def test_lora_alone_cannot_be_merged_without_its_base(made: Made, tmp_path: Path, lora: str) -> None:
    with pytest.raises(CkptconvError, match="holds LoRA tensors alone") as error:
        merge(made("lora_only_w2"), tmp_path / "out", lora=lora)
    assert "--base" in str(error.value.hint)
    assert not (tmp_path / "out").exists()


def test_a_base_of_another_model_is_refused(made: Made, tmp_path: Path) -> None:
    for other in ("fsdp2_tp_even_w4", "arch_phi3_w2"):
        with pytest.raises(CkptconvError, match=r"does not fit|no weight of that name"):
            merge(made("lora_only_w2"), tmp_path / "out", base=made(other) / "hub")


@pytest.mark.parametrize("variant", ["lora_w4", "fsdp2_w4"])
def test_a_base_that_is_not_needed_is_refused(made: Made, tmp_path: Path, variant: str) -> None:
    with pytest.raises(CkptconvError, match="base"):
        merge(made(variant), tmp_path / "out", base=made("lora_w4") / "base")


@pytest.mark.parametrize("lora", ["adapter", "both"])
def test_an_adapter_of_a_model_without_lora_is_refused(made: Made, tmp_path: Path, lora: str) -> None:
    with pytest.raises(CkptconvError, match="no LoRA tensors"):
        merge(made("fsdp2_w4"), tmp_path / "out", lora=lora)


# --- alpha


@pytest.mark.parametrize("lora", [None, "merge", "adapter", "both"])
def test_without_an_alpha_nothing_is_guessed(made: Made, tmp_path: Path, lora: str | None) -> None:
    with pytest.raises(CkptconvError, match="alpha is not known") as error:
        merge(made("lora_noalpha_w2"), tmp_path / "out", lora=lora)
    assert "--lora-alpha" in str(error.value.hint)
    assert not list(tmp_path.iterdir())


@pytest.mark.xfail(strict=True, reason="the hint names --lora adapter, which is refused for the same reason")
def test_the_way_out_that_the_error_names_is_one(made: Made, tmp_path: Path) -> None:
    with pytest.raises(CkptconvError) as error:
        merge(made("lora_noalpha_w2"), tmp_path / "out")
    if "--lora adapter" in str(error.value.hint):
        merge(made("lora_noalpha_w2"), tmp_path / "out", lora="adapter")


def test_the_alpha_may_be_said(made: Made, tmp_path: Path) -> None:
    merge(made("lora_noalpha_w2"), tmp_path / "out", dtype="keep", lora_alpha=7)
    peft = bare(tensors(made("lora_noalpha_w2") / "lora_merged.safetensors"))
    assert largest_difference(tensors(tmp_path / "out"), peft) <= CLOSE


def test_the_alpha_that_is_said_goes_before_the_metadata(made: Made, tmp_path: Path) -> None:
    merge(made("lora_w4"), tmp_path / "out", dtype="keep", lora_alpha=14)
    merged, base = tensors(tmp_path / "out"), tensors(made("lora_w4") / "base")
    peft = bare(tensors(made("lora_w4") / "lora_merged.safetensors"))
    name = "model.layers.0.mlp.up_proj.weight"
    twice, once, zero = (np.frombuffer(t[name].data, "<f4") for t in (merged, peft, base))
    assert np.allclose(twice - zero, 2 * (once - zero), atol=1e-5)


def test_the_alpha_that_is_said_is_written_into_the_adapter(made: Made, tmp_path: Path) -> None:
    merge(made("lora_noalpha_w2"), tmp_path / "out", lora="adapter", lora_alpha=7)
    config = json.loads((tmp_path / "out" / "adapter_config.json").read_text())
    assert (config["r"], config["lora_alpha"]) == (5, 7)


@pytest.mark.parametrize("alpha", [0, -1, None, "7", True])
@pytest.mark.parametrize("lora", ["merge", "adapter"])
def test_an_alpha_of_zero_in_the_metadata_is_no_alpha(
    made: Made, tmp_path: Path, alpha: object, lora: str
) -> None:
    """verl once wrote 0 for every run; merging with it gives the base model."""
    run = own_copy(made("lora_w4"), tmp_path / "run")
    edit_json(run / META, lora_alpha=alpha)
    with pytest.raises(CkptconvError, match="alpha is not known"):
        merge(run, tmp_path / "out", lora=lora)


NOT_A_NUMBER = pytest.param(
    "nan", marks=pytest.mark.xfail(strict=True, reason="nan <= 0 is false: all weights become NaN")
)


@pytest.mark.parametrize("alpha", ["0", "-3", NOT_A_NUMBER])
def test_an_alpha_of_zero_on_the_command_line_is_refused(made: Made, tmp_path: Path, alpha: str) -> None:
    ran = cli("merge", made("lora_w4"), tmp_path / "out", "--lora-alpha", alpha)
    assert ran.code == 2
    assert len(ran.errors) == 1
    assert not (tmp_path / "out").exists()


def test_metadata_of_another_rank_is_refused(made: Made, tmp_path: Path) -> None:
    run = own_copy(made("lora_w4"), tmp_path / "run")
    edit_json(run / META, r=8)
    with pytest.raises(CkptconvError, match="does not belong to these tensors") as error:
        merge(run, tmp_path / "out")
    assert "r = 8" in str(error.value.wanted)


def test_rslora_divides_by_the_root_of_r(made: Made, tmp_path: Path) -> None:
    run = own_copy(made("lora_w4"), tmp_path / "run")
    edit_json(run / META, use_rslora=True)
    merge(run, tmp_path / "out", dtype="keep")
    merged, base = tensors(tmp_path / "out"), tensors(made("lora_w4") / "base")
    peft = bare(tensors(made("lora_w4") / "lora_merged.safetensors"))
    name = "model.layers.1.self_attn.k_proj.weight"
    root, plain, zero = (np.frombuffer(t[name].data, "<f4") for t in (merged, peft, base))
    assert np.allclose(root - zero, 5**0.5 * (plain - zero), atol=1e-4)


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


WHOLE = pytest.mark.xfail(
    strict=True, reason="original_module is in no ledger: modules_to_save cannot be merged"
)


@pytest.mark.parametrize(
    "options",
    [
        {"target_modules": ["q_proj", "down_proj"]},
        {"target_modules": ["embed_tokens", "v_proj"]},
        {"target_modules": ["lm_head", "o_proj"]},
        pytest.param({"target_modules": ["q_proj"], "modules_to_save": ["lm_head"]}, marks=WHOLE),
        pytest.param(
            {"target_modules": ["q_proj"], "modules_to_save": ["embed_tokens", "norm"]}, marks=WHOLE
        ),
    ],
    ids=["some", "embedding", "head", "trained_head", "trained_embedding_and_norm"],
)
def test_every_form_of_lora_merges_as_peft_merges_it(tmp_path: Path, options: dict[str, Any]) -> None:
    run, wanted = peft_run(tmp_path / "run", **options)
    merge(run, tmp_path / "out", dtype="keep")
    assert largest_difference(tensors(tmp_path / "out"), wanted) <= 5e-6


def test_rslora_merges_as_peft_merges_it(tmp_path: Path) -> None:
    run, wanted = peft_run(tmp_path / "run", {"use_rslora": True}, target_modules=["q_proj"], use_rslora=True)
    merge(run, tmp_path / "out", dtype="keep")
    assert largest_difference(tensors(tmp_path / "out"), wanted) <= 5e-6


@pytest.mark.xfail(strict=True, reason="scale() knows neither alpha_pattern nor the alpha of a module")
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


@pytest.mark.xfail(
    strict=True, reason="--lora adapter drops modules_to_save, and its config says that there are none"
)
def test_an_adapter_keeps_the_modules_that_were_trained_whole(tmp_path: Path) -> None:
    run, _ = peft_run(tmp_path / "run", target_modules=["q_proj"], modules_to_save=["lm_head"])
    merge(run, tmp_path / "out", lora="adapter", dtype="keep")
    assert_equal(tensors(tmp_path / "out"), tensors(tmp_path / "pefts"))
    assert json.loads((tmp_path / "out" / "adapter_config.json").read_text())["modules_to_save"] == [
        "lm_head"
    ]


def test_dora_is_refused_not_merged_as_if_it_were_lora(tmp_path: Path) -> None:
    run, _ = peft_run(tmp_path / "run", target_modules=["q_proj"], use_dora=True)
    with pytest.raises(CkptconvError, match="not plain LoRA"):
        merge(run, tmp_path / "out")


def test_biases_that_were_trained_with_lora_are_merged(tmp_path: Path) -> None:
    """PEFT stores them under base_layer; they are the model's own."""
    run, wanted = peft_run(tmp_path / "run", target_modules=["q_proj"], bias="all")
    merge(run, tmp_path / "out", dtype="keep")
    assert largest_difference(tensors(tmp_path / "out"), wanted) <= 5e-6


@pytest.mark.xfail(strict=True, reason="fan-in fan-out weights (GPT-2's Conv1D) want the product transposed")
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
    with pytest.raises(CkptconvError, match="only one half is stored"):
        merge(run, tmp_path / "out", lora_alpha=1)


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
