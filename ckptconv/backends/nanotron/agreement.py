"""Compare model_config.json with the step's tensors, so that a config of another model is found before it decides anything.

A given `--config` replaces what is made from model_config.json, and would hide that the two are of different models. Source:
nanotron/models/{llama,qwen}.py: `attention_bias` counts in Qwen2 alone; a tied head is stored once, as the embedding.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from ckptconv.errors import CkptconvError, Incomplete
from ckptconv.tensors.checkpoint import StoredTensor

_EMBEDDING = "model.token_position_embeddings.pp_block.token_embedding.weight"
_HEAD = "model.lm_head.pp_block.weight"
_BIAS = ".attn.qkv_proj.bias"
_CLASSES = ("is_llama_config", "is_qwen2_config")
_HINT = "copy model_config.json and the files again, both from one step of the run"


def check_config(config: Mapping[str, object], tensors: Mapping[str, StoredTensor], where: Path) -> None:
    """Compare the vocabulary, the tie of embedding and head, and the biases of queries, keys and values.

    Args:
        config: the content of model_config.json.
        tensors: the step's whole tensors, under nanotron's names.
        where: model_config.json, for error messages.

    Raises:
        Incomplete: the head is not tied by the config, and has no file.
        CkptconvError: the config is not of the model whose tensors are stored.
    """
    if not any(config.get(key) for key in _CLASSES):
        return
    _check_vocabulary(config.get("vocab_size"), tensors, where)
    _check_head(config.get("tie_word_embeddings") is True, tensors, where)
    if config.get("is_qwen2_config"):
        _check_bias(config.get("attention_bias") is True, tensors, where)


def _check_vocabulary(size: object, tensors: Mapping[str, StoredTensor], where: Path) -> None:
    for name in (_EMBEDDING, _HEAD):
        rows = tensors[name].view.shape[:1] if name in tensors else (size,)
        if type(size) is int and rows != (size,):
            raise _of_another(f"vocab_size {size}", f"{rows[0]} rows, as in {name}", where)


def _check_head(is_tied: bool, tensors: Mapping[str, StoredTensor], where: Path) -> None:
    if is_tied and _HEAD in tensors and _EMBEDDING in tensors:
        raise _of_another("tie_word_embeddings true", f"false, since {_HEAD} is stored too", where)
    if not is_tied and _HEAD not in tensors and _EMBEDDING in tensors:
        raise Incomplete(
            "the output head has no file, and model_config.json does not tie it to the embedding",
            where=where,
            found="tie_word_embeddings is not true",
            wanted=_HEAD,
            hint="copy the files of model/model/lm_head from the node where the last stage ran, or name its folder with "
            "--also",
        )


def _check_bias(has_bias: bool, tensors: Mapping[str, StoredTensor], where: Path) -> None:
    stored = next((name for name in tensors if name.endswith(_BIAS)), None)
    if stored and not has_bias:
        raise _of_another("attention_bias is not true", f"true, since {stored} is stored", where)
    weight = next((name for name in tensors if name.endswith(_BIAS.replace("bias", "weight"))), None)
    if has_bias and weight and not stored:
        raise _of_another("attention_bias true", f"false, since {weight} has no bias", where)


def _of_another(found: str, wanted: str, where: Path) -> CkptconvError:
    return CkptconvError(
        "model_config.json is not of the model that the step's files hold",
        where=where,
        found=found,
        wanted=wanted,
        hint=_HINT,
    )
