"""Places LoRA's updates in a plan: at the Hub's weights, at another folder's weights, or only under PEFT's names."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace
from functools import partial
from typing import Any

from ckptconv.errors import CkptconvError, Kind
from ckptconv.models import hub_names, lora
from ckptconv.models.hub_names import Named, Renamed
from ckptconv.models.lora.place import Placed, Placement, Rename, place, place_experts
from ckptconv.models.lora.scaling import is_fan_in_fan_out, rank_of, ways_of_stacks
from ckptconv.models.naming import to_hub
from ckptconv.plan.records import Filled
from ckptconv.tensors.view import View

Config = Mapping[str, Any]
Fits = Callable[[Placed], bool]


def placed_in(
    named: Filled,
    weights: Mapping[str, View],
    parts: lora.Separated,
    naming: str,
    meta: Config,
    config: Config,
) -> Placement:
    """Place every update at the Hub's weight that was made from its trained weight.

    Args:
        named: the model's tensors by final name.
        weights: the weights by trained name.
        parts: the LoRA factors, by trained name.
        naming: whose names the trained ones are; see `Checkpoint.naming`.
        meta: the LoRA settings of the checkpoint.
        config: the model's config.json.

    Raises:
        CkptconvError: an update has no weight.
    """
    unchanged = {
        sources[0]: Named(value, shape, sources)
        for value, shape, sources in named.values()
        if len(sources) == 1 and value is weights.get(sources[0])
    }
    hub_of = {sources[0]: name for name, (_, _, sources) in named.items() if sources[0] in unchanged}

    def rename(tensors: Mapping[str, View]) -> Renamed[View]:
        parts_of = {name: _mamba_parts(name, weights) for name in tensors if name not in weights}
        missing = [name for name, found in parts_of.items() if not found]
        if missing:
            raise CkptconvError(f"LoRA on {missing[0]}, but the model has no weight of that name")
        same = {hub_of[name]: _as_is(view, name) for name, view in tensors.items() if name in unchanged}
        rest = {name: view for name, view in tensors.items() if name not in unchanged}
        if not rest:
            return Renamed(same, [])
        # All the other weights are included, since a weight without LoRA may decide the layout.
        others = {name: view for name, view in weights.items() if name not in set().union(*parts_of.values())}
        made = to_hub(naming, {**others, **rest}, dict(config))
        moved = {name: value for name, value in made.tensors.items() if set(value.sources) & rest.keys()}
        left_out = [item for item in made.left_out if item[0] in rest]
        return Renamed({**same, **moved}, [], left_out)

    return _place(parts, rename, meta, config, _fits_in(named))


def _mamba_parts(name: str, weights: Mapping[str, View]) -> set[str]:
    """Return the names of a Mamba layer's in_proj in parts, if `name` is that of the whole; its adapter is whole."""
    parts = {f"{name}.{part}" for part in ("z", "x", "B", "C", "dt")}
    return parts if parts <= weights.keys() else set()


def placed_on(named: Filled, parts: lora.Separated, naming: str, meta: Config, config: Config) -> Placement:
    """Place every update at a weight of another folder, the base model.

    Args:
        named: the base model's tensors by final name.
        parts: the LoRA factors, by trained name.
        naming: whose names the updates have.
        meta: the LoRA settings of the checkpoint.
        config: the model's config.json.

    Raises:
        CkptconvError: an update has no weight.
    """
    names = _names_for(naming, named, dict(config))
    error: CkptconvError | None = None
    for rename in names:
        try:
            made = _place(parts, rename, meta, config, _fits_in(named))
        except CkptconvError as refused:
            error = error or refused
            continue
        absent = [each.weight for each in made.placed if each.weight not in named]
        if not absent:
            return made
        error = error or CkptconvError(f"LoRA on {absent[0]}, but the model has no weight of that name")
    assert error is not None
    raise error


def placed_alone(parts: lora.Separated, naming: str, meta: Config, config: Config) -> Placement:
    """Place every update under the name that PEFT's model has for its weight; stacks of experts stay as they are stored.

    Args:
        parts: the LoRA factors, by trained name.
        naming: whose names the updates have.
        meta: the LoRA settings of the checkpoint.
        config: the model's config.json.
    """
    if naming == "megatron" and not parts.holds_base and _has_variants(config):
        raise CkptconvError(
            f"adapters alone do not say how Megatron laid out the weights of {config.get('model_type')}",
            hint="merge them with the trainer's own tools",
            kind=Kind.UNSUPPORTED,
        )
    rename = _names_for(naming, {}, dict(config))[0]
    plain = [each for each in parts.factors if not each.parameters]
    return place(plain, rename, partial(is_fan_in_fan_out, meta, config))


def _has_variants(config: Config) -> bool:
    from ckptconv.models.megatron import family_of

    return bool(family_of(config).variants)


def _names_for(naming: str, named: Filled, config: dict[str, Any]) -> list[Rename]:
    """The possible mappings from trained names to names of a model folder, the likeliest first.

    PEFT uses the names of the module that was trained, and transformers 5 may have other names than the folder.

    Args:
        naming: whose names the updates have.
        named: the folder's tensors by final name, which the published names may have changed.
        config: the model's config.json.
    """
    if naming not in ("transformers", "hub"):
        return [lambda tensors: to_hub(naming, tensors, config)]
    final = {fill.trained[0]: name for name, fill in named.items() if len(fill.trained) == 1}
    return [
        lambda tensors: Renamed(
            {final.get(name, name): _as_is(view, name) for name, view in tensors.items()}, []
        ),
        lambda tensors: hub_names.to_hub(tensors, config),
        lambda tensors: hub_names.to_hub(tensors, config, prefix_changes=True),
    ]


def _as_is(view: View, name: str) -> Named[View]:
    return Named(view, view.shape, (name,))


def _fits_in(named: Filled) -> Fits:
    return lambda each: each.weight in named and named[each.weight][1] == each.shape


def _place(parts: lora.Separated, rename: Rename, meta: Config, config: Config, fits: Fits) -> Placement:
    plain = [each for each in parts.factors if not each.parameters]
    found = place(plain, rename, partial(is_fan_in_fan_out, meta, config))
    stacks = tuple(placed for each in parts.stacks for placed in _of_stack(each, rename, meta, config, fits))
    return replace(found, placed=found.placed + stacks)


def _of_stack(
    factors: lora.Factors, rename: Rename, meta: Config, config: Config, fits: Fits
) -> tuple[Placed, ...]:
    """Decide from the shapes which parameter of the experts an update belongs to, since PEFT's names do not tell."""
    possible = []
    for parameter in factors.parameters:
        for turned in ways_of_stacks(meta, config):
            try:
                rank = rank_of(factors, meta, parameter)
                placed = place_experts(factors, parameter, rank, turned, rename)
            except CkptconvError:
                continue
            if placed and all(map(fits, placed)):
                possible.append(placed)
    if len(possible) != 1:
        raise CkptconvError(
            f"cannot tell which stacked parameter of {factors.module} a LoRA pair updates",
            found=f"{factors.a[0]} {list(factors.a[1].shape)}, {factors.b[0]} {list(factors.b[1].shape)}",
            wanted=f"exactly one that fits of {', '.join(factors.parameters)}",
            hint="merge it with PEFT",
            kind=Kind.UNSUPPORTED,
        )
    return possible[0]
