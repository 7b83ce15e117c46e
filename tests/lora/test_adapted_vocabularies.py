"""Adapters that hold whole embeddings, heads or rows of them, trained by PEFT: the merged folder is PEFT's model."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import support.peft_models as models
import torch
from safetensors.torch import load_file, save_file
from support.helpers import edit_json
from transformers import (
    AutoModel,
    AutoModelForCausalLM,
    AutoModelForSequenceClassification,
    AutoModelForTokenClassification,
    Qwen2Model,
)

from ckptconv.commands.merge.run import Merged, merge
from ckptconv.errors import CkptconvError

BOTH = ["lm_head", "embed_tokens"]
Q = {"target_modules": ["q_proj"]}
FORMS: dict[str, dict[str, Any]] = {
    "tokens": {**Q, "trainable_token_indices": [3, 40, 7]},
    "tokens of both": {**Q, "trainable_token_indices": {"embed_tokens": [5, 1], "lm_head": [2]}},
    "new tokens": {**Q, "resized": 3, "trainable_token_indices": [41, 43, 42]},
    "resized": {**Q, "resized": 3},
    "resized and trained": {**Q, "resized": 3, "modules_to_save": BOTH},
    "resized, embedding trained": {**Q, "resized": 3, "modules_to_save": ["embed_tokens"]},
    "LoRA on both": {"target_modules": BOTH},
    "LoRA on the embedding": {"target_modules": ["embed_tokens"]},
    "LoRA on the head": {"target_modules": ["lm_head"]},
    "LoRA on both, resized": {"target_modules": BOTH, "resized": 3},
}
# PEFT writes the magnitudes twice, with and without .weight, where the target is a path.
DORA = {"target_modules": ["q_proj", "model.embed_tokens"], "use_dora": True, "resized": 3}
TIED: dict[str, dict[str, Any]] = {
    "tokens": FORMS["tokens"],
    "new tokens": FORMS["new tokens"],
    "resized": FORMS["resized"],
    "kept tied": {**Q, "modules_to_save": ["embed_tokens"], "ensure_weight_tying": True},
    "kept tied, resized": {
        **Q,
        "resized": 3,
        "modules_to_save": ["embed_tokens"],
        "ensure_weight_tying": True,
    },
}
APART: dict[str, dict[str, Any]] = {
    "both trained": {**Q, "modules_to_save": BOTH},
    "both trained, resized": FORMS["resized and trained"],
    "embedding trained": {**Q, "modules_to_save": ["embed_tokens"]},
    "head trained": {**Q, "modules_to_save": ["lm_head"]},
    "embedding trained, resized": FORMS["resized, embedding trained"],
    "LoRA on both": FORMS["LoRA on both"],
    "LoRA on the embedding, resized": {"target_modules": ["embed_tokens"], "resized": 3},
}


def weights(folder: Path) -> dict[str, torch.Tensor]:
    return load_file(folder / "model.safetensors")


def config(folder: Path) -> dict[str, Any]:
    found: dict[str, Any] = json.loads((folder / "config.json").read_text())
    return found


def logits_of(kind: Any, folder: Path) -> torch.Tensor:
    with torch.no_grad():
        found = kind.from_pretrained(folder)(torch.arange(10)[None])
    logits: torch.Tensor = found.logits if "logits" in found else found.last_hidden_state
    return logits


def merged(trained: models.Trained, out: Path, **options: Any) -> Merged:
    return merge(trained.adapter, out, base=trained.base, **options)


@pytest.mark.parametrize("form", FORMS)
def test_an_untied_vocabulary_is_merged_as_peft_merges_it_bit_for_bit(form: str, tmp_path: Path) -> None:
    trained = models.train(models.qwen2(), tmp_path, **FORMS[form])
    merged(trained, tmp_path / "out")
    found = weights(tmp_path / "out")
    assert found.keys() == trained.merged.keys()
    assert [name for name in found if not torch.equal(found[name], trained.merged[name])] == []
    assert config(tmp_path / "out")["vocab_size"] == 41 + FORMS[form].get("resized", 0)


@pytest.mark.parametrize("form", TIED)
def test_a_tied_pair_that_training_kept_equal_stays_tied(form: str, tmp_path: Path) -> None:
    trained = models.train(models.qwen2(tied=True), tmp_path, **TIED[form])
    merged(trained, tmp_path / "out")
    assert "lm_head.weight" not in weights(tmp_path / "out")
    assert config(tmp_path / "out")["tie_word_embeddings"] is True
    assert config(tmp_path / "out")["vocab_size"] == 41 + TIED[form].get("resized", 0)
    torch.testing.assert_close(
        logits_of(AutoModelForCausalLM, tmp_path / "out"), trained.logits, rtol=1e-4, atol=1e-4
    )


@pytest.mark.parametrize("form", APART)
def test_a_tied_pair_that_training_took_apart_is_written_as_two(form: str, tmp_path: Path) -> None:
    """The logits are those of the model that was trained; PEFT's own merge ties the two again."""
    trained = models.train(models.qwen2(tied=True), tmp_path, **APART[form])
    merged(trained, tmp_path / "out")
    assert config(tmp_path / "out")["tie_word_embeddings"] is False
    torch.testing.assert_close(
        logits_of(AutoModelForCausalLM, tmp_path / "out"), trained.logits, rtol=1e-4, atol=1e-4
    )


