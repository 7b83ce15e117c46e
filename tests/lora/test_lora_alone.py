"""LoRA alone, with and without its base; and alpha, which is never guessed."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from support.helpers import (
    FIXTURES,
    ROLE,
    assert_equal,
    cli,
    edit_json,
    largest_difference,
    own_copy,
    tensors,
)
from support.lora_tools import CLOSE, META, bare

from ckptconv.commands.merge.run import merge
from ckptconv.errors import CkptconvError

Made = Callable[[str], Path]


# --- LoRA alone


def test_lora_alone_gives_an_adapter_and_says_so(made: Made, tmp_path: Path) -> None:
    done = merge(made("lora_only_w2"), tmp_path / "out")
    assert_equal(tensors(tmp_path / "out"), tensors(made("lora_only_w2") / "adapter"))
    assert any("only LoRA weights" in note and "--base" in note for note in done.plan.notes)


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
    with pytest.raises(CkptconvError, match="holds only LoRA weights") as error:
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
    with pytest.raises(CkptconvError, match="has no LoRA weights"):
        merge(made("fsdp2_w4"), tmp_path / "out", lora=lora)


# --- alpha


@pytest.mark.parametrize("lora", [None, "merge", "adapter", "both"])
def test_without_an_alpha_nothing_is_guessed(made: Made, tmp_path: Path, lora: str | None) -> None:
    with pytest.raises(CkptconvError, match="does not record their alpha") as error:
        merge(made("lora_noalpha_w2"), tmp_path / "out", lora=lora)
    assert "--lora-alpha" in str(error.value.hint)
    assert not list(tmp_path.iterdir())


def test_the_way_out_that_the_error_names_is_one(made: Made, tmp_path: Path) -> None:
    with pytest.raises(CkptconvError, match="does not record their alpha") as error:
        merge(made("lora_noalpha_w2"), tmp_path / "out")
    assert "--lora-alpha N" in str(error.value.hint)
    merge(made("lora_noalpha_w2"), tmp_path / "out", lora_alpha=7)


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
    with pytest.raises(CkptconvError, match="does not record their alpha"):
        merge(run, tmp_path / "out", lora=lora)


@pytest.mark.parametrize("alpha", ["0", "-3", "nan"])
def test_an_alpha_of_zero_on_the_command_line_is_refused(made: Made, tmp_path: Path, alpha: str) -> None:
    ran = cli("merge", made("lora_w4"), tmp_path / "out", "--lora-alpha", alpha)
    assert ran.code == 2
    assert len(ran.errors) == 1
    assert not (tmp_path / "out").exists()


def test_metadata_of_another_rank_is_refused(made: Made, tmp_path: Path) -> None:
    run = own_copy(made("lora_w4"), tmp_path / "run")
    edit_json(run / META, r=8)
    with pytest.raises(CkptconvError, match="does not match these tensors") as error:
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


def test_a_base_that_a_trainer_saved_is_refused_with_what_to_do_first(made: Made, tmp_path: Path) -> None:
    base = made("fsdp2_w4")
    with pytest.raises(CkptconvError, match="the base is not a model but a trainer's checkpoint") as refused:
        merge(made("lora_only_w2"), tmp_path / "out", base=base)
    assert f"ckptconv merge {base} MODEL" in str(refused.value.hint)
