"""config.json from what a trainer wrote about the model, for trainers that keep no Hugging Face config.

The same record is compared with a config.json that the user gives: a number that no tensor's shape contradicts, such as an
epsilon, a rotary base or a sliding window, would otherwise give a model that computes something else.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from math import isclose
from pathlib import Path
from typing import Any, NamedTuple

from ckptconv.errors import CkptconvError
from ckptconv.models.naming import NANOTRON
from ckptconv.models.nested import Config, text_of
from ckptconv.tensors.checkpoint import Checkpoint

_KEYS = (
    *(
        "model_type",
        "hidden_size",
        "intermediate_size",
        "num_hidden_layers",
        "num_attention_heads",
        "head_dim",
    ),
    *("num_key_value_heads", "rms_norm_eps", "hidden_act", "sliding_window", "layer_types", "no_rope_layers"),
    *("num_experts", "num_experts_per_tok", "norm_topk_prob"),
)
_KEPT = "huggingface_config"  # a trainer keeps the Hugging Face config itself (backends/composer.py)
_ROPE = ("rope_theta", "rope_type", "factor")


class Made(NamedTuple):
    """A config, and the trainer's file from which it is made."""

    config: dict[str, Any]
    where: str


def made_config(checkpoint: Checkpoint) -> Made | None:
    """Return the config of the model that the trainer describes; None where it does not say enough."""
    for trainer in checkpoint.trainer:
        kept = trainer.values.get(_KEPT)
        if isinstance(kept, dict):
            return Made(dict(kept), trainer.where)
    make = _maker(checkpoint.naming) if checkpoint.trainer else None
    if make is None:
        return None
    for trainer in checkpoint.trainer:
        config = make(trainer.values)
        if config is not None:
            return Made(config, trainer.where)
    return None


def not_enough(checkpoint: Checkpoint) -> str | None:
    """Return the trainer's file that describes the model in settings for which there is no class; None without one."""
    if checkpoint.trainer and checkpoint.naming in NANOTRON:
        return (
            f"{Path(checkpoint.trainer[0].where).name}, whose settings no class of transformers has together"
        )
    return None


def _maker(naming: str) -> Callable[[Mapping[str, Any]], dict[str, Any] | None] | None:
    """The function for the files of a trainer; imported for those who need it."""
    if naming in NANOTRON:
        from ckptconv.models.nanotron import config as nanotron

        return nanotron.hub_config
    if naming == "transformers":
        from ckptconv.models.olmo_core import config as olmo_core

        return olmo_core.hub_config
    return None


def check_agreement(checkpoint: Checkpoint, config: Config) -> None:
    """Compare config.json with the trainer's own description of the model.

    Raises:
        CkptconvError: the two state different values of one setting.
    """
    made = made_config(checkpoint)
    if made is None:
        return
    stated = dict(_settings(config))
    for key, trained in _settings(made.config):
        if key in stated and not _equal(stated[key], trained):
            raise CkptconvError(
                f"config.json and the trainer's own settings give two values of {key}",
                where=made.where,
                found=f"{key} {stated[key]} in config.json",
                wanted=f"{trained}, which the trainer wrote",
                hint="omit --config, pass the trained model's folder, or correct the file that is wrong",
            )


def _settings(config: Config) -> Iterator[tuple[str, Any]]:
    """Yield the settings that decide what the model computes and that the config states."""
    text = text_of(config)
    yield from ((key, text[key]) for key in _KEYS if text.get(key) is not None)
    for kind, rope in _ropes(text).items():
        yield from ((f"{key}{kind}", rope[key]) for key in _ROPE if rope.get(key) is not None)


def _ropes(text: Config) -> dict[str, dict[str, Any]]:
    """The rotary settings, by kind of layers where the config has kinds; only layers with full attention are scaled."""
    parameters = text.get("rope_parameters")
    parameters = parameters if isinstance(parameters, dict) else {}
    kinds = {kind: rope for kind, rope in parameters.items() if isinstance(rope, dict)}
    if kinds:
        return {f" of {kind}": rope for kind, rope in kinds.items()}
    plain = {"rope_type": "default", "rope_theta": parameters.get("rope_theta", text.get("rope_theta"))}
    scaling = text.get("rope_scaling")
    whole = {**plain, **(scaling if isinstance(scaling, dict) else {}), **parameters}
    layers = text.get("layer_types")
    if not isinstance(layers, list) or "sliding_attention" not in layers:
        return {"": whole}
    return {" of full_attention": whole, " of sliding_attention": plain}


def _equal(one: Any, other: Any) -> bool:
    numbers = (int, float)
    if isinstance(one, numbers) and isinstance(other, numbers):
        return isclose(one, other, rel_tol=1e-6)
    return bool(one == other)
