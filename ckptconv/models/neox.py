"""GPT-NeoX's and Megatron-DeepSpeed's names and layouts -> the Hub's, for the classes that their own converters know.

GPT-NeoX numbers the layers of a sequential model: the embedding, a function, the blocks, a function, the norm and the
head. A pipeline saves `LAYER.name`, a model without stages `sequential.LAYER.name`. Facts: EleutherAI/gpt-neox,
tools/ckpts/convert_neox_to_hf.py (its tables "legacy" and "new") and megatron/model/transformer.py (queries, keys and
values of each head together, unless queries are grouped; row-parallel biases under parallel residuals).

Megatron-DeepSpeed numbers a function, the embedding, the blocks, the norm, whose weight has no further name, and the head.
Facts: deepspeedai/Megatron-DeepSpeed, megatron/model/gpt_model.py and tools/hf2megads_weight_converter.py (Llama).
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from dataclasses import replace
from typing import Any, TypeVar

from ckptconv.errors import CkptconvError, Kind
from ckptconv.models import translate
from ckptconv.models.family import (
    QKV,
    Changed,
    Config,
    Family,
    GateUp,
    LeftOut,
    Rule,
    Same,
    Vocab,
    qkv_layout,
    text_of,
)
from ckptconv.models.hub_names import Named, Renamed
from ckptconv.models.pattern import Pattern
from ckptconv.models.rules import Cut, Grouped, Layout
from ckptconv.tensors.view import narrow

T = TypeVar("T")
_NAME = re.compile(r"^(?:sequential\.)?(\d+)\.(.+)$", re.DOTALL)
_MARKS = ("attention.query_key_value.weight", "self_attention.query_key_value.weight")  # of a block
L, N, M = "layers.{layer}.", "gpt_neox.layers.{layer}.", "model.layers.{layer}."
_ANGLES = LeftOut(L + "attention.rotary_emb.inv_freq", "a table of angles, which the model computes itself")


# Each tensor parallel rank adds its own bias to its part of a sum (parallel residuals), so the model's bias is the sum.
_ADDED = re.compile(r"(attention\.dense|mlp\.(dense_4h_to_h|linear2|w2))\.bias$")


def _qkv(config: Config) -> tuple[Layout, ...]:
    """Queries, keys and values of each head together; all queries, all keys, all values if several queries share a key."""
    own = qkv_layout(text_of(config))
    rows = tuple(own.groups * part for part in own.parts)
    return (own,) if len(set(own.parts)) == 1 else (Grouped(1, rows),)


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
        Rule(
            Pattern(L + "attention.query_key_value.{what}"),
            Pattern(M + "self_attn.{q,k,v}_proj.{what}"),
            _qkv,
        ),
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
MEGATRON_LLAMA = Family(
    "LlamaForCausalLM",
    (
        Vocab("word_embeddings.weight", "model.embed_tokens.weight"),
        Same(L + "input_layernorm.weight", M + "input_layernorm.weight"),
        Same(L + "post_attention_layernorm.weight", M + "post_attention_layernorm.weight"),
        QKV(L + "self_attention.query_key_value.weight", M + "self_attn.{q,k,v}_proj.weight"),
        Same(L + "self_attention.dense.weight", M + "self_attn.o_proj.weight"),
        GateUp(L + "mlp.dense_h_to_4h.weight", M + "mlp.{gate,up}_proj.weight"),
        Same(L + "mlp.dense_4h_to_h.weight", M + "mlp.down_proj.weight"),
        Same("weight", "model.norm.weight"),
        Vocab("lm_head.weight", "lm_head.weight"),
    ),
)
# A block's mark -> (the trainer, model type -> family).
TRAINERS = {
    _MARKS[0]: ("GPT-NeoX", {"gpt_neox": NEOX, "llama": LLAMA, "mistral": LLAMA}),
    _MARKS[1]: ("Megatron-DeepSpeed", {"llama": MEGATRON_LLAMA, "mistral": MEGATRON_LLAMA}),
}


def are_here(names: Iterable[str], config: Config) -> bool:
    """Return True where the names are of one of the two trainers, and config.json is of a class that it trains."""
    mark = _mark(names)
    return mark is not None and config.get("model_type") in TRAINERS[mark][1]


def to_hub(tensors: Mapping[str, T], config: Config) -> Renamed[T]:
    """The numbered layers' tensors as the Hub names and lays them out; see `translate.to_hub`."""
    whose, families = TRAINERS[_mark(tensors) or _MARKS[0]]
    family = families[config["model_type"]]
    added = _stacked_biases(tensors, config)
    tensors = {**tensors, **{name: parts[0] for name, parts in added.items()}}
    names = canonical(tensors)
    stored = {new: name for name, new in names.items()}
    made = translate.to_hub(family, {names[name]: tensor for name, tensor in tensors.items()}, config, whose)
    renamed = {
        name: Named(each.value, each.shape, tuple(stored[source] for source in each.sources), each.added)
        for name, each in made.tensors.items()
    }
    for name, each in renamed.items():
        if (parts := added.get(each.sources[0])) is not None:
            renamed[name] = replace(each, shape=tuple(each.shape[1:]), summed=tuple(parts[1:]))
    left = [(stored[name], value, why) for name, value, why in made.left_out]
    return Renamed(renamed, made.rules, left, made.copies, made.notes)


def _mark(names: Iterable[str]) -> str | None:
    return next((m[2] for name in names if (m := _NAME.match(name)) and m[2] in _MARKS), None)


def _stacked_biases(tensors: Mapping[str, T], config: Config) -> dict[str, list[T]]:
    """Return name -> the biases of the tensor parallel ranks, each (1, n), of those that are added up.

    Raises:
        CkptconvError: the blocks' residuals are not parallel. Each rank then adds the same bias to the whole, but
            GPT-NeoX's own converter adds the biases up, so what was trained is not certain.
    """
    found: dict[str, list[T]] = {}
    for name, tensor in tensors.items():
        array: Any = tensor
        if not _ADDED.search(name) or len(array.shape) != 2:
            continue
        if config.get("model_type") != "gpt_neox" or not config.get("use_parallel_residual", True):
            raise CkptconvError(
                "biases after row-parallel weights over tensor parallel ranks are read only with parallel residuals",
                found=f"{name}, use_parallel_residual {config.get('use_parallel_residual')}",
                wanted="use_parallel_residual true in config.json (gpt-j-residual in GPT-NeoX)",
                hint="convert it with GPT-NeoX's tools/ckpts/convert_neox_to_hf.py, and check what it makes of the biases",
                kind=Kind.UNSUPPORTED,
            )
        found[name] = [narrow(tensor, 0, rank, 1) for rank in range(array.shape[0])]
    return found


def canonical(names: Iterable[str]) -> dict[str, str]:
    """Return stored name -> `layers.BLOCK.name` for blocks, counted from 0, and the layer's own name for the others.

    Raises:
        CkptconvError: a name does not begin with a layer's number.
    """
    layers: dict[int, dict[str, str]] = {}
    for name in names:
        match = _NAME.match(name)
        if match is None:
            raise CkptconvError(f"{name} is not in a numbered layer", kind=Kind.UNSUPPORTED)
        layers.setdefault(int(match[1]), {})[name] = match[2]
    found: dict[str, str] = {}
    block = 0
    for _, layer in sorted(layers.items()):
        is_block = not set(_MARKS).isdisjoint(layer.values())
        found |= {name: f"layers.{block}.{rest}" if is_block else rest for name, rest in layer.items()}
        block += is_block
    return found
