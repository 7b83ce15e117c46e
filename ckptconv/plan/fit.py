"""Whether the planned tensors are the model that config.json describes: names, numbers of layers, shapes. Metadata only."""

from __future__ import annotations

import re
from collections.abc import Collection, Iterable, Mapping
from pathlib import Path
from types import MappingProxyType
from typing import Any

from ckptconv.errors import CkptconvError
from ckptconv.models import deepspeed_moe, facts, hub_names, module_names, mtp, quantised
from ckptconv.models.config import check_fit
from ckptconv.models.nested import other_inside
from ckptconv.models.quantised_names import is_quantisers, other_blocks, plainly
from ckptconv.models.skeleton import Member, Numbers, Skeleton, numbers_apart, skeleton_of
from ckptconv.models.values import Values, differs_by_layer
from ckptconv.plan import mtp_layers
from ckptconv.plan.members import member_of
from ckptconv.plan.misfit import Misfit, refusal, shown
from ckptconv.plan.runnable import require_runnable
from ckptconv.plan.stated import require_consistent
from ckptconv.plan.whole import Whole
from ckptconv.tensors.view import Shape, stored

_EXPERTS = re.compile(r".*\.experts\.")
# Next to the model, for other tools: TRL's value heads, an exported adapter; and buffers that transformers stopped saving.
_BESIDE = re.compile(
    r"^(v_head|value_head)\.|^lora_adapter/|rotary_emb\.inv_freq$|\.attn\.(masked_)?bias$|position_ids$|^score\.weight$"
)


def require_fit(
    config: Mapping[str, Any],
    shapes: Mapping[str, Shape],
    where: Path,
    notes: list[str],
    dtypes: Mapping[str, str] = MappingProxyType({}),
) -> None:
    """Raise CkptconvError if the planned tensors cannot be the model of this config.

    Args:
        config: The config.json that will be written.
        shapes: The planned tensors' shapes, by the name that each is written under.
        where: The checkpoint's folder, for messages.
        notes: Receives what a person must judge.
        dtypes: The planned tensors' dtypes, by the same names; only those of a quantised model matter.
    """
    misfit = examined(config, shapes, where, notes, dtypes)
    if misfit:
        skeleton = skeleton_of(config)
        raise refusal(misfit, skeleton.architecture if skeleton else "the model", where)


def examined(
    config: Mapping[str, Any],
    shapes: Mapping[str, Shape],
    where: Path,
    notes: list[str],
    dtypes: Mapping[str, str] = MappingProxyType({}),
) -> Misfit:
    """How the tensors differ from the class that the config names.

    Args:
        config, shapes, where, notes, dtypes: see `require_fit`.

    Returns:
        The differences; an empty record if there are none, or if the class is not known.

    Raises:
        CkptconvError: config.json contradicts itself, or the sizes of a class that is not known are another model's.
    """
    skeleton = skeleton_of(config)
    if skeleton is None:
        check_fit(config, shapes, where)
        notes.append(unknown_class(config))
        return Misfit()
    misfit = misfit_of(skeleton, config, shapes, dtypes)
    if deepspeed_moe.are_here(shapes):
        misfit.foreign = deepspeed_moe.without(misfit.foreign, shapes)
        misfit.missing = deepspeed_moe.without(misfit.missing, shapes)
        notes.append(
            f"DeepSpeed's own MoE layers keep their names, which {skeleton.architecture} does not have: only the code that "
            "trained the model loads this folder"
        )
    if not misfit:
        require_consistent(skeleton, config, where, notes)
        notes += mtp_layers.not_kept(skeleton, config, shapes)
        notes += mtp_layers.partial(config, shapes)
        if not _has_own_code(config, skeleton.architecture):
            require_runnable(skeleton, config, shapes, where, notes)
        return misfit
    inside, part = other_inside(config), facts.other_part(config)
    if inside or part:
        check_fit(config, shapes, where)
        takes, kind = (
            ("language model", inside) if inside or part is None else (f"model as {part[0]}", part[1])
        )
        notes.append(
            f"names and shapes were not checked: {skeleton.architecture} takes any {takes}, and ckptconv's list of its "
            f"tensors was made with another one than {kind!r}"
        )
        return Misfit()
    if module_names.is_one_way(dict(config)) and _all_layers_foreign(misfit, shapes):
        check_fit(config, shapes, where)
        notes.append(
            f"names and shapes were not checked: the tensors have the published names of {skeleton.architecture}, "
            "and ckptconv has only those of transformers' class"
        )
        return Misfit()
    if _has_own_code(config, skeleton.architecture):
        notes.append(
            f"the tensors are not those of transformers' {skeleton.architecture} (the repository's own code was not run): "
            + shown([*misfit.foreign, *misfit.missing, *(name for name, *_ in misfit.wrong)])
        )
        return Misfit()
    return misfit


