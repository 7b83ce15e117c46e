"""Names and layouts as published, whatever made the checkpoint: prefixes of vision towers, turned experts."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from ckptconv.models import published
from ckptconv.models.naming import to_hub
from ckptconv.tensors.view import cat, split, stored

_VISION = {
    "hidden_size": 16, "intermediate_size": 24, "num_hidden_layers": 1, "num_attention_heads": 2, "image_size": 28,
    "patch_size": 14,
}  # fmt: skip
_TEXT = {
    "hidden_size": 32, "intermediate_size": 40, "num_hidden_layers": 2, "num_attention_heads": 4, "num_key_value_heads": 2,
    "head_dim": 8, "vocab_size": 64, "pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2,
}  # fmt: skip


def _model(kind: str) -> Any:
    import torch
    import transformers

    torch.manual_seed(0)
    if kind == "Gemma3":
        config = transformers.Gemma3Config(
            text_config=_TEXT,
            vision_config={**_VISION, "model_type": "siglip_vision_model"},
            mm_tokens_per_image=4,
        )
    elif kind == "Llava":
        config = transformers.LlavaConfig(
            text_config={**_TEXT, "model_type": "llama"},
            vision_config={**_VISION, "model_type": "clip_vision_model", "projection_dim": 16},
        )
    else:
        rope = {"rope_type": "default", "rope_theta": 1e4, "mrope_section": [2, 1, 1]}
        experts = {
            "num_experts": 3,
            "num_experts_per_tok": 2,
            "moe_intermediate_size": 12,
            "rope_parameters": rope,
        }
        vision = {
            **_VISION,
            "depth": 1,
            "num_heads": 2,
            "out_hidden_size": 32,
            "deepstack_visual_indexes": [],
        }
        config = transformers.Qwen3VLMoeConfig(text_config={**_TEXT, **experts}, vision_config=vision)
    return getattr(transformers, f"{kind}ForConditionalGeneration")(config).eval()


def _state(model: Any) -> dict[str, np.ndarray]:
    return {name: tensor.numpy() for name, tensor in model.state_dict().items()}


def _config(model: Any) -> dict[str, Any]:
    return dict(model.config.to_dict(), architectures=[type(model).__name__])


def _arrays(renamed: Any) -> dict[str, np.ndarray]:
    return {name: named.value.reshape(named.shape) for name, named in renamed.tensors.items()}


def _reloaded(model: Any, tensors: dict[str, np.ndarray], folder: Path) -> Any:
    """The model that transformers 5 loads from these tensors."""
    from safetensors.numpy import save_file

    save_file(
        {name: np.ascontiguousarray(value) for name, value in tensors.items()}, folder / "model.safetensors"
    )
    model.config.save_pretrained(folder)
    again, report = type(model).from_pretrained(folder, output_loading_info=True)
    assert not report["missing_keys"] - set(model.all_tied_weights_keys)
    assert not report["unexpected_keys"]
    assert not report["mismatched_keys"]
    return again


@pytest.mark.parametrize("kind", ["Gemma3", "Llava"])
def test_a_vision_tower_gets_the_prefix_that_the_published_files_have(kind: str, tmp_path: Path) -> None:
    model = _model(kind)
    made = _arrays(to_hub("transformers", _state(model), _config(model)))  # type: ignore[arg-type]
    towers = [name for name in made if "vision_tower." in name]
    assert towers
    assert all("vision_tower.vision_model." in name for name in towers)
    made = {
        name: value for name, value in made.items() if not name.endswith("lm_head.weight") or kind == "Llava"
    }
    again = _reloaded(model, made, tmp_path)
    for name, tensor in again.state_dict().items():
        assert np.array_equal(tensor.numpy(), model.state_dict()[name].numpy()), name
    again.save_pretrained(
        tmp_path / "saved"
    )  # transformers writes the same names for a model that it loaded so
    from safetensors import safe_open

    with safe_open(tmp_path / "saved" / "model.safetensors", "np") as reader:
        assert set(reader.keys()) == set(made)


@pytest.mark.parametrize("kind", ["Gemma3", "Llava"])
def test_a_folder_without_the_prefix_gets_it_and_one_with_it_stays(kind: str, tmp_path: Path) -> None:
    model = _model(kind)
    config = _config(model)
    model.save_pretrained(tmp_path)
    from safetensors.numpy import load_file

    saved = load_file(tmp_path / "model.safetensors")
    assert published.lacks_prefix(saved, config)
    first = _arrays(to_hub("hub", saved, config))  # type: ignore[arg-type]
    assert not published.lacks_prefix(first, config)
    assert set(_arrays(to_hub("hub", first, config))) == set(first)  # type: ignore[arg-type]


def test_qwen3_vl_moes_experts_are_written_as_published(tmp_path: Path) -> None:
    """The module of transformers 5 has (E, 2I, H) and (E, H, I); the published files, and transformers 4, (E, H, 2I)."""
    model = _model("Qwen3VLMoe")
    state, config = _state(model), _config(model)
    gate_up, down = (
        f"model.language_model.layers.0.mlp.experts.{name}" for name in ("gate_up_proj", "down_proj")
    )
    assert state[gate_up].shape == (3, 24, 32)
    made = _arrays(to_hub("transformers", state, config))  # type: ignore[arg-type]
    assert (made[gate_up].shape, made[down].shape) == ((3, 32, 24), (3, 12, 32))
    assert np.array_equal(made[gate_up], state[gate_up].transpose(0, 2, 1))
    again = _reloaded(model, made, tmp_path)
    assert np.array_equal(again.state_dict()[gate_up].numpy(), state[gate_up])
    assert np.array_equal(again.state_dict()[down].numpy(), state[down])
    twice = _arrays(to_hub("hub", made, config))  # type: ignore[arg-type]
    assert np.array_equal(twice[gate_up], made[gate_up])


def test_square_experts_are_reported_since_no_shape_tells_how_they_lie() -> None:
    text = {"model_type": "qwen3_vl_moe_text", "hidden_size": 8}
    config = {
        "model_type": "qwen3_vl_moe",
        "architectures": ["Qwen3VLMoeForConditionalGeneration"],
        "text_config": text,
    }
    name = "model.language_model.layers.0.mlp.experts.gate_up_proj"
    found = to_hub("hub", {name: np.zeros((2, 8, 8), np.float32)}, config)  # type: ignore[dict-item]
    (note,) = found.notes
    assert "is square" in note


@pytest.mark.parametrize("dim", [0, 1])
def test_experts_that_veomni_cut_stay_as_it_exports_them(dim: int) -> None:
    """VeOmni's FSDP cuts dim 1 of the experts (tests of real files are in tests/backends/test_fsdp_meshes.py)."""
    model = _model("Qwen3VLMoe")
    views, config = {}, _config(model)
    for name, value in _state(model).items():
        views[name] = view = stored("file", 0, value.shape, "float32")
        if name.endswith(("gate_up_proj", "down_proj")) and view.shape[dim] > 1:
            views[name] = cat(split(view, dim, [1, view.shape[dim] - 1]), dim)
    made = to_hub("transformers", views, config)
    gate_up = made.tensors["model.language_model.layers.0.mlp.experts.gate_up_proj"]
    assert gate_up.shape == ((3, 24, 32) if dim else (3, 32, 24))
    assert [note for note in made.notes if "as VeOmni trains" in note] == made.notes[:dim]


