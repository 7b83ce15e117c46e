"""Tied weights of models and of the models inside them, against what transformers itself ties."""

from __future__ import annotations

import json
from typing import Any

import numpy as np
import pytest

from ckptconv.models.naming import to_hub
from ckptconv.models.ties import ties
from ckptconv.plan.records import Fill
from ckptconv.plan.tied import tie
from ckptconv.tensors.view import View, stored

NESTED = [
    "BartForConditionalGeneration", "BartForSequenceClassification", "LEDForConditionalGeneration",
    "M2M100ForConditionalGeneration", "NllbMoeForConditionalGeneration", "PegasusForConditionalGeneration",
    "PegasusXForConditionalGeneration", "T5ForConditionalGeneration", "T5ForSequenceClassification",
    "Florence2ForConditionalGeneration", "T5Gemma2ForConditionalGeneration", "Blip2ForConditionalGeneration",
    "InstructBlipForConditionalGeneration", "IBertForMaskedLM", "BertForMaskedLM", "ShieldGemma2ForImageClassification",
    "LlamaForCausalLM", "Qwen3ForCausalLM", "Gemma3ForConditionalGeneration", "DFineForObjectDetection",
]  # fmt: skip


def _built(name: str) -> tuple[Any, dict[str, Any]]:
    import torch
    import transformers

    cls = getattr(transformers, name)
    with torch.device("meta"):
        model = cls._from_config(cls.config_class())
    return model, json.loads(model.config.to_json_string()) | {"architectures": [name]}


@pytest.mark.parametrize("name", NESTED)
def test_the_ties_are_those_of_transformers(name: str) -> None:
    model, config = _built(name)
    found = {tie.name: tie.repeats for tie in ties(config, model.state_dict())}
    wanted = {one: two.removesuffix("$") for one, two in model.all_tied_weights_keys.items()}
    assert found == {one: two for one, two in wanted.items() if one in model.state_dict()}


def test_a_model_inside_that_unties_its_head_keeps_it() -> None:
    model, config = _built("Blip2ForConditionalGeneration")
    config["text_config"]["tie_word_embeddings"] = False
    assert ties(config, model.state_dict()) == []


def test_if_one_copy_differs_all_are_written_since_the_config_can_only_untie_them_all() -> None:
    config = {
        "model_type": "bart",
        "architectures": ["BartForConditionalGeneration"],
        "tie_word_embeddings": True,
    }
    names = ("model.shared.weight", "model.encoder.embed_tokens.weight", "lm_head.weight")
    views = {name: stored("file", 64 * at, (4, 4), "float32") for at, name in enumerate(names)}
    filled = {name: Fill(view, view.shape, (name,)) for name, view in views.items()}

    def equal(one: View, two: View) -> bool:
        return views["lm_head.weight"] not in (one, two)

    found = tie(filled, config, equal)
    assert set(found.tensors) == set(names)
    assert (found.config or {})["tie_word_embeddings"] is False
    assert "lm_head.weight differs from model.shared.weight" in found.notes[0]
    assert set(tie(filled, config, lambda one, two: True).tensors) == {"model.shared.weight"}


def test_a_language_model_inside_is_untied_in_its_own_config() -> None:
    _, config = _built("Blip2ForConditionalGeneration")
    head = "language_model.lm_head.weight"
    source = "language_model.model.decoder.embed_tokens.weight"
    state = {name: np.zeros(2, np.float32) for name in (head, source)}
    filled = {
        name: Fill(stored("file", 64 * at, (2, 2), "float32"), (2, 2), (name,))
        for at, name in enumerate(state)
    }
    found = tie(filled, config, lambda one, two: False)
    assert found.config is not None
    assert found.config["text_config"]["tie_word_embeddings"] is False
    assert set(to_hub("transformers", state, config).tensors) == {head, source}  # type: ignore[arg-type]
