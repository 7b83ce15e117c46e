"""Compare what a Megatron trainer stated with what it stored: ranks, the width of the MLP, biases, norms, experts, the head.

Where they differ, the settings or the tensors are those of another save or run. What a model of that kind cannot have is not
compared: latent attention has no norms under Megatron's names for queries and keys.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from typing import Any

from ckptconv.errors import CkptconvError
from ckptconv.tensors.checkpoint import Checkpoint, TrainerSettings
from ckptconv.tensors.view import Shape

_RANKS = {
    "tp": "tensor_model_parallel_size",
    "pp": "pipeline_model_parallel_size",
    "ep": "expert_model_parallel_size",
}
_LAYER = r"^(?:.*\blanguage_model\.)?decoder\.layers\.\d+\."
_FC1, _FC2 = (
    re.compile(_LAYER + r"mlp\.linear_fc1\.weight$"),
    re.compile(_LAYER + r"mlp\.linear_fc2\.weight$"),
)
_EXPERT = re.compile(_LAYER + r"mlp\.experts\.(?:(?:local_experts\.)?(\d+)\.|.*\.weight(\d+)$)")
_EXPERT_FC2 = re.compile(_LAYER + r"mlp\.experts\.(?:local_experts\.)?(?:\d+\.)?linear_fc2\.weight\d*$")
_QKV, _HEAD = (
    re.compile(_LAYER + r"self_attention\.linear_qkv\.weight$"),
    re.compile(r"(?:^|\.)output_layer\.weight$"),
)
_EMBEDDING = re.compile(r"(?:^|\.)embedding\.word_embeddings\.weight$")

Values = Mapping[str, Any]
Difference = tuple[str, str]  # (what is stored, what the trainer stated)


def check_stored(checkpoint: Checkpoint) -> None:
    """Raise CkptconvError if the trainer's settings describe other ranks or tensors than are stored.

    Args:
        checkpoint: has the trainer's settings, the mesh, and tensors by canonical name.
    """
    shapes = {name: one.view.shape for name, one in checkpoint.tensors.items()}
    ranks = {
        axis: size for mesh in checkpoint.meshes for axis, size in zip(mesh.names, mesh.shape, strict=True)
    }
    for trainer in checkpoint.trainer:
        for found, stated in (*_ranks(trainer.values, ranks), *_tensors(trainer.values, shapes)):
            raise _refusal(trainer, found, stated)


def _refusal(trainer: TrainerSettings, found: str, stated: str) -> CkptconvError:
    return CkptconvError(
        "the trainer's settings are not those of the stored tensors",
        where=trainer.where,
        found=found,
        wanted=f"{stated}, which the trainer wrote",
        hint="the settings and the weights are of different saves: copy all of one step again",
    )


def _ranks(values: Values, ranks: Mapping[str, int]) -> Iterator[Difference]:
    for axis, name in _RANKS.items():
        stated, found = values.get(name), ranks.get(axis)
        if type(stated) is int and found is not None and stated != found:
            yield f"{found} {axis.upper()} rank{'s' if found > 1 else ''}", f"{name} {stated}"
    world, *sizes = (
        value if type(value := values.get(name)) is int and value > 0 else 0
        for name in ("world_size", _RANKS["tp"], _RANKS["pp"])
    )
    if world and all(sizes) and world % (sizes[0] * sizes[1]):
        yield f"{' × '.join(map(str, sizes))} ranks over TP and PP", f"world_size {world}"


def _tensors(values: Values, shapes: Mapping[str, Shape]) -> Iterator[Difference]:
    widths = {name: shape[1] for name, shape in shapes.items() if _FC2.match(name) and len(shape) == 2}
    if not values.get("heterogeneous_block_specs"):  # such layers have widths of their own (Nemotron-NAS)
        yield from _width("ffn_hidden_size", values, widths)
    yield from _gates(values, shapes, widths)
    widths = {name: shape[1] for name, shape in shapes.items() if _EXPERT_FC2.match(name) and len(shape) == 2}
    yield from _width("moe_ffn_hidden_size", values, widths)
    numbers = {int(one[1] or one[2]) for name in shapes if (one := _EXPERT.match(name))}
    if type(stated := values.get("num_moe_experts")) is int and numbers and stated != len(numbers):
        yield f"{len(numbers)} experts", f"num_moe_experts {stated}"
    yield from _parts(values, shapes)


def _width(setting: str, values: Values, widths: Mapping[str, int]) -> Iterator[Difference]:
    """A model whose layers have different widths states them per layer, so there one number is not compared."""
    stated = values.get(setting)
    if type(stated) is int and stated > 0 and len(set(widths.values())) == 1:
        name, width = next(iter(widths.items()))
        if width != stated:
            yield f"{name} with {width:,} columns", f"{setting} {stated:,}"


def _gates(values: Values, shapes: Mapping[str, Shape], widths: Mapping[str, int]) -> Iterator[Difference]:
    """linear_fc1 has twice as many rows as linear_fc2 has columns if the MLP has a gate, and as many if it has none."""
    stated = True if values.get("swiglu") is True else values.get("gated_linear_unit")
    for name, width in widths.items() if type(stated) is bool else ():
        rows = shapes.get(name.replace("linear_fc2", "linear_fc1"), (0,))[0]
        if rows in (width, 2 * width) and (rows == 2 * width) is not stated:
            gate = "a gate" if rows == 2 * width else "no gate"
            yield f"{gate} in {name.replace('linear_fc2', 'linear_fc1')}", f"gated_linear_unit {stated}"


def _parts(values: Values, shapes: Mapping[str, Shape]) -> Iterator[Difference]:
    """Biases, norms and the head that the settings switch on, where the weights next to them are stored."""
    qkv = any(map(_QKV.match, shapes))
    if values.get("add_qkv_bias") is True and qkv and not _any(shapes, r"linear_qkv\.bias$"):
        yield "no linear_qkv.bias", "add_qkv_bias True"
    if values.get("add_bias_linear") is True and qkv and not _any(shapes, r"linear_proj\.bias$"):
        yield "no linear_proj.bias", "add_bias_linear True"
    if values.get("qk_layernorm") is True and qkv and not _any(shapes, r"[qk]_(layer)?norm\."):
        yield "no q_layernorm", "qk_layernorm True"
    untied = values.get("untie_embeddings_and_output_weights") is True
    untied = untied or values.get("share_embeddings_and_output_weights") is False
    if untied and any(map(_EMBEDDING.search, shapes)) and not any(map(_HEAD.search, shapes)):
        yield "no output_layer.weight", "a head of its own (share_embeddings_and_output_weights False)"
    for name, shape in shapes.items():
        rows = values.get("vocab_size")
        if _EMBEDDING.search(name) and shape and type(rows) is int and rows > shape[0]:
            yield f"{name} with {shape[0]:,} rows", f"vocab_size {rows:,}"


def _any(shapes: Mapping[str, Shape], pattern: str) -> bool:
    return any(map(re.compile(_LAYER + r"self_attention\." + pattern).match, shapes))