def test_models_whose_own_names_have_the_tower_at_the_top_get_no_second_prefix() -> None:
    names = {"vision_model.encoder.layers.0.mlp.fc1.weight": None}
    config = {"model_type": "siglip", "architectures": ["SiglipModel"]}
    assert published.lacks_prefix(names, config) == []


def test_the_classes_are_those_that_transformers_4_reads_with_the_prefix_only() -> None:
    kinds = (
        "Gemma3",
        "Llava",
        "LlavaNext",
        "LlavaOnevision",
        "VipLlava",
        "PaliGemma",
        "AyaVision",
        "Cohere2Vision",
    )
    kinds += ("Lfm2Vl", "DeepseekVL", "DeepseekVLHybrid", "VideoLlava", "LlavaNextVideo")
    assert {f"{kind}ForConditionalGeneration" for kind in kinds} <= published.classes()
    assert not {"SiglipModel", "CLIPModel", "Qwen2VLForConditionalGeneration"} & published.classes()


def test_esm_and_mlcd_have_the_names_of_the_published_files() -> None:
    """transformers 5 writes ESM's norms as gamma and beta, and MLCD's tower without its prefix."""
    norm = "esm.encoder.layer.0.attention.LayerNorm"
    esm = {"model_type": "esm", "architectures": ["EsmForMaskedLM"]}
    made = to_hub("transformers", {f"{norm}.{end}": np.zeros(2) for end in ("weight", "bias")}, esm)  # type: ignore[dict-item]
    assert set(made.tensors) == {f"{norm}.weight", f"{norm}.bias"}
    mlcd = {"model_type": "mlcd_vision_model", "architectures": ["MLCDVisionModel"]}
    for name in ("class_pos_emb", "vision_model.class_pos_emb"):
        found = to_hub("transformers", {name: np.zeros(2)}, mlcd)  # type: ignore[dict-item]
        assert set(found.tensors) == {"vision_model.class_pos_emb"}
