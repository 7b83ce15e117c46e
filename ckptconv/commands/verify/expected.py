"""Asks transformers which tensors it expects in a model folder, by building the class on the meta device.

torch, transformers and accelerate are imported when they are needed. Nothing that a config names is downloaded or run: the
class always comes from transformers itself, even if the config has an `auto_map`.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

from ckptconv.commands.packages import require_packages
from ckptconv.commands.verify.records import Problem
from ckptconv.errors import CkptconvError
from ckptconv.models import facts, mtp, quantised
from ckptconv.models.hub_names import taken_either_way, to_hub
from ckptconv.tensors.view import Shape

# Tensors that are not the class's own and may be stored with it: TRL's value heads (trl/models/modeling_value_head.py), and
# buffers that older versions of transformers saved.
_BESIDE = ("v_head.", "value_head.")
# Numbers of modules that a class makes in a loop.
_LAYERS = re.compile(
    r"^(?:n|num)_\w*(?:layers?|blocks)$|^(?:n_layer|depth|num_hidden_groups|num_nextn_predict_layers)$"
)
_EXPERTS = re.compile(r"^(?:n|num)_\w*experts$")
_FEW, _MOST_EXPERTS = 256, 4096
_OLD_BUFFERS = re.compile(r"rotary_emb\.inv_freq$|\.attn\.(masked_)?bias$")


@dataclass(frozen=True, slots=True)
class Expected:
    """A class, and the tensors of its state dict.

    Args:
        architecture: the name of the class.
        shapes: tensor name -> shape.
        tied: tied name -> the name that it repeats.
        names: whose names these are: "Hub" or "module".
        ignored: patterns of names that the class does not mind.
        either_way: tensor -> two dims that may also be stored swapped (Qwen3-VL-MoE's experts, as published).
    """

    architecture: str
    shapes: dict[str, Shape]
    tied: dict[str, str]
    names: str
    ignored: tuple[str, ...]
    either_way: dict[str, tuple[int, int]]

    def has_shape(self, name: str, shape: Shape) -> bool:
        """True if the class can load the tensor `name` from this shape."""
        wanted = list(self.shapes[name])
        if name in self.either_way and list(shape) != wanted:
            one, two = self.either_way[name]
            wanted[one], wanted[two] = wanted[two], wanted[one]
        return list(shape) == wanted


@dataclass(frozen=True, slots=True)
class NotChecked:
    """The reason why the tensors cannot be known although nothing is wrong."""

    why: str


def expect(config: Mapping[str, Any], present: Iterable[str]) -> Expected | NotChecked | Problem:
    """Find out which tensors the model that a config describes has.

    Args:
        config: the parsed config.json.
        present: the names of the stored tensors.

    Returns:
        The tensors, under those of the possible names that fit `present` best; a NotChecked if transformers cannot tell; a
        Problem if the config is wrong.
    """
    method, present = quantised.method_of(config), list(present)
    if method and not quantised.any_quantised((name, "") for name in present):
        return Problem(
            "config.json",
            f"has a quantization_config ({method}), and no scales of quantised weights are stored",
        )
    if method:
        return NotChecked("the model is quantised, and its tensors are the quantiser's")
    require_packages("verify without --against", "torch", "transformers", "accelerate")
    found = class_of(config)
    if not isinstance(found, str):
        return found
    if (absurd := _absurd(config, len(present))) is not None:
        return absurd
    try:
        model = _on_meta(found, _without_code(config))
    except ImportError as error:
        return NotChecked(f"a library that the model needs is not installed: {first_line(error)}")
    except Exception as error:  # a config can be wrong in many ways, and each class raises its own errors
        return Problem("config.json", f"transformers cannot build {found} from it: {first_line(error)}")
    return _best_names(found, model, dict(config), set(present))


def is_beside(name: str, expected: Expected) -> bool:
    """True for a tensor that the class does not have, and ignores without a warning."""
    if name.startswith(_BESIDE) or _OLD_BUFFERS.search(name):
        return True
    return any(re.search(pattern, name) for pattern in expected.ignored)


def class_of(config: Mapping[str, Any]) -> str | NotChecked | Problem:
    """The name of transformers' class for a config; never a class that the folder brings."""
    import transformers

    named = [name for name in config.get("architectures") or () if isinstance(name, str)]
    architecture = named[0] if named else facts.default_architecture(dict(config))
    known = config.get("model_type") in transformers.CONFIG_MAPPING
    if architecture is not None and known and _is_model(architecture):
        return architecture
    if config.get("auto_map"):
        return NotChecked("the model brings its own code, which is not run")
    if not known:
        problem = f"transformers {transformers.__version__} does not know the model type {config.get('model_type')!r}"
        exists = architecture is not None and _is_model(architecture)
        return Problem("config.json", problem) if exists else NotChecked(problem)
    if architecture is None:
        return Problem(
            "config.json", "names no architecture", hint="set architectures, so that it can be loaded"
        )
    return Problem(
        "config.json", f"transformers has no class {architecture}", hint="set architectures to one it has"
    )


def _is_model(name: str) -> bool:
    """True for a model class of transformers: a config may name any of its attributes, a pipeline or a trainer too."""
    import transformers

    found = getattr(transformers, name, None) if name.isidentifier() else None
    return isinstance(found, type) and issubclass(found, transformers.PreTrainedModel)


def _absurd(config: Mapping[str, Any], tensors: int) -> Problem | None:
    """A number in a config that would build modules for hours: more layers than tensors, or experts without end."""
    for key, value in _numbers(config):
        most = max(tensors, _FEW) if _LAYERS.search(key) else _MOST_EXPERTS if _EXPERTS.search(key) else None
        if most is not None and value > most:
            return Problem("config.json", f"{key} is {value:,}, and the folder has {tensors:,} tensors")
    return None


def _numbers(config: Mapping[str, Any], depth: int = 3) -> Iterator[tuple[str, int]]:
    for key, value in config.items():
        if isinstance(value, int):
            yield str(key), value
        elif isinstance(value, dict) and depth:
            yield from _numbers(value, depth - 1)


def _on_meta(architecture: str, config: dict[str, Any]) -> Any:
    """The model on the meta device. Its buffers are there too, unless the class computes with their values."""
    import transformers
    from accelerate import init_empty_weights

    with quiet(transformers):
        made = transformers.CONFIG_MAPPING[config["model_type"]].from_dict(config)
        try:
            with init_empty_weights(include_buffers=True):
                return getattr(transformers, architecture)(made)
        except (RuntimeError, NotImplementedError):
            with init_empty_weights(include_buffers=False):
                return getattr(transformers, architecture)(made)


@contextmanager
def quiet(transformers: Any) -> Iterator[None]:
    """Switch off transformers' warnings and progress bars."""
    logging = transformers.logging
    before, bars = logging.get_verbosity(), logging.is_progress_bar_enabled()
    logging.set_verbosity_error()
    logging.disable_progress_bar()
    try:
        yield
    finally:
        logging.set_verbosity(before)
        if bars:
            logging.enable_progress_bar()


def _best_names(architecture: str, model: Any, config: dict[str, Any], present: set[str]) -> Expected:
    """Choose the Hub's names, the Hub's names with old prefixes, or the module's: those that match `present` best."""
    state = model.state_dict()
    ties = dict(getattr(model, "all_tied_weights_keys", None) or {})
    choices: list[tuple[str, dict[str, Shape], dict[str, str]]] = []
    for prefixes in (False, True):
        try:
            renamed = to_hub(state, config, prefix_changes=prefixes)
        except CkptconvError:
            continue
        choices.append(
            ("Hub", {n: tuple(t.shape) for n, t in renamed.tensors.items()}, _renamed_ties(renamed, ties))
        )
    choices.append(("module", {name: tuple(tensor.shape) for name, tensor in state.items()}, ties))
    names, shapes, tied = min(choices, key=lambda choice: len(choice[1].keys() ^ present))
    return Expected(
        architecture,
        shapes,
        tied,
        names,
        (*(getattr(model, "_keys_to_ignore_on_load_unexpected", None) or ()), *mtp.patterns(config)),
        taken_either_way(shapes, config) if names == "Hub" else {},
    )


def _renamed_ties(renamed: Any, ties: dict[str, str]) -> dict[str, str]:
    """The ties between module names as ties between Hub names."""
    by_source = {named.sources[0]: name for name, named in renamed.tensors.items() if len(named.sources) == 1}
    return {by_source.get(a, a): by_source.get(b, b) for a, b in ties.items()}


def _without_code(config: Mapping[str, Any]) -> dict[str, Any]:
    """The config, and every config in it, without auto_map."""
    return {
        key: _without_code(value) if isinstance(value, dict) else value
        for key, value in config.items()
        if key != "auto_map"
    }


def first_line(error: Exception) -> str:
    """The message of an exception, on one line."""
    return (str(error).strip().splitlines() or [type(error).__name__])[0][:200]
