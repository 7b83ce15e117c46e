"""GPT-NeoX's names and layouts -> the Hub's, for the two classes that its own converter knows.

GPT-NeoX numbers the layers of a sequential model: the embedding, a function, the blocks, a function, the norm and the
head. A pipeline saves `LAYER.name`, a model without stages `sequential.LAYER.name`. Facts: EleutherAI/gpt-neox,
tools/ckpts/convert_neox_to_hf.py (its tables "legacy" and "new"); the names were not written by GPT-NeoX here.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from typing import TypeVar

from ckptconv.errors import CkptconvError, Kind
from ckptconv.models import translate
from ckptconv.models.family import QKV, Changed, Config, Family, LeftOut, Rule, Same, Vocab, text_of
from ckptconv.models.hub_names import Named, Renamed
from ckptconv.models.rules import Cut

T = TypeVar("T")
_NAME = re.compile(r"^(?:sequential\.)?(\d+)\.(.+)$", re.DOTALL)
_MARK = "attention.query_key_value.weight"
L, N, M = "layers.{layer}.", "gpt_neox.layers.{layer}.", "model.layers.{layer}."
_ANGLES = LeftOut(L + "attention.rotary_emb.inv_freq", "a table of angles, which the model computes itself")


def _mlp(up: str, down: str) -> tuple[Rule, ...]:
    return (
        Same(f"{L}mlp.{up}.{{what}}", N + "mlp.dense_h_to_4h.{what}"),
        Same(f"{L}mlp.{down}.{{what}}", N + "mlp.dense_4h_to_h.{what}"),
    )


NEOX = Family(
    "GPTNeoXForCausalLM",
    (
        Vocab("word_embeddings.weight", "gpt_neox.embed_in.weight"),
        Same(L + "input_layernorm.{what}", N + "input_layernorm.{what}"),
        Same(L + "post_attention_layernorm.{what}", N + "post_attention_layernorm.{what}"),
        Same(L + "attention.query_key_value.{what}", N + "attention.query_key_value.{what}"),
        Same(L + "attention.dense.{what}", N + "attention.dense.{what}"),
        *_mlp("dense_h_to_4h", "dense_4h_to_h"),
        *_mlp("linear1", "linear2"),
        _ANGLES,
        Same("norm.{what}", "gpt_neox.final_layer_norm.{what}"),
        Vocab("final_linear.weight", "embed_out.weight"),
    ),
)
LLAMA = Family(
    "LlamaForCausalLM",
    (
        Vocab("word_embeddings.weight", "model.embed_tokens.weight"),
        Same(L + "input_layernorm.scale", M + "input_layernorm.weight"),
        Same(L + "post_attention_layernorm.scale", M + "post_attention_layernorm.weight"),
        QKV(L + "attention.query_key_value.{what}", M + "self_attn.{q,k,v}_proj.{what}"),
        Same(L + "attention.dense.{what}", M + "self_attn.o_proj.{what}"),
        Same(L + "mlp.w1.{what}", M + "mlp.gate_proj.{what}"),
        Same(L + "mlp.w3.{what}", M + "mlp.up_proj.{what}"),
        Same(L + "mlp.w2.{what}", M + "mlp.down_proj.{what}"),
        Changed(L + "mlp.linear1.{what}", M + "mlp.{up,gate}_proj.{what}", Cut(0, 2)),
        Same(L + "mlp.linear2.{what}", M + "mlp.down_proj.{what}"),
        _ANGLES,
        Same("norm.scale", "model.norm.weight"),
        Vocab("final_linear.weight", "lm_head.weight"),
    ),
)
FAMILIES = {"gpt_neox": NEOX, "llama": LLAMA, "mistral": LLAMA}


def are_here(names: Iterable[str], config: Config) -> bool:
    """Return True where the names are GPT-NeoX's, and config.json is of a class that it trains."""
    return config.get("model_type") in FAMILIES and any(
        match[2] == _MARK for name in names if (match := _NAME.match(name))
    )


def to_hub(tensors: Mapping[str, T], config: Config) -> Renamed[T]:
    """GPT-NeoX's tensors as the Hub names and lays them out; see `translate.to_hub`."""
    family = FAMILIES[config["model_type"]]
    text = text_of(config)
    heads = text.get("num_attention_heads")
    if family is LLAMA and (text.get("num_key_value_heads") or heads) != heads:
        raise CkptconvError(
            "GPT-NeoX's layout of grouped queries, keys and values is not read",
            found=f"num_key_value_heads {text.get('num_key_value_heads')}",
            wanted=f"as many as num_attention_heads, {heads}",
            kind=Kind.UNSUPPORTED,
        )
    names = canonical(tensors)
    stored = {new: name for name, new in names.items()}
    made = translate.to_hub(
        family, {names[name]: tensor for name, tensor in tensors.items()}, config, "GPT-NeoX"
    )
    renamed = {
        name: Named(each.value, each.shape, tuple(stored[source] for source in each.sources), each.added)
        for name, each in made.tensors.items()
    }
    left = [(stored[name], value, why) for name, value, why in made.left_out]
    return Renamed(renamed, made.rules, left, made.copies, made.notes)


def canonical(names: Iterable[str]) -> dict[str, str]:
    """Return stored name -> `layers.BLOCK.name` for blocks, counted from 0, and the layer's own name for the others.

    Raises:
        CkptconvError: a name does not begin with a layer's number.
    """
    layers: dict[int, dict[str, str]] = {}
    for name in names:
        match = _NAME.match(name)
        if match is None:
            raise CkptconvError(f"{name} is not in a layer of GPT-NeoX", kind=Kind.UNSUPPORTED)
        layers.setdefault(int(match[1]), {})[name] = match[2]
    found: dict[str, str] = {}
    block = 0
    for _, layer in sorted(layers.items()):
        is_block = _MARK in layer.values()
        found |= {name: f"layers.{block}.{rest}" if is_block else rest for name, rest in layer.items()}
        block += is_block
    return found