def _all_layers_foreign(misfit: Misfit, shapes: Mapping[str, Shape]) -> bool:
    """True if there are layers, and the class has no tensor of any of them."""
    foreign, layers = set(misfit.foreign), [name for name in shapes if "layers." in name]
    return bool(layers) and foreign.issuperset(layers)


def unknown_class(config: Mapping[str, Any]) -> str:
    """What to report where names and shapes cannot be checked."""
    named = facts.named_architectures(config)
    kind = config.get("model_type")
    if not named and not kind:
        return "names and shapes were not checked: config.json names no class"
    what = named[0] if named else f"model type {kind!r}"
    return f"names and shapes were not checked: ckptconv has no list of the tensors of {what}"


def why_unchecked(config: Mapping[str, Any]) -> str:
    """Why `require_fit` cannot judge tensors by this config; "" where it can."""
    skeleton = skeleton_of(config)
    if skeleton is None:
        return unknown_class(config).partition(": ")[2]
    if _has_own_code(config, skeleton.architecture):
        return f"the repository's own code defines {skeleton.architecture}"
    return ""


def misfit_of(
    skeleton: Skeleton,
    config: Mapping[str, Any],
    shapes: Mapping[str, Shape],
    dtypes: Mapping[str, str] = MappingProxyType({}),
) -> Misfit:
    """How the tensors differ from the class, by the Hub's names, its older ones or the module's: whichever fit best.

    A quantised model is compared under the names of the weights that its codes stand for.

    Args:
        skeleton: the class's own names and shapes.
        config: the model's config.json.
        shapes: the name of each tensor -> its shape, in elements.
        dtypes: the name of each tensor -> its dtype; only quantised models need them.
    """
    if not quantised.method_of(config):
        return _best(skeleton, config, shapes, None)
    plain = plainly(shapes, dtypes)
    best = _best(skeleton, config, plain.shapes, plain.sized)
    best.foreign = [name for name in best.foreign if not is_quantisers(name.partition(" ")[0], shapes)]
    _excuse_experts(best, plain.shapes)
    best.missing += plain.missing
    block = (quantised.stated_in(config) or {}).get("weight_block_size")
    best.wrong += [(name, "weight_block_size", *sizes) for name, sizes in other_blocks(shapes, block)]
    return best


def _best(
    skeleton: Skeleton, config: Mapping[str, Any], shapes: Mapping[str, Shape], sized: Collection[str] | None
) -> Misfit:
    best = _nearest(skeleton, config, shapes, sized)
    if best.wrong:
        either = hub_names.taken_either_way([name for name, *_ in best.wrong], dict(config))
        turned = {name: _turned(shapes[name], *dims) for name, dims in either.items() if name in shapes}
        still = _nearest(skeleton, config, {**shapes, **turned}, sized).wrong if turned else []
        left = {name for name, *_ in still}
        best.wrong = [each for each in best.wrong if each[0] not in either or each[0] in left]
    return best


def _nearest(
    skeleton: Skeleton, config: Mapping[str, Any], shapes: Mapping[str, Shape], sized: Collection[str] | None
) -> Misfit:
    """How the tensors differ under the naming that fits best."""
    best = None
    for candidate in _namings(dict(config), shapes):
        found = _compared(skeleton, config, candidate, sized)
        if best is None or found.weight < best.weight:
            best = found
        if not found.weight:
            break
    assert best is not None
    return best


def _turned(shape: Shape, one: int, two: int) -> Shape:
    """A shape with two dims swapped."""
    dims = list(shape)
    dims[one], dims[two] = dims[two], dims[one]
    return tuple(dims)


def _excuse_experts(misfit: Misfit, shapes: Mapping[str, Shape]) -> None:
    """Accept experts that a quantiser stores one by one where the class has them fused, or the reverse.

    They must be all that a layer has of experts, and all layers must hold the same.
    """
    held: dict[str, set[str]] = {}
    foreign = set(misfit.foreign)
    own = {
        found[0]
        for name in shapes
        if name not in foreign and not is_quantisers(name, shapes) and (found := _EXPERTS.match(name))
    }
    for name in misfit.foreign:
        if (found := _EXPERTS.match(name)) and found[0] not in own:
            held.setdefault(found[0], set()).add(name.removeprefix(found[0]))
    if not held:
        return

    def excused(text: str) -> bool:
        found = _EXPERTS.match(text)
        return found is not None and found[0] in held

    everywhere = set().union(*held.values())
    misfit.foreign = [name for name in misfit.foreign if not excused(name)]
    misfit.missing = [text for text in misfit.missing if not excused(text)]
    misfit.wrong = [each for each in misfit.wrong if not excused(f"{each[0]}.")]
    misfit.missing += [
        f"{module}{name}" for module, names in held.items() for name in sorted(everywhere - names)
    ]


