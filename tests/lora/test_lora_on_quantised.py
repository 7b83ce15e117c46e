"""Adapters onto quantised bases: float8 is dequantised, everything else is refused by name."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import support.peft_models as models
import torch
from safetensors.torch import load_file, save_file
from support.helpers import edit_json
from torch.nn.functional import pad

from ckptconv.commands.merge.run import merge
from ckptconv.errors import CkptconvError

BLOCK = (8, 16)  # divides none of the shapes of the models here
FP8 = {"quant_method": "fp8", "activation_scheme": "dynamic", "weight_block_size": list(BLOCK)}
Tensors = dict[str, torch.Tensor]


def by_block(weight: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Codes, scales, and the values of both, as transformers' Fp8Quantize lays them out."""
    (rows, columns), (high, wide) = weight.shape, BLOCK
    whole = pad(weight, (0, -columns % wide, 0, -rows % high))
    tiles = whole.unflatten(1, (-1, wide)).unflatten(0, (-1, high))  # (block rows, 8, block columns, 16)
    scales = tiles.abs().amax(dim=(1, 3)) / 448
    codes = (tiles / scales[:, None, :, None]).to(torch.float8_e4m3fn)
    values = codes.float() * scales[:, None, :, None]

    def cut(each: torch.Tensor) -> torch.Tensor:
        return each.flatten(2, 3).flatten(0, 1)[:rows, :columns].contiguous()

    return cut(codes.view(torch.uint8)).view(torch.float8_e4m3fn), scales, cut(values)


