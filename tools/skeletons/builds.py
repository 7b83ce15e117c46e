"""Builds of one model class on the meta device: a small one, and one more per key of its config with that key changed."""

from __future__ import annotations

import copy
import inspect
import re
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any

from make_table import _CONFIG_ARGUMENTS

from ckptconv.models.hub_names import to_hub
from ckptconv.models.skeleton import numbers_apart
from skeletons.shown import shown

Path = tuple[str, ...]
_COUNTS = re.compile(r"layer|depth|block|stage|expert", re.I)
_WIDTHS = re.compile(r"size|dim|rank|num|heads|width|expert|layer|channel|hidden|inner|embed|_n\b|^n_")
_FLOATS = re.compile(r"ratio|factor|expand|mult")
_SMALL = 4
_FEW_EXPERTS = 8
_DENSE = re.compile(r"(^|_)dense(_|$)")  # the number of layers before the first one with experts


@dataclass
class Build:
    """One model.

    Args:
        config: Its config as a dict, complete.
        shapes: Shapes by Hub name.
        tied: Hub names that repeat another tensor, for this config.
        changed: The key that differs from the first build.
        stated: Other keys that differ from it, for a config that skeletons.shown declares.
    """

    config: dict[str, Any]
    shapes: dict[str, tuple[int, ...]]
    tied: set[str]
    changed: Path = ()
    stated: frozenset[Path] = frozenset()


