"""Compare config.json with what the trainer itself wrote about the model.

These are numbers that no tensor's shape can contradict: with another number of heads, another epsilon or another rotary
base, a model has the right shapes and computes something else. The trainer's names are those of
megatron/core/transformer/transformer_config.py and of megatron/training/arguments.py; where the two differ, both are listed.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Mapping
from math import isclose
from typing import Any, NamedTuple

from ckptconv.errors import CkptconvError
from ckptconv.models.family import Config
from ckptconv.models.nested import text_of
from ckptconv.tensors.checkpoint import Checkpoint, TrainerSettings

_EMBEDDING = re.compile(r"(?:^|\.)embedding\.word_embeddings\.weight$")
_DIVISOR = "make_vocab_size_divisible_by"
_USUAL_DIVISOR = 128  # megatron/training/arguments.py, and Megatron-Bridge's GPTModelProvider
_LARGEST = 1e18  # larger numbers are not sizes of a model
_CONFIG_HINT = "pass the trained model: --config DIR, or correct the file that is wrong"

Values = Mapping[str, Any]
Numbers = tuple[tuple[str, float], ...]  # (the key in config.json, its number)


class _Setting(NamedTuple):
    """One setting to compare.

    names: the trainer's names; the first one that is set counts.
    stated: returns what config.json states for it, () if nothing.
    counts: returns whether the trainer's value has a meaning, given all of its values and the config.
    """

    names: tuple[str, ...]
    stated: Callable[[Config], Numbers]
    counts: Callable[[Values, Config], bool] = lambda values, config: True


def agree(checkpoint: Checkpoint, config: Config) -> list[str]:
    """Compare config.json with what the trainer wrote, and the rows of the vocabulary with what padding can explain.

    Args:
        checkpoint: has the trainer's settings, and tensors by canonical name.
        config: the model's config.json.

    Returns:
        Notes for the user: how many rows of the vocabulary are cut off.

    Raises:
        CkptconvError: a contradiction; the error has both values and where each is stated.
    """
    text = text_of(config)
    for trainer in checkpoint.trainer:
        for setting in _SETTINGS:
            _compare(setting, trainer, text)
    return list(_padding(checkpoint, text))


def _compare(setting: _Setting, trainer: TrainerSettings, config: Config) -> None:
    """Raise CkptconvError if the trainer's value of a setting is not among those that the config states."""
    values = trainer.values
    name = next((name for name in setting.names if values.get(name) is not None), None)
    stated = setting.stated(config)
    if name is None or not stated or not setting.counts(values, config):
        return
    several = isinstance(values[name], list | tuple)
    found = [one for one in (values[name] if several else [values[name]]) if _is_number(one)]
    wrong = [one for one in found if not any(_close(one, number) for _, number in stated)]
    if (
        several and not wrong and found
    ):  # one number per kind of layer; the trainer must have all that the config states
        wrong = [one for one in found[:1] if not all(any(_close(one, n) for one in found) for _, n in stated)]
    if wrong:
        raise CkptconvError(
            f"config.json and the trainer's own settings give two values of {stated[0][0]}",
            where=trainer.where,
            found=f"{', '.join(f'{key} {number:g}' for key, number in stated)} in config.json",
            wanted=f"{name} {', '.join(f'{one:g}' for one in found)}, which the trainer wrote",
            hint=_CONFIG_HINT,
        )


def _is_number(value: Any) -> bool:
    return type(value) in (int, float) and abs(value) <= _LARGEST


def _close(one: float, other: float) -> bool:
    return isclose(one, other, rel_tol=1e-6)


def _padding(checkpoint: Checkpoint, config: Config) -> Iterator[str]:
    """Check the rows beyond the config's vocabulary, and yield a note for each embedding that has some."""
    vocabulary = config.get("vocab_size")
    if type(vocabulary) is not int:
        return
    for name, tensor in checkpoint.tensors.items():
        rows = tensor.view.shape[0] if _EMBEDDING.search(name) and tensor.view.shape else 0
        if rows:
            _check_rows(name, rows, vocabulary, checkpoint)
        if rows > vocabulary:
            which = f"rows {vocabulary:,} to {rows - 1:,} of the vocabulary are"
            yield (
                f"{which if rows > vocabulary + 1 else f'row {vocabulary:,} of the vocabulary is'} padding and not written: "
                f"{rows:,} are stored, vocab_size in config.json is {vocabulary:,}"
            )


