"""LoRA: what is merged is what PEFT merges, and what is exported is what PEFT loads."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from support.helpers import (
    FIXTURES,
    assert_equal,
    cast,
    largest_difference,
    tensors,
)
from support.lora_tools import CLOSE, bare

from ckptconv.commands.merge.run import merge

Made = Callable[[str], Path]


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
    assert note.startswith("LoRA weights of 14 modules are merged into the weights")


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