def _namings(config: dict[str, Any], shapes: Mapping[str, Shape]) -> Iterable[Mapping[str, Shape]]:
    """The tensors as they are named, and as transformers itself would read those names."""
    yield shapes
    views = {name: stored("", 0, shape, "uint8") for name, shape in shapes.items()}
    for rename in (
        lambda: hub_names.to_hub(views, config),
        lambda: hub_names.to_hub(_values(module_names.to_module(views, config).tensors), config),
    ):
        try:
            yield {name: named.shape for name, named in rename().tensors.items()}
        except CkptconvError:
            continue


def _values(tensors: Mapping[str, Any]) -> dict[str, Any]:
    return {name: stored("", 0, named.shape, "uint8") for name, named in tensors.items()}


def _compared(
    skeleton: Skeleton, config: Mapping[str, Any], shapes: Mapping[str, Shape], sized: Collection[str] | None
) -> Misfit:
    """The tensors against the skeleton, under the names that they have.

    `sized` are those whose shapes are the class's own; None for all.
    """
    found = Misfit()
    values = Values(skeleton, config)
    numbered = re.compile("|".join(mtp.patterns(config)))
    ignored = re.compile("|".join(skeleton.ignored) or "$^")
    present: dict[str, set[Numbers]] = {}
    sizes: dict[str, tuple[int | None, ...]] = {}
    plain = mtp_layers.ordinary(skeleton, [name for name in shapes if numbered.search(name)])
    for name, shape in shapes.items():
        if numbered.search(name) and name not in plain:
            continue
        parted = numbers_apart(name)
        member = member_of(skeleton, parted)
        if member is None:
            if not (_BESIDE.search(name) or ignored.search(name)):
                found.foreign.append(name)
            continue
        pattern = member[0].pattern
        present.setdefault(pattern, set()).add(member[1])
        if sized is not None and name not in sized:
            continue
        wanted = sizes.get(pattern)
        if wanted is None:
            wanted = tuple(values.number(each, member[1]) for each in member[0].dims)
            if not any(map(differs_by_layer, member[0].dims)):
                sizes[pattern] = wanted
        _compare_dims(name, shape, member, wanted, values, found)
    Whole(skeleton, values, present, _may_be_tied(config), found, "score.weight" in shapes).check()
    return found


def _may_be_tied(config: Mapping[str, Any]) -> bool:
    """True where the config or a part of it ties weights."""
    parts = [part for part in config.values() if isinstance(part, dict)]
    return facts.says_tied(dict(config)) or any(_may_be_tied(part) for part in parts)


def _compare_dims(
    name: str,
    shape: Shape,
    member: tuple[Member, Numbers],
    wanted: tuple[int | None, ...],
    values: Values,
    found: Misfit,
) -> None:
    if len(wanted) != len(shape):
        return
    for dim, (size, stated) in enumerate(zip(shape, wanted, strict=True)):
        if stated is None or size == stated:
            continue
        expression = values.chosen(member[0].dims[dim], member[1])
        if not _is_heads(name, size, expression, values):
            found.wrong.append((name, values.text(expression, member[1]), stated, size))
            return


def _is_heads(name: str, size: int, expression: Any, values: Values) -> bool:
    """Whether a dim of an attention module that the skeleton calls hidden_size is num_attention_heads × head_dim.

    The two are equal unless config.json states a head_dim of its own. Composite models build their text model with the
    class that text_config names, so the skeleton of one of them does not show that the class reads head_dim.
    """
    if "att" not in name or len(expression) != 1 or len(expression[0][1]) != 1 or expression[0][2]:
        return False
    factor, ((kind, path),), _ = expression[0]
    if kind != "v" or path[-1] != "hidden_size":
        return False
    heads, dim = (values.of((*path[:-1], key), stated=True) for key in ("num_attention_heads", "head_dim"))
    return type(heads) is int and type(dim) is int and factor * heads * dim == size


def _has_own_code(config: Mapping[str, Any], architecture: str) -> bool:
    code = config.get("auto_map")
    return isinstance(code, dict) and any(
        str(path).rpartition(".")[2] == architecture for path in code.values()
    )
