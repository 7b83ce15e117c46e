"""Compares a model's config.json with the tensors, and corrects its dtype, architecture and labels."""

from __future__ import annotations

import copy
import json
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from ckptconv.errors import CkptconvError
from ckptconv.models import facts
from ckptconv.models.nested import parts_of
from ckptconv.tensors.view import Shape

_LAYER = re.compile(r"^((?:.*?\.)?)layers\.(\d+)\.")
# Kyutai's speech models have the rows of all codebooks in one table.
_SHARED_TABLE = "embed_tokens.embed_tokens.weight"
_EXPERT = re.compile(r"\.experts\.(\d+)\.(\w+)\.weight$")
_CLASSIFIER = "score.weight"
_VALUE_HEADS = ("v_head.", "value_head.")


def check_fit(config: Mapping[str, Any], shapes: Mapping[str, Shape], where: Path) -> None:
    """Refuse the config of another model: its vocabulary, width or depth must be those of the tensors.

    Args:
        config: the parsed config.json.
        shapes: Hub name -> shape of every tensor.
        where: the folder of config.json, for the error message.

    Raises:
        CkptconvError: names the first size that differs.
    """
    *_, text = parts_of(dict(config))
    for name, shape in shapes.items():
        if (
            name.endswith(("embed_tokens.weight", "wte.weight"))
            and not name.endswith(_SHARED_TABLE)
            and len(shape) == 2
            and not _other_tower(name)
        ):
            width = "word_embed_proj_dim" if "word_embed_proj_dim" in text else "hidden_size"  # OPT's
            _compare(where, name, "vocab_size", text.get("vocab_size"), shape[0])
            _compare(where, name, width, text.get(width), shape[1])
            break
    if not config.get("quantization_config"):  # packed weights have other shapes
        _check_projections(text, shapes, where)
        _check_experts(config, text, shapes, where)
    stacks: dict[str, int] = {}  # the path of a stack of layers -> their number
    for name in shapes:
        if not _other_tower(name) and not name.startswith("lora_adapter/") and (match := _LAYER.search(name)):
            stacks[match[1]] = max(stacks.get(match[1], 0), int(match[2]) + 1)
    stated = text.get("num_hidden_layers")
    if stacks and isinstance(stated, int):
        mtp = text.get("num_nextn_predict_layers")
        allowed = range(stated, stated + (mtp if isinstance(mtp, int) else 0) + 1)
        if not any(
            count in allowed for count in stacks.values()
        ):  # Parakeet has layers of convolutions besides
            _compare(where, "layers", "num_hidden_layers", stated, max(stacks.values()))


def _check_projections(text: Mapping[str, Any], shapes: Mapping[str, Shape], where: Path) -> None:
    """Compare the attention and the MLP of one layer, if they have the usual names."""
    heads, hidden = text.get("num_attention_heads"), text.get("hidden_size")
    if "vision" in str(
        text.get("model_type")
    ):  # a tower alone: Hunyuan's config has keys that its attention ignores
        return
    if not (isinstance(heads, int) and isinstance(hidden, int) and heads > 0):
        return
    stated = text.get(
        "attention_head_dim", text.get("head_dim")
    )  # Zamba 2's attention is wider than the model
    head_dim = stated if isinstance(stated, int) else hidden // heads
    groups = text.get("num_key_value_heads")
    latent = text.get("kv_lora_rank") is not None  # multi-head latent attention has other head sizes
    expected = {  # name -> (what the config calls it, its size there, the dim of the tensor that has it)
        "self_attn.k_proj.weight": ("num_key_value_heads × head_dim", _times(groups, head_dim), 0),
        "self_attn.o_proj.weight": ("num_attention_heads × head_dim", heads * head_dim, 1),
        "mlp.up_proj.weight": ("intermediate_size", text.get("intermediate_size"), 0),
    }
    seen: set[str] = set()
    for name, shape in shapes.items():
        kind = next((kind for kind in expected if name.endswith(f".{kind}") and kind not in seen), None)
        if kind is None or len(shape) != 2 or _other_tower(name) or ".shared_expert" in name:
            continue
        seen.add(kind)
        key, size, dim = expected[kind]
        plain = not (latent and kind.startswith("self_attn")) and not _per_layer(text)
        if isinstance(size, int) and plain:
            _compare(where, name, key, size, shape[dim])