def per_tensor(weight: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    scale = weight.abs().max() / 448
    codes = (weight / scale).to(torch.float8_e4m3fn)
    return codes, scale, codes.float() * scale


QUANTISERS: dict[str, tuple[Callable[..., Any], str, dict[str, Any]]] = {
    "by block": (by_block, "_scale_inv", FP8),
    "per tensor": (per_tensor, "_scale", {"quant_method": "fp8", "activation_scheme": "dynamic"}),
}


def quantise(base: Path, kind: str) -> Tensors:
    """Replace the linear weights of a saved model by codes and scales; returns the values that the model has now."""
    cut, tail, stated = QUANTISERS[kind]
    file = base / "model.safetensors"
    written: Tensors = {}
    values: Tensors = {}
    for name, tensor in load_file(file).items():
        if name.endswith("proj.weight"):
            written[name], written[name + tail], values[name] = cut(tensor)
        else:
            written[name] = values[name] = tensor
    save_file(written, file, metadata={"format": "pt"})
    edit_json(base / "config.json", quantization_config=stated)
    return values


FORMS: dict[str, dict[str, Any]] = {
    "lora": {"target_modules": ["q_proj", "down_proj"]},
    "rslora": {"target_modules": ["q_proj", "down_proj"], "use_rslora": True},
    "dora": {"target_modules": ["q_proj", "down_proj"], "use_dora": True},
}


def merged_by_peft(model: Any, trained: models.Trained, values: Tensors, folder: Path) -> Tensors:
    """What PEFT makes of the adapter on a model with the dequantised values."""
    model.load_state_dict(values)
    model.save_pretrained(folder)
    return models.loaded(type(model), folder, trained.adapter)


def close(found: Tensors, wanted: Tensors) -> None:
    assert found.keys() == wanted.keys()
    for name, tensor in found.items():
        torch.testing.assert_close(tensor, wanted[name], rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("kind", QUANTISERS)
def test_a_float8_base_is_dequantised_and_merged_as_peft_merges_its_values(
    kind: str, form: str, tmp_path: Path
) -> None:
    trained = models.train(models.qwen2(), tmp_path, **FORMS[form])
    values = quantise(trained.base, kind)
    done = merge(trained.adapter, tmp_path / "out", base=trained.base)
    wanted = merged_by_peft(models.qwen2(), trained, values, tmp_path / "plain")
    close(load_file(tmp_path / "out" / "model.safetensors"), wanted)
    assert "quantization_config" not in json.loads((tmp_path / "out" / "config.json").read_text())
    assert any("float8 weights are dequantised" in note for note in done.plan.notes)
    assert any("quantization_config (fp8) is dropped" in note for note in done.plan.notes)


def test_experts_in_float8_that_lie_apart(tmp_path: Path) -> None:
    """The attention is adapted; the experts' codes become values too, since the config can only state one format."""
    trained = models.train(models.qwen3_moe(), tmp_path, target_modules=["q_proj", "v_proj"])
    values = quantise(trained.base, "by block")
    assert sum(".experts." in name for name in values) == 18
    merge(trained.adapter, tmp_path / "out", base=trained.base)
    found = load_file(tmp_path / "out" / "model.safetensors")
    assert found.keys() == values.keys()
    for name, tensor in found.items():
        if name.endswith(("q_proj.weight", "v_proj.weight")):
            torch.testing.assert_close(tensor, trained_value(trained, values, name), rtol=1e-6, atol=1e-6)
        else:
            torch.testing.assert_close(tensor, values[name], rtol=1e-6, atol=0)


def trained_value(trained: models.Trained, values: Tensors, name: str) -> torch.Tensor:
    stored = load_file(trained.adapter / "adapter_model.safetensors")
    module = "base_model.model." + name.removesuffix(".weight")
    left, right = (stored[f"{module}.lora_{side}.weight"] for side in "BA")
    return values[name] + 6 / 4 * left @ right


@pytest.mark.parametrize("kind", QUANTISERS)
def test_a_float8_model_without_an_update_is_copied_as_it_is(kind: str, tmp_path: Path) -> None:
    trained = models.train(models.qwen2(), tmp_path, target_modules=["q_proj"])
    quantise(trained.base, kind)
    merge(trained.base, tmp_path / "out")
    found, wanted = (load_file(folder / "model.safetensors") for folder in (tmp_path / "out", trained.base))
    assert found.keys() == wanted.keys()
    for name, tensor in found.items():
        assert tensor.dtype == wanted[name].dtype
        assert torch.equal(tensor.float(), wanted[name].float())
    stated = json.loads((tmp_path / "out" / "config.json").read_text())["quantization_config"]
    assert stated == QUANTISERS[kind][2]


def test_scales_of_another_block_size_are_refused(tmp_path: Path) -> None:
    trained = models.train(models.qwen2(), tmp_path, **FORMS["lora"])
    quantise(trained.base, "by block")
    edit_json(trained.base / "config.json", quantization_config={**FP8, "weight_block_size": [16, 16]})
    with pytest.raises(CkptconvError, match=r"scales of .* do not fit it"):
        merge(trained.adapter, tmp_path / "out", base=trained.base)
    assert not (tmp_path / "out").exists()


def int8(name: str, weight: torch.Tensor) -> Tensors:
    """As bitsandbytes' Linear8bitLt saves a weight."""
    scales = weight.abs().amax(dim=1)
    codes = (weight / scales[:, None] * 127).round().to(torch.int8)
    return {name: codes, name.replace("weight", "SCB"): scales}


def nf4(name: str, weight: torch.Tensor) -> Tensors:
    """The names and shapes of bitsandbytes' Params4bit: two codes per byte in one column."""
    packed = torch.zeros(-(-weight.numel() // 2), 1, dtype=torch.uint8)
    state = {f"{name}.absmax": torch.ones(-(-weight.numel() // 64)), f"{name}.quant_map": torch.zeros(16)}
    return {name: packed, **state}


def gptq(name: str, weight: torch.Tensor) -> Tensors:
    module, (out, width) = name.removesuffix("weight"), weight.shape
    codes = torch.zeros(-(-width // 8), out, dtype=torch.int32)
    return {f"{module}qweight": codes, f"{module}scales": torch.ones(1, out, dtype=torch.float16)}


PACKED: dict[str, tuple[Callable[[str, torch.Tensor], Tensors], dict[str, Any]]] = {
    "int8": (int8, {"quant_method": "bitsandbytes", "load_in_8bit": True}),
    "nf4": (nf4, {"quant_method": "bitsandbytes", "load_in_4bit": True, "bnb_4bit_quant_type": "nf4"}),
    "gptq": (gptq, {"quant_method": "gptq", "bits": 4}),
}


@pytest.mark.parametrize("kind", PACKED)
def test_other_quantised_bases_are_refused_by_the_name_of_their_method(kind: str, tmp_path: Path) -> None:
    trained = models.train(models.qwen2(), tmp_path, **FORMS["lora"])
    packed, stated = PACKED[kind]
    file = trained.base / "model.safetensors"
    written: Tensors = {}
    for name, tensor in load_file(file).items():
        written |= packed(name, tensor) if name.endswith("proj.weight") else {name: tensor}
    save_file(written, file, metadata={"format": "pt"})
    edit_json(trained.base / "config.json", quantization_config=stated)
    with pytest.raises(CkptconvError, match=stated["quant_method"]):
        merge(trained.adapter, tmp_path / "out", base=trained.base)
    assert not (tmp_path / "out").exists()