@dataclass
class Builder:
    """All builds of one class.

    Args:
        cls: The class.
        config_class: The class of its config, where that is another model type's.
    """

    cls: Any
    config_class: Any = None
    base: dict[str, Any] = field(default_factory=dict)
    builds: list[Build] = field(default_factory=list)
    optional: set[str] = field(default_factory=set)
    parts: dict[str, str] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.config_class = self.config_class or self.cls.config_class

    def run(self, only: Callable[[Path], bool]) -> set[Path]:
        """Build with every key changed in turn for which `only` is true; returns the keys that changed something.

        The same is done on top of each config that skeletons.shown declares.
        """
        self.base = copy.deepcopy(_CONFIG_ARGUMENTS.get(self.config_class.__name__, {}))
        self._shrink(self._config({}))
        effective = self._run(only, frozenset())
        for change in [*self._bases(), *self._towers()]:
            before = copy.deepcopy(self.base)
            _merge(self.base, change)
            effective |= self._run(only, frozenset(_paths(change)))
            self.base = before
        return effective

    def _bases(self) -> list[dict[str, Any]]:
        """The declared changes that concern this class's config."""
        config = self._config({}).to_dict()
        inner = isinstance(config.get("text_config"), dict)
        bases = shown(self.config_class.__module__.split(".")[2]).bases
        text = config["text_config"] if inner else config
        model_type = {"model_type": text["model_type"]} if inner and text.get("model_type") else {}
        return [
            {"text_config": model_type | base} if inner else base
            for base in bases
            if next(iter(base)) in text
        ]

    def _towers(self) -> list[dict[str, Any]]:
        """Changes that add each part of the config that is optional and that the default has not, such as vision_config."""
        config = self._config({})
        found = []
        for key, spec in getattr(self.config_class, "sub_configs_defaults", {}).items():
            if getattr(spec, "optional", False) and getattr(config, key, None) is None:
                kind = getattr(spec, "model_type", None) or getattr(spec.config_class, "model_type", None)
                found.append({key: {"model_type": kind} if kind else {}})
        return found

    def _run(self, only: Callable[[Path], bool], stated: frozenset[Path]) -> set[Path]:
        """The builds on top of one config, which states other values under some keys than the first one."""
        first = self._build({}, (), stated)
        if first is None and stated:
            print(f"{self.cls.__name__}: {sorted(stated)} builds no model", file=sys.stderr, flush=True)
            return set()
        assert first is not None, "the default config builds no model"
        self.builds.append(first)
        effective = set()
        config = self._config({})
        for path, value in [*_leaves(config), *_unstated(self.cls, config)]:
            if not only(path):
                continue
            for candidate in self._candidates(path, value):
                build = self._build(_nested(config, path, candidate), path, stated)
                if build is None:
                    continue
                self.builds.append(build)
                if build.shapes != first.shapes or build.tied != first.tied:
                    effective.add(path)
                if (
                    candidate is not None
                    and not isinstance(value, str | list)
                    and not (value is None and path not in effective)
                ):
                    break
        switches = [(p, v) for p, v in _leaves(config) if p in effective and isinstance(v, bool)]
        together: dict[str, Any] = {}
        for path, _ in switches:
            _merge(together, _nested(config, path, True))
        if len(switches) > 1 and (build := self._build(together, ("*",), stated)):
            self.builds.append(build)
        return effective

    def is_still(self, first: Build) -> bool:
        """Whether a first build, which may be of an older transformers, is what this one builds from its config."""
        self.base = copy.deepcopy(first.config)
        build = self._build({}, ())
        return build is not None and (build.shapes, build.tied, set(build.config)) == (
            first.shapes,
            first.tied,
            set(first.config),
        )

    def _shrink(self, config: Any) -> None:
        """Make layers and experts few, all keys together where that builds, else one by one."""
        wanted = []
        for path, value in _leaves(config):
            if type(value) is int and _COUNTS.search(path[-1]):
                few = 1 if _DENSE.search(path[-1]) else _FEW_EXPERTS if "expert" in path[-1] else _SMALL
                if value > few and "size" not in path[-1] and "dim" not in path[-1]:
                    wanted.append(_nested(config, path, few))
        before = copy.deepcopy(self.base)
        for each in wanted:
            _merge(self.base, each)
        if self._build({}, ()) is not None:
            return
        self.base = before
        for each in wanted:
            before = copy.deepcopy(self.base)
            _merge(self.base, each)
            if self._build({}, ()) is None:
                self.base = before

    def _candidates(self, path: Path, value: Any) -> Iterator[Any]:
        if isinstance(value, bool):
            yield not value
        elif isinstance(value, int):
            if path[-1].endswith("rank"):
                yield None
            if value > 0:
                yield from (2 * value, value + 1, *((value // 2, value - 1) if value > 1 else (0,)))
            elif value == 0:
                yield from (1, 2)
        elif isinstance(value, float) and _FLOATS.search(path[-1]) and value:
            yield from (2 * value, value / 2)
        elif value is None and _WIDTHS.search(path[-1]):
            yield from (8, 2)
        elif value is None and not path[-1].endswith("_id"):
            yield True
        elif isinstance(value, str):
            yield from _alternatives(self.cls, path[-1], value)
        elif isinstance(value, list | tuple) and value:
            kinds = list(dict.fromkeys(map(repr, value)))
            if all(type(v) is int for v in value):
                yield [2 * v for v in value]
                if set(value) <= {0, 1}:
                    yield [1 - v for v in value]
            elif all(isinstance(v, str) for v in value):
                yield list(value)[::-1]
                yield [*value, value[-1]]
                for kind in [*dict.fromkeys(value), *_alternatives(self.cls, path[-1], "")]:
                    yield [kind] * len(value)
                    if len(kinds) == 1:
                        yield [*value[:-1], kind]

    def _config(self, change: dict[str, Any]) -> Any:
        arguments = copy.deepcopy(self.base)
        _merge(arguments, copy.deepcopy(change))
        return self.config_class(**arguments)

    def _build(
        self, change: dict[str, Any], changed: Path, stated: frozenset[Path] = frozenset()
    ) -> Build | None:
        import torch
        from transformers.initialization import no_init_weights

        try:
            config = self._config(change)
            with torch.device("meta"), no_init_weights():
                model = self.cls._from_config(config)
            state = model.state_dict()
            if len(state) > 6000:
                return None
            data = _plain(config.to_dict())
            data["architectures"] = [self.cls.__name__]
            renamed = to_hub(state, data)
        except Exception:  # a config that is no model; each class says so in its own way
            return None
        ties = set(getattr(model, "all_tied_weights_keys", None) or {})
        found = {numbers_apart(name): named for name, named in renamed.tensors.items()}
        tied = {name for name, named in found.items() if ties & set(named.sources)}
        patterns = [
            re.compile(pattern)
            for key in ("_keys_to_ignore_on_load_missing", "_keys_to_ignore_on_save")
            for pattern in getattr(model, key, None) or ()
        ]
        self.optional |= {name for name in found if any(pattern.search(name) for pattern in patterns)}
        return Build(data, {name: tuple(named.shape) for name, named in found.items()}, tied, changed, stated)


def aliases(config: Any, prefix: Path = ()) -> Iterator[tuple[Path, str]]:
    """(path of a key, another name for it) for a config and its parts."""
    for other, name in type(config).attribute_map.items():
        yield (*prefix, name), other
    for name, part in _parts(config):
        yield from aliases(part, (*prefix, name))


def _parts(config: Any) -> Iterator[tuple[str, Any]]:
    from transformers import PreTrainedConfig

    for name, value in vars(config).items():
        if isinstance(value, PreTrainedConfig) and not name.startswith("_"):
            yield name, value


def _generic() -> set[str]:
    from transformers import PreTrainedConfig

    return set(PreTrainedConfig().to_dict()) - {"tie_word_embeddings"}


def _leaves(config: Any, prefix: Path = ()) -> Iterator[tuple[Path, Any]]:
    """Every key of a config and of its parts that may change the model, with its value."""
    generic = _generic()
    parts = dict(_parts(config))
    for name, value in vars(config).items():
        if name.startswith("_") or name in generic or name in parts or isinstance(value, dict):
            continue
        if name.endswith(("token_id", "token_index", "dropout", "eps", "transformers_version", "_std")):
            continue
        yield (*prefix, name), value
    if not prefix:
        yield ("num_labels",), config.num_labels
    for name, part in parts.items():
        yield from _leaves(part, (*prefix, name))


def _unstated(cls: Any, config: Any) -> Iterator[tuple[Path, None]]:
    """Keys that the class asks for with getattr and its config does not have, such as head_dim."""
    source = inspect.getsource(inspect.getmodule(cls))  # type: ignore[arg-type]
    names = dict.fromkeys(re.findall(r"getattr\((?:self\.)?config,\s*\"(\w+)\"", source))
    for prefix, part in (((), config), *(((key,), part) for key, part in _parts(config))):
        if not prefix or type(part).__module__.split(".")[2] == cls.__module__.split(".")[2]:
            yield from (((*prefix, name), None) for name in names if name not in part.to_dict())


def _nested(config: Any, path: Path, value: Any) -> dict[str, Any]:
    """{a: {b: value}}, with the model type of each part on the way."""
    if len(path) == 1:
        return {path[0]: value}
    part = getattr(config, path[0])
    inner = _nested(part, path[1:], value)
    return {path[0]: ({"model_type": part.model_type} if part.model_type else {}) | inner}


def _merge(into: dict[str, Any], change: dict[str, Any]) -> None:
    for key, value in change.items():
        if isinstance(value, dict) and isinstance(into.get(key), dict):
            _merge(into[key], value)
        else:
            into[key] = value


def _paths(change: dict[str, Any], prefix: Path = ()) -> Iterator[Path]:
    for key, value in change.items():
        if isinstance(value, dict):
            yield from _paths(value, (*prefix, key))
        else:
            yield (*prefix, key)


def _plain(value: Any) -> Any:
    if isinstance(value, dict):
        return {str(k): _plain(v) for k, v in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(v) for v in value]
    return value if isinstance(value, bool | int | float | str) or value is None else str(value)


def _alternatives(cls: Any, key: str, value: str) -> list[str]:
    """The texts that the class's source compares a key with."""
    source = inspect.getsource(inspect.getmodule(cls))  # type: ignore[arg-type]
    found: dict[str, None] = {}
    word = key.rstrip("s")
    for line in source.splitlines():
        if word in line and ("==" in line or " in " in line):
            found |= dict.fromkeys(re.findall(r"[\"']([\w-]+)[\"']", line))
    return [text for text in found if text != value and text != key][:5]
