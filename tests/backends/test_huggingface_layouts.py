"""A model folder in, a model folder out: other shards, other dtypes, the module's names, quantized weights."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from make.hf import MOE, model_of, save_bin
from safetensors.torch import save_file
from support.helpers import assert_equal, assert_one_error, cast, cli, edit_json, tensors

from ckptconv import merge

HYBRID = {
    "qwen3_moe": MOE,
    "qwen2": {},
    "mixtral": {"num_experts_per_tok": 2, "num_local_experts": 5},
}


@pytest.fixture(params=sorted(HYBRID))
def folders(request: pytest.FixtureRequest, tmp_path: Path) -> tuple[Path, Path]:
    """One model under the Hub's names, as transformers saves it, and under its module's."""
    model = model_of(request.param, **HYBRID[request.param])
    model.save_pretrained(tmp_path / "hub")
    module = tmp_path / "module"
    model.config.save_pretrained(module)
    state = {name: tensor.contiguous() for name, tensor in model.state_dict().items()}
    save_file(state, module / "model.safetensors", {"format": "pt"})
    return tmp_path / "hub", module


@pytest.mark.parametrize("layout", ["hub", "module"])
def test_either_form_becomes_the_one_that_is_asked_for(
    folders: tuple[Path, Path], tmp_path: Path, layout: str
) -> None:
    wanted = tensors(folders[layout == "module"])
    for source in folders:
        plan = merge(source, tmp_path / f"{source.name}-{layout}", layout=layout).plan
        assert_equal(tensors(tmp_path / f"{source.name}-{layout}"), wanted)
        assert bool(plan.rules) == (tensors(source).keys() != wanted.keys())


def test_a_folder_of_torch_files_under_the_modules_names(tmp_path: Path) -> None:
    """transformers 5's state dict by torch.save is fused; the Hub's form is what transformers saves."""
    model = model_of("qwen3_moe", **MOE)
    model.save_pretrained(tmp_path / "truth")
    ran = cli("merge", save_bin(model, tmp_path / "in", "20KB"), tmp_path / "out")
    assert "the folder has a module's names" in ran.flat
    assert_equal(tensors(tmp_path / "out"), tensors(tmp_path / "truth"))
    assert cli("verify", tmp_path / "out", "--against", tmp_path / "in").code == 0


def test_an_expert_that_is_missing_is_not_fused_around(tmp_path: Path) -> None:
    model = model_of("qwen3_moe", **MOE)
    model.save_pretrained(tmp_path)
    state = {
        name: tensor for name, tensor in torch_tensors(tmp_path).items() if ".0.mlp.experts.3.up" not in name
    }
    save_file(state, tmp_path / "model.safetensors")
    ran = cli("merge", tmp_path, tmp_path.parent / "out", "--layout", "module")
    assert_one_error(ran, "some pieces needed for .*gate_up_proj", names=["5 × ", "4 × "])
    assert not (tmp_path.parent / "out").exists()


def torch_tensors(folder: Path) -> dict[str, torch.Tensor]:
    from safetensors.torch import load_file

    return load_file(folder / "model.safetensors")


def test_other_shards_and_another_dtype(tmp_path: Path) -> None:
    model_of().save_pretrained(tmp_path / "in", max_shard_size="30KB")
    (tmp_path / "in" / "tokenizer.json").write_text("{}")
    (tmp_path / "in" / "modeling_own.py").write_text("raise SystemExit")
    merge(tmp_path / "in", tmp_path / "out", dtype="bfloat16", max_shard_size="10KB")
    assert_equal(tensors(tmp_path / "out"), cast(tensors(tmp_path / "in")))
    index = json.loads((tmp_path / "out" / "model.safetensors.index.json").read_text())
    assert set(index["weight_map"]) == set(tensors(tmp_path / "in"))
    assert index["metadata"]["total_size"] == sum(len(t.data) for t in tensors(tmp_path / "out").values())
    for shard in (tmp_path / "out").glob("*.safetensors"):
        size = int.from_bytes(shard.read_bytes()[:8], "little")
        assert json.loads(shard.read_bytes()[8 : 8 + size])["__metadata__"]["format"] == "pt"
    assert json.loads((tmp_path / "out" / "config.json").read_text())["dtype"] == "bfloat16"
    for name in ("tokenizer.json", "modeling_own.py", "generation_config.json"):
        assert (tmp_path / "out" / name).read_bytes() == (tmp_path / "in" / name).read_bytes()


def quantized(folder: Path, kind: str) -> dict[str, Any]:
    """Block-scaled fp8 as DeepSeek-V3 has it, or packed int4 as compressed-tensors has it, over a real model."""
    model = model_of(dtype="bfloat16")
    model.save_pretrained(folder)
    state: dict[str, torch.Tensor] = {}
    for name, tensor in model.state_dict().items():
        if not name.endswith("_proj.weight"):
            state[name] = tensor
        elif kind == "fp8":
            state[name] = tensor.to(torch.float8_e4m3fn)
            state[f"{name}_scale_inv"] = torch.rand(1, 1)
        else:
            rows, columns = tensor.shape
            state[f"{name}_packed"] = torch.randint(-9, 9, (rows, -(-columns // 8)), dtype=torch.int32)
            state[f"{name}_scale"] = torch.rand(rows, 1).half()
            state[f"{name}_shape"] = torch.tensor([rows, columns])
    save_file(state, folder / "model.safetensors", {"format": "pt"})
    method = {"fp8": "fp8", "int4": "compressed-tensors"}[kind]
    edit_json(folder / "config.json", quantization_config={"quant_method": method})
    return state


@pytest.mark.parametrize("kind", ["fp8", "int4"])
def test_quantized_weights_are_copied_and_never_cast(tmp_path: Path, kind: str) -> None:
    quantized(tmp_path / "in", kind)
    for dtype in ("auto", "keep"):
        merge(tmp_path / "in", tmp_path / dtype, dtype=dtype, max_shard_size="9KB", keep_config=True)
        assert_equal(tensors(tmp_path / dtype), tensors(tmp_path / "in"))
        assert (tmp_path / dtype / "config.json").read_bytes() == (
            tmp_path / "in" / "config.json"
        ).read_bytes()
    ran = cli("merge", tmp_path / "in", tmp_path / "cast", "--dtype", "float16")
    assert_one_error(ran, "quantized weights cannot be cast", names=["--dtype auto"])