@pytest.mark.parametrize("form", ["tokens", "resized and trained", "new tokens", "LoRA on both, resized"])
def test_an_adapter_with_a_vocabulary_is_exported_whole(form: str, tmp_path: Path) -> None:
    trained = models.train(models.qwen2(), tmp_path, **FORMS[form])
    merge(trained.adapter, tmp_path / "again", lora="adapter")
    merged(trained, tmp_path / "one")
    merge(tmp_path / "again", tmp_path / "two", base=trained.base)
    one, two = weights(tmp_path / "one"), weights(tmp_path / "two")
    assert one.keys() == two.keys()
    assert all(torch.equal(one[name], two[name]) for name in one)


def test_the_head_must_be_resized_with_the_embedding(tmp_path: Path) -> None:
    trained = models.train(models.qwen2(), tmp_path, **FORMS["resized"])
    file = trained.adapter / "adapter_model.safetensors"
    save_file({name: t for name, t in load_file(file).items() if "lm_head" not in name}, file)
    with pytest.raises(CkptconvError, match="only one of embedding and head"):
        merged(trained, tmp_path / "out")


def test_the_way_out_of_an_embedding_that_was_resized_alone_works(tmp_path: Path) -> None:
    """PEFT saves the resized copy of the module that is a target, and not that of the other one."""
    torch.manual_seed(1)
    resized = models.qwen2()
    resized.resize_token_embeddings(44)
    trained = models.train(resized, tmp_path, target_modules=["q_proj", "embed_tokens"])
    small = models.qwen2()
    small.save_pretrained(tmp_path / "small")
    with pytest.raises(
        CkptconvError, match=r"lacks the resized weights|only one of embedding and head"
    ) as error:
        merge(trained.adapter, tmp_path / "out", base=tmp_path / "small")
    assert error.value.hint == "name a folder of the model as it was resized: --base DIR"
    merged(trained, tmp_path / "out")
    found = weights(tmp_path / "out")
    assert [name for name in found if not torch.equal(found[name], trained.merged[name])] == []


@pytest.mark.parametrize("tied", [True, False])
def test_lora_on_a_resized_head_whose_rows_were_not_saved_names_the_vocabulary(
    tied: bool, tmp_path: Path
) -> None:
    trained = models.train(
        models.qwen2(tied),
        tmp_path,
        resized=3,
        target_modules=["q_proj", "lm_head"],
        trainable_token_indices=[1],
    )
    file = trained.adapter / "adapter_model.safetensors"
    save_file({name: t for name, t in load_file(file).items() if "base_layer" not in name}, file)
    with pytest.raises(CkptconvError, match="lacks the resized weights") as error:
        merged(trained, tmp_path / "out")
    assert (error.value.where, error.value.found) == ("lm_head.weight", "an update of 44 rows")


