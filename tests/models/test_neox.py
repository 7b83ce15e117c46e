"""GPT-NeoX's names and layouts, as its own converter reads them (tools/ckpts/convert_neox_to_hf.py)."""

from __future__ import annotations

import numpy as np
import pytest

from ckptconv import CkptconvError
from ckptconv.models import neox

HEADS, SIZE, WIDE, VOCAB = 3, 12, 20, 31
CONFIG = {
    "model_type": "llama",
    "num_attention_heads": HEADS,
    "num_key_value_heads": HEADS,
    "hidden_size": SIZE,
    "vocab_size": VOCAB,
}


def values(*shape: int, start: int = 0) -> np.ndarray:  # type: ignore[type-arg]
    return np.arange(start, start + int(np.prod(shape)), dtype=np.float32).reshape(shape)


def block(new: bool) -> dict[str, np.ndarray]:  # type: ignore[type-arg]
    mlp = (
        {
            "mlp.linear1.weight": values(2 * WIDE, SIZE, start=7),
            "mlp.linear2.weight": values(SIZE, WIDE, start=9),
        }
        if new
        else {
            "mlp.w1.weight": values(WIDE, SIZE, start=1),
            "mlp.w3.weight": values(WIDE, SIZE, start=2),
            "mlp.w2.weight": values(SIZE, WIDE, start=3),
        }
    )
    return {
        "input_layernorm.scale": values(SIZE),
        "post_attention_layernorm.scale": values(SIZE, start=5),
        "attention.query_key_value.weight": values(3 * SIZE, SIZE, start=11),
        "attention.dense.weight": values(SIZE, SIZE, start=13),
        "attention.rotary_emb.inv_freq": values(2),
        **mlp,
    }


def model(prefix: str, new: bool) -> dict[str, np.ndarray]:  # type: ignore[type-arg]
    layers = {0: {"word_embeddings.weight": values(VOCAB + 1, SIZE)}, 2: block(new), 3: block(new)}
    layers |= {
        5: {"norm.scale": values(SIZE, start=3)},
        6: {"final_linear.weight": values(VOCAB + 1, SIZE, start=4)},
    }
    return {f"{prefix}{n}.{name}": tensor for n, layer in layers.items() for name, tensor in layer.items()}


def read(prefix: str, new: bool) -> dict[str, np.ndarray]:  # type: ignore[type-arg]
    made = neox.to_hub(model(prefix, new), CONFIG)
    return {name: each.value.reshape(each.shape) for name, each in made.tensors.items()}


@pytest.mark.parametrize("prefix", ["", "sequential."])
def test_llama_in_both_forms_and_spellings(prefix: str) -> None:
    for new in (False, True):
        found, own = read(prefix, new), block(new)
        fused = own["attention.query_key_value.weight"].reshape(HEADS, 3, SIZE // HEADS, SIZE)
        for number, letter in enumerate("qkv"):
            wanted = fused[:, number].reshape(SIZE, SIZE)
            assert np.array_equal(found[f"model.layers.1.self_attn.{letter}_proj.weight"], wanted)
        gate, up = found["model.layers.0.mlp.gate_proj.weight"], found["model.layers.0.mlp.up_proj.weight"]
        if new:  # up comes first
            assert np.array_equal(np.concatenate([up, gate]), own["mlp.linear1.weight"])
        else:
            assert np.array_equal(gate, own["mlp.w1.weight"])
            assert np.array_equal(up, own["mlp.w3.weight"])
        assert not [name for name in found if "inv_freq" in name]


def test_padding_of_the_vocabulary_is_cut_and_reported() -> None:
    made = neox.to_hub(model("", False), CONFIG)
    assert made.tensors["model.embed_tokens.weight"].shape == (VOCAB, SIZE)
    assert [name for name, _, why in made.left_out if why == "vocabulary padding"] == [
        "0.word_embeddings.weight",
        "6.final_linear.weight",
    ]


def test_sources_are_the_stored_names() -> None:
    made = neox.to_hub(model("sequential.", False), CONFIG)
    assert made.tensors["model.layers.1.mlp.up_proj.weight"].sources == ("sequential.3.mlp.w3.weight",)


def test_grouped_queries_come_first_then_keys_then_values() -> None:
    stored = model("", False)
    for layer in (2, 3):  # 3 heads of 4 rows share one key
        stored[f"{layer}.attention.query_key_value.weight"] = values(SIZE + 2 * 4, SIZE, start=17)
    made = neox.to_hub(stored, CONFIG | {"num_key_value_heads": 1}).tensors
    parts = [made[f"model.layers.0.self_attn.{letter}_proj.weight"] for letter in "qkv"]
    assert [part.shape[0] for part in parts] == [12, 4, 4]
    joined = np.concatenate([part.value.reshape(part.shape) for part in parts])
    assert np.array_equal(joined, stored["2.attention.query_key_value.weight"])


def test_the_config_must_have_the_grouped_queries_of_the_tensors() -> None:
    with pytest.raises(CkptconvError, match=r"does not have the layout that config\.json implies"):
        neox.to_hub(model("", False), CONFIG | {"num_key_value_heads": 1})


def test_other_models_are_not_taken_for_gpt_neox() -> None:
    assert neox.are_here(model("", False), CONFIG)
    assert not neox.are_here(model("", False), {"model_type": "bloom"})
    assert not neox.are_here(["layers.0.attention.query_key_value.weight"], CONFIG)