def _check_rows(name: str, rows: int, vocabulary: int, checkpoint: Checkpoint) -> None:
    """Raise CkptconvError if padding does not explain the rows beyond the vocabulary, or the trainer states other rows.

    Args:
        name: the name of the embedding.
        rows: that are stored.
        vocabulary: rows that the config states.
        checkpoint: has the trainer's settings and the number of tensor-parallel ranks.
    """
    divisor, source = _USUAL_DIVISOR, "Megatron's default"
    for trainer in reversed(checkpoint.trainer):
        stated = trainer.values.get(_DIVISOR)
        if type(stated) is int and stated > 0:
            divisor, source = stated, trainer.where
        padded = trainer.values.get("padded_vocab_size")
        if type(padded) is int and padded > 0 and padded != rows:
            raise CkptconvError(
                "the trainer padded the vocabulary to another number of rows than are stored",
                where=trainer.where,
                found=f"{rows:,} rows in {name}",
                wanted=f"padded_vocab_size {padded:,}",
                hint="the settings and the weights are of different saves: copy all of one step again",
            )
        trained = trainer.values.get("vocab_size")
        if type(trained) is int and vocabulary < trained < rows:
            raise CkptconvError(
                "config.json has a smaller vocabulary than was trained",
                where=trainer.where,
                found=f"vocab_size {vocabulary:,} in config.json",
                wanted=f"vocab_size {trained:,}, which the trainer wrote",
                hint=_CONFIG_HINT,
            )
    most = divisor * _tensor_parallel(checkpoint) - 1
    if rows - vocabulary > most:
        raise CkptconvError(
            "more rows of the vocabulary would be cut off than padding explains",
            where=checkpoint.root,
            found=f"{rows:,} rows in {name}, vocab_size {vocabulary:,} in config.json",
            wanted=f"at most {most:,} rows of padding: {_DIVISOR} {divisor} ({source}) × TP "
            f"{_tensor_parallel(checkpoint)} − 1",
            hint="name the trained model's folder with --config DIR; if the trainer did pad further, write "
            f'{{"{_DIVISOR}": N}} into transformer_config.json in this folder',
        )


def _tensor_parallel(checkpoint: Checkpoint) -> int:
    """Return the number of tensor-parallel ranks by the mesh or by the trainer's settings, whichever is larger."""
    sizes = [
        size
        for mesh in checkpoint.meshes
        for size, name in zip(mesh.shape, mesh.names, strict=True)
        if name == "tp"
    ]
    sizes += [
        size for t in checkpoint.trainer if type(size := t.values.get("tensor_model_parallel_size")) is int
    ]
    return max(sizes, default=1)


def _keys(*keys: str) -> Callable[[Config], Numbers]:
    """Return a function from a config to the numbers under those of the keys that it has."""

    def stated(config: Config) -> Numbers:
        return tuple((key, config[key]) for key in keys if type(config.get(key)) in (int, float))

    return stated


def _groups(config: Config) -> Numbers:
    stated = _keys("num_key_value_heads", "multi_query_group_num", "num_attention_groups")(config)
    return stated or _keys("num_attention_heads")(config)


def _head_dim(config: Config) -> Numbers:
    hidden, heads = config.get("hidden_size"), config.get("num_attention_heads")
    if stated := _keys("head_dim", "kv_channels")(config):
        return stated
    if isinstance(hidden, int) and isinstance(heads, int) and heads > 0:
        return (("hidden_size / num_attention_heads", hidden // heads),)
    return ()


def _rope_theta(config: Config) -> Numbers:
    """Return every rotary base: one per kind of layer (transformers 5), or one per key in older configs."""
    found = list(_keys("rope_theta", "rope_local_base_freq", "global_rope_theta", "local_rope_theta")(config))
    parameters = config.get("rope_parameters")
    if isinstance(parameters, dict):
        for table in (parameters, *parameters.values()):
            if isinstance(table, dict):
                found += _keys("rope_theta")(table)
    return tuple(found)


def _has_heads(values: Values, config: Config) -> bool:
    """Return False for multi-head latent attention, which has other sizes in place of groups and kv_channels."""
    return config.get("kv_lora_rank") is None and not values.get("multi_latent_attention")


def _has_groups(values: Values, config: Config) -> bool:
    return _has_heads(values, config) and values.get("group_query_attention") is not False


def _has_experts(values: Values, config: Config) -> bool:
    return bool(values.get("num_moe_experts") or values.get("num_experts"))


def _rotates(values: Values, config: Config) -> bool:
    return values.get("position_embedding_type", "rope") not in ("none", "learned_absolute", "relative")


def _rotates_in_part(values: Values, config: Config) -> bool:
    """Return False where rotary_percent is 1: mcore-bridge leaves it so and rotates a part (its config/parser.py)."""
    return _rotates(values, config) and values.get("rotary_percent") != 1


_SETTINGS = (
    _Setting(("num_layers",), _keys("num_hidden_layers", "num_layers")),
    _Setting(("hidden_size",), _keys("hidden_size")),
    _Setting(("num_attention_heads",), _keys("num_attention_heads")),
    _Setting(("num_query_groups",), _groups, _has_groups),
    _Setting(("kv_channels",), _head_dim, _has_heads),
    _Setting(
        ("norm_epsilon", "layernorm_epsilon"),
        _keys(
            "rms_norm_eps",
            "layer_norm_eps",
            "layer_norm_epsilon",
            "layernorm_epsilon",
            "norm_epsilon",
            "norm_eps",
        ),
    ),
    _Setting(("rotary_base",), _rope_theta, _rotates),
    _Setting(("rotary_percent",), _keys("partial_rotary_factor"), _rotates_in_part),
    _Setting(
        ("moe_router_topk",),
        _keys("num_experts_per_tok", "experts_per_token", "moe_k", "moe_topk"),
        _has_experts,
    ),
    _Setting(("moe_router_num_groups",), _keys("n_group"), _has_experts),
    _Setting(("moe_router_group_topk",), _keys("topk_group"), _has_experts),
    _Setting(("moe_router_topk_scaling_factor",), _keys("routed_scaling_factor"), _has_experts),
)