def test_magnitudes_that_are_stored_twice_must_be_equal(tmp_path: Path) -> None:
    trained = models.train(models.qwen2(), tmp_path, **DORA)
    merged(trained, tmp_path / "one")
    found = weights(tmp_path / "one")
    for name, tensor in trained.merged.items():
        torch.testing.assert_close(found[name], tensor, rtol=1e-4, atol=1e-5)
    file = trained.adapter / "adapter_model.safetensors"
    stored = load_file(file)
    (twice,) = (name for name in stored if name.endswith("lora_magnitude_vector.weight"))
    stored[twice] = stored[twice] + 1
    save_file(stored, file)
    with pytest.raises(CkptconvError, match="stored twice, with different values"):
        merged(trained, tmp_path / "out")


@pytest.mark.parametrize(
    ("indices", "said"), [([1], "do not fit"), ([1, 2, 41], "names a row that"), (None, "is not known")]
)
def test_tokens_must_be_rows_that_the_config_names(indices: Any, said: str, tmp_path: Path) -> None:
    trained = models.train(models.qwen2(), tmp_path, **FORMS["tokens"])
    edit_json(trained.adapter / "adapter_config.json", trainable_token_indices=indices)
    with pytest.raises(CkptconvError, match=said):
        merged(trained, tmp_path / "out")


def test_what_is_trained_in_float32_gets_the_dtype_of_the_base(tmp_path: Path) -> None:
    trained = models.train(models.qwen2(), tmp_path, **Q, modules_to_save=["lm_head"])
    file = trained.base / "model.safetensors"
    save_file({name: t.bfloat16() for name, t in load_file(file).items()}, file, metadata={"format": "pt"})
    edit_json(trained.base / "config.json", dtype="bfloat16")
    merged(trained, tmp_path / "out")
    assert {tensor.dtype for tensor in weights(tmp_path / "out").values()} == {torch.bfloat16}
    head = load_file(trained.adapter / "adapter_model.safetensors")["base_model.model.lm_head.weight"]
    assert torch.equal(weights(tmp_path / "out")["lm_head.weight"], head.bfloat16())


# --- other heads than the base's


@pytest.mark.parametrize("tied", [False, True])
@pytest.mark.parametrize(
    ("task", "kind"),
    [("SEQ_CLS", AutoModelForSequenceClassification), ("TOKEN_CLS", AutoModelForTokenClassification)],
)
def test_a_classifiers_adapter_makes_a_classifier_of_a_causal_base(
    task: str, kind: Any, tied: bool, tmp_path: Path
) -> None:
    trained = models.train(models.qwen2(tied), tmp_path, kind=kind, task_type=task, **Q)
    done = merged(trained, tmp_path / "out")
    found = weights(tmp_path / "out")
    assert found.keys() == trained.merged.keys()
    assert all(torch.equal(found[name], trained.merged[name]) for name in found)
    assert config(tmp_path / "out")["architectures"] == [
        type(kind.from_pretrained(tmp_path / "out")).__name__
    ]
    assert len(config(tmp_path / "out")["id2label"]) == 3
    assert any("architectures is set to" in note for note in done.plan.notes)


def test_an_embedding_models_adapter_is_merged_into_a_causal_base(tmp_path: Path) -> None:
    trained = models.train(models.qwen2(), tmp_path, kind=AutoModel, task_type="FEATURE_EXTRACTION", **Q)
    merged(trained, tmp_path / "out")
    found = weights(tmp_path / "out")
    wanted = {f"model.{name}": tensor for name, tensor in trained.merged.items()}
    assert found.keys() == {*wanted, "lm_head.weight"}
    assert all(torch.equal(found[name], wanted[name]) for name in wanted)


def test_a_causal_adapter_is_merged_into_a_folder_of_the_bare_model(tmp_path: Path) -> None:
    trained = models.train(models.qwen2(tied=True), tmp_path, **Q)
    bare = {name.removeprefix("model."): t for name, t in weights(trained.base).items()}
    save_file(bare, trained.base / "model.safetensors", metadata={"format": "pt"})
    edit_json(trained.base / "config.json", architectures=[Qwen2Model.__name__])
    merged(trained, tmp_path / "out")
    found = weights(tmp_path / "out")
    assert found.keys() == bare.keys()
    assert all(torch.equal(found[name], trained.merged[f"model.{name}"]) for name in found)