def _check_experts(
    config: Mapping[str, Any], text: Mapping[str, Any], shapes: Mapping[str, Shape], where: Path
) -> None:
    """Compare the number and the width of experts, if they have the usual names and the config states them."""
    highest, width = -1, None
    for name, shape in shapes.items():
        found = None if _other_tower(name) else _EXPERT.search(name)
        if found is not None:
            highest = max(highest, int(found[1]))
            if width is None and found[2] in ("up_proj", "w3") and len(shape) == 2:
                width = name, shape[0]
    if highest < 0:
        return
    if "expert" not in json.dumps(config, default=str):
        raise CkptconvError(
            "config.json does not match these tensors",
            where=where,
            found=f"{highest + 1} experts a layer",
            wanted=f"a {config.get('model_type')} without experts",
            hint="pass the right model: --config DIR or --config org/name",
        )
    for key in ("num_experts", "n_routed_experts", "num_local_experts"):
        _compare(where, "experts", key, text.get(key), highest + 1)
    if width is not None and not _per_layer(text):
        _compare(where, width[0], "moe_intermediate_size", text.get("moe_intermediate_size"), width[1])


def _times(count: object, size: int) -> int | None:
    return count * size if isinstance(count, int) else None


def _per_layer(text: Mapping[str, Any]) -> bool:
    """True for a model whose layers differ in size, so that one layer is no evidence about the others."""
    return any(
        isinstance(text.get(key), list) for key in ("intermediate_size", "num_key_value_heads")
    ) or any(
        key in text
        for key in (
            "global_head_dim",
            "num_global_key_value_heads",
            "block_configs",
            "intermediate_size_mlp",
            "dense_intermediate_size",
            "per_layer_config",
        )
    )


def corrected(
    config: Mapping[str, Any], shapes: Mapping[str, Shape], dtype: str, notes: list[str]
) -> dict[str, Any]:
    """The config for the model folder, with its dtype, architecture and number of labels.

    Args:
        config: the parsed config.json.
        shapes: Hub name -> shape of every tensor.
        dtype: the dtype in which the weights are written.
        notes: gets a sentence for each change that the user should know.
    """
    new = copy.deepcopy(dict(config))
    _set_dtype(new, dtype)
    _set_architecture(new, shapes, notes)
    return new


def _other_tower(name: str) -> bool:
    """True for a tensor outside the text decoder, whose sizes the text config does not give."""
    return any(part in name for part in ("vision", "visual", "audio", "encoder.", "mtp"))


def _compare(where: Path, tensor: str, key: str, stated: object, found: int) -> None:
    if isinstance(stated, int) and stated != found:
        raise CkptconvError(
            "config.json does not match these tensors",
            where=where,
            found=f"{found:,} by {tensor}",
            wanted=f"{key} {stated:,}",
            hint="pass the right model: --config DIR or --config org/name",
        )


def _set_dtype(config: dict[str, Any], dtype: str) -> None:
    """Replace the old dtype everywhere in the config; a config without a dtype gets one."""
    old = config.get("dtype", config.get("torch_dtype"))
    key = "torch_dtype" if "torch_dtype" in config and "dtype" not in config else "dtype"
    for part in config.values():
        if isinstance(part, dict):
            for name in ("dtype", "torch_dtype"):
                if part.get(name) is not None and part[name] == old:
                    part[name] = dtype
    config[key] = dtype


def _set_architecture(config: dict[str, Any], shapes: Mapping[str, Shape], notes: list[str]) -> None:
    """Set the class that has the stored head, and the default class if the config names none."""
    named = facts.named_architectures(config)
    score = shapes.get(_CLASSIFIER)
    if any(name.startswith(_VALUE_HEADS) for name in shapes):
        notes.append(
            "a value head is kept under its own name (v_head); transformers ignores it, TRL reads it"
        )
    if score is not None and not any("Classification" in name or "Reward" in name for name in named):
        wanted = facts.architecture_for(config, "token") or facts.architecture_for(config, "sequence")
        if wanted:
            notes.append(f"the checkpoint has a value head (score.weight): architectures is set to {wanted}")
            named = [wanted]
        else:
            notes.append(
                f"a value head (score.weight) is stored, but transformers has no class with one for "
                f"{config.get('model_type')!r}: architectures stays as it is"
            )
    if score is not None and len(score) == 2:
        _set_labels(config, score[0], notes)
    if not named:
        default = facts.default_architecture(config)
        if default:
            notes.append(f"config.json names no architecture: set to {default}")
            named = [default]
    if named:
        config["architectures"] = named


def _set_labels(config: dict[str, Any], count: int, notes: list[str]) -> None:
    """Set the number of labels. transformers reads it from id2label, and assumes two labels without it."""
    labels = config.get("id2label")
    if not isinstance(labels, dict) or len(labels) != count:
        if isinstance(labels, dict) and not all(str(name).startswith("LABEL_") for name in labels.values()):
            notes.append(
                f"config.json names {len(labels)} labels, and score.weight has {count} rows: id2label is made anew"
            )
        config["id2label"] = {str(i): f"LABEL_{i}" for i in range(count)}
        config["label2id"] = {f"LABEL_{i}": i for i in range(count)}
    if "num_labels" in config:
        config["num_labels"] = count
