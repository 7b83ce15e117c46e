"""Modules of a Megatron layer that are never stored alone, whatever the family.

Many families have no class in transformers, whose names would tell what is missing; these hold for all of them. Source:
megatron/core/transformer/attention.py, multi_latent_attention.py and mlp.py; models/gpt/gpt_model.py.
"""

from __future__ import annotations

import re
from collections.abc import Iterable

from ckptconv.errors import Incomplete

# The end of a name, and the end of the other one: with the first, the second is stored too.
_TOGETHER = (
    ("self_attention.linear_qkv.weight", "self_attention.linear_proj.weight"),
    ("self_attention.linear_kv_up_proj.weight", "self_attention.linear_proj.weight"),
    ("self_attention.linear_kv_up_proj.weight", "self_attention.linear_kv_down_proj.weight"),
    ("self_attention.linear_kv_down_proj.weight", "self_attention.linear_kv_up_proj.weight"),
    ("self_attention.linear_q_up_proj.weight", "self_attention.linear_q_down_proj.weight"),
    ("self_attention.linear_q_down_proj.weight", "self_attention.linear_q_up_proj.weight"),
    ("mlp.linear_fc1.weight", "mlp.linear_fc2.weight"),
    ("mlp.linear_fc2.weight", "mlp.linear_fc1.weight"),
    ("shared_experts.linear_fc1.weight", "shared_experts.linear_fc2.weight"),
    ("shared_experts.linear_fc2.weight", "shared_experts.linear_fc1.weight"),
)
_OUTPUT = "self_attention.linear_proj.weight"
_QUERY = re.compile(r"^(.*\.)self_attention\.linear_q(?!.*(?:layer_norm_weight|bias)$)")
_EXPERTS, _ROUTER = ".mlp.experts.", ".mlp.router."
_DECODER = re.compile(r"^(?P<model>(?:.*\.)?)decoder\.layers\.")
_EMBEDDING = "embedding.word_embeddings.weight"
_NORMS = ("decoder.final_layernorm.weight", "decoder.final_norm.weight")


def check_pairs(names: Iterable[str]) -> None:
    """Raise Incomplete where a layer has one of two modules that every layer has both of, or the model no embedding.

    Args:
        names: Megatron's canonical names of all weights; a layer is numbered, or all are stacked in one tensor.
    """
    known: set[str] = set()
    experts: dict[str, str] = {}  # the MLP of experts -> one of their names; a model may have 100,000
    for name in names:
        mlp, mark, _ = name.partition(_EXPERTS)
        if mark:
            experts.setdefault(mlp, name)
        else:
            known.add(name)
    queries = {match[1] for name in known if (match := _QUERY.match(name))}
    for name in known:
        for one, other in _TOGETHER:
            if name.endswith(one):
                wanted = name.removesuffix(one) + other
                if wanted not in known and _is_alone(wanted, known):
                    raise _missing(wanted, name)
        if name.endswith(_OUTPUT) and (layer := name.removesuffix(_OUTPUT)) not in queries:
            raise _missing(f"{layer}self_attention.linear_qkv.weight", name)
    routers = {name.partition(_ROUTER)[0] for name in known if _ROUTER in name and not name.endswith("bias")}
    for mlp, name in experts.items():
        if mlp not in routers:
            raise _missing(f"{mlp}{_ROUTER}weight", name)
    for model in sorted({match["model"] for name in known if (match := _DECODER.match(name))}):
        if "vision" in model or "audio" in model:
            continue
        if model + _EMBEDDING not in known:
            raise _missing(model + _EMBEDDING, "decoder layers")
        if not any(model + norm in known for norm in _NORMS):
            raise _missing(model + _NORMS[0], "decoder layers")


def _is_alone(wanted: str, known: set[str]) -> bool:
    """False where the module is stored in parts (`weight_w`), or in another form under its own name."""
    module = wanted.removesuffix("weight")
    return not any(name.startswith(module) and not name.endswith("layer_norm_weight") for name in known)


def _missing(wanted: str, found: str) -> Incomplete:
    return Incomplete(
        "a tensor of the model is missing from the checkpoint",
        found=found,
        wanted=wanted,
        hint="copy all files of one step again",
    )
