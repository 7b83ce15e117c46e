"""LoRA and quantised weights, end to end: float8 is dequantised and everything else is refused, never added to codes."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import support.peft_models as models
import torch
from safetensors.torch import load_file, save_file
from support.helpers import assert_equal, cli, edit_json, tensors, unpacked

from ckptconv import CkptconvError, merge

BLOCK = (8, 6)  # no size of the model is a multiple of either
Q = "model.layers.1.self_attn.q_proj.weight"


def quantised(folder: Path, form: str) -> dict[str, torch.Tensor]:
    """Quantise the projections of a model folder; returns the weights that codes and scales stand for.

    form: "blocks" as DeepSeek-V3 has them, "tensor" with one scale each, "int8" as bitsandbytes saves it, "no scales".
    """
    file = folder / "model.safetensors"
    state, meant = {}, {}
    for name, tensor in load_file(file).items():
        state[name] = meant[name] = tensor
        if not name.endswith("_proj.weight"):
            continue
        rows, columns = tensor.shape
        if form == "int8":
            scale = tensor.abs().amax(1)
            state[name] = (tensor / scale[:, None] * 127).round().to(torch.int8)
            state[name.replace(".weight", ".SCB")] = scale
            state[name.replace(".weight", ".weight_format")] = torch.tensor(0, dtype=torch.uint8)
            continue
        high, wide = BLOCK if form == "blocks" else tensor.shape
        scale = torch.rand(-(-rows // high), -(-columns // wide)) + 0.5
        whole = scale.repeat_interleave(high, 0)[:rows].repeat_interleave(wide, 1)[:, :columns]
        state[name] = (tensor / whole).to(torch.float8_e4m3fn)
        meant[name] = state[name].float() * whole
        if form != "no scales":
            state[f"{name}_scale_inv"] = scale if form == "blocks" else scale.reshape(())
    save_file(state, file, metadata={"format": "pt"})
    stated: dict[str, Any] = {"quant_method": "bitsandbytes" if form == "int8" else "fp8"}
    if form == "blocks":
        stated["weight_block_size"] = list(BLOCK)
    edit_json(folder / "config.json", quantization_config=stated)
    return meant


@pytest.mark.parametrize("form", ["blocks", "tensor"])
def test_lora_on_float8_gives_the_sum_of_what_the_codes_stand_for_and_the_update(
    form: str, tmp_path: Path
) -> None:
    trained = models.train(models.qwen2(), tmp_path, target_modules=["q_proj"])
    before = load_file(trained.base / "model.safetensors")
    meant = quantised(trained.base, form)
    done = merge(trained.adapter, tmp_path / "out", base=trained.base, dtype="keep")
    found = load_file(tmp_path / "out" / "model.safetensors")
    assert found.keys() == before.keys()
    for name, tensor in found.items():
        wanted = meant[name] + (trained.merged[name] - before[name])
        torch.testing.assert_close(tensor, wanted.to(tensor.dtype), rtol=1e-5, atol=1e-5)
    assert not torch.equal(found[Q], meant[Q])
    assert "quantization_config" not in json.loads((tmp_path / "out" / "config.json").read_text())
    assert any("float8 weights are dequantised" in note for note in done.plan.notes)
    assert any("quantization_config (fp8) is dropped" in note for note in done.plan.notes)


@pytest.mark.parametrize("form", ["int8", "no scales"])
def test_lora_on_other_codes_is_refused_by_the_module_name(form: str, tmp_path: Path) -> None:
    trained = models.train(models.qwen2(), tmp_path, target_modules=["q_proj"])
    quantised(trained.base, form)
    with pytest.raises(CkptconvError, match=r"codes cannot take an update|its scales are not found") as error:
        merge(trained.adapter, tmp_path / "out", base=trained.base)
    assert "_proj" in error.value.what
    assert not (tmp_path / "out").exists()


def test_lora_on_float8_of_a_method_that_is_not_known_is_refused(tmp_path: Path) -> None:
    trained = models.train(models.qwen2(), tmp_path, target_modules=["q_proj"])
    quantised(trained.base, "tensor")
    edit_json(trained.base / "config.json", quantization_config={"quant_method": "modelopt"})
    with pytest.raises(CkptconvError, match="quantised by modelopt"):
        merge(trained.adapter, tmp_path / "out", base=trained.base)


def test_scales_of_another_block_size_are_refused(tmp_path: Path) -> None:
    trained = models.train(models.qwen2(), tmp_path, target_modules=["q_proj"])
    quantised(trained.base, "blocks")
    stated = {"quant_method": "fp8", "weight_block_size": [4, 6]}
    edit_json(trained.base / "config.json", quantization_config=stated)
    with pytest.raises(CkptconvError, match=r"scales of .* do not fit it"):
        merge(trained.adapter, tmp_path / "out", base=trained.base)


def test_codes_that_no_update_touches_are_copied(tmp_path: Path) -> None:
    trained = models.train(models.qwen2(), tmp_path, target_modules=["embed_tokens"])
    quantised(trained.base, "tensor")
    merge(trained.adapter, tmp_path / "out", base=trained.base)
    found, base = tensors(tmp_path / "out"), tensors(trained.base)
    for each in (found, base):
        del each["model.embed_tokens.weight"]
    assert_equal(found, base)
    assert "quantization_config" in json.loads((tmp_path / "out" / "config.json").read_text())


def test_a_config_that_calls_plain_weights_quantised_loses_that_entry_with_a_note(tmp_path: Path) -> None:
    """The config of a float8 release next to what a Megatron trainer stored in bfloat16."""
    case = unpacked("megatron/qwen2_tp2")
    config = json.loads((case / "hf" / "config.json").read_text())
    config["quantization_config"] = {"quant_method": "fp8", "weight_block_size": [128, 128]}
    (tmp_path / "hf").mkdir()
    (tmp_path / "hf" / "config.json").write_text(json.dumps(config))
    ran = cli("merge", case / "run", tmp_path / "out", "--config", tmp_path / "hf", columns=300)
    assert ran.code == 0, ran.err
    assert "quantization_config (fp8) is dropped from config.json" in ran.flat
    assert "quantization_config" not in json.loads((tmp_path / "out" / "config.json").read_text())
