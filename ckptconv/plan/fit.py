"""Whether the planned tensors are the model that config.json describes: names, numbers of layers, shapes. Metadata only."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from ckptconv.errors import CkptconvError
from ckptconv.models import deepspeed_moe, facts, hub_names, module_names, mtp
from ckptconv.models.config import check_fit
from ckptconv.models.nested import other_inside
from ckptconv.models.skeleton import Group, Member, Numbers, Skeleton, Stack, Values, skeleton_of
from ckptconv.plan.misfit import Misfit, refusal, shown
from ckptconv.tensors.view import Shape, stored

_NUMBER = re.compile(r"(?:^|(?<=\.))\d+(?=\.|$)")
# Next to the model, for other tools: TRL's value heads, an exported adapter; and buffers that transformers stopped saving.
_BESIDE = re.compile(
    r"^(v_head|value_head)\.|^lora_adapter/|rotary_emb\.inv_freq$|\.attn\.(masked_)?bias$|position_ids$|^score\.weight$"
)
# A critic of verl or Megatron has a score without the bias that transformers gives it, which begins at zero.
_ROUTER_BIAS = "e_score_correction_bias"
_QUANTISED = re.compile(r"(scale|scales|_scale_inv|SCB|weight_format|absmax|quant_map|qweight|qzeros|g_idx)$")


def require_fit(
    config: Mapping[str, Any], shapes: Mapping[str, Shape], where: Path, notes: list[str]
) -> None:
    """Raise CkptconvError if the planned tensors cannot be the model of this config.

    Args:
        config: The config.json that will be written.
        shapes: The planned tensors' shapes, by the name that each is written under.
        where: The checkpoint's folder, for messages.
        notes: Receives what a person must judge.
    """
    skeleton = skeleton_of(config)
    if skeleton is None:
        check_fit(config, shapes, where)
        notes.append(unknown_class(config))
        return
    if config.get("quantization_config"):
        return  # the names and shapes are the quantiser's
    misfit = misfit_of(skeleton, config, shapes)
    if deepspeed_moe.are_here(shapes):
        misfit.foreign = deepspeed_moe.without(misfit.foreign, shapes)
        misfit.missing = deepspeed_moe.without(misfit.missing, shapes)
        notes.append(
            f"DeepSpeed's own MoE layers keep their names, which {skeleton.architecture} does not have: only the code that "
            "trained the model loads this folder"
        )
    if not misfit:
        return
    if inside := other_inside(config):
        check_fit(config, shapes, where)
        notes.append(
            f"names and shapes were not checked: {skeleton.architecture} takes any language model, and ckptconv's list of "
            f"its tensors was made with another one than {inside!r}"
        )
        return
    if _has_own_code(config, skeleton.architecture):
        notes.append(
            f"the tensors are not those of transformers' {skeleton.architecture} (the repository's own code was not run): "
            + shown([*misfit.foreign, *misfit.missing, *(name for name, *_ in misfit.wrong)])
        )
        return
    raise refusal(misfit, skeleton.architecture, where)


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
    if config.get("quantization_config"):
        return "a quantiser decides names and shapes"
    if _has_own_code(config, skeleton.architecture):
        return f"the repository's own code defines {skeleton.architecture}"
    return ""


def misfit_of(skeleton: Skeleton, config: Mapping[str, Any], shapes: Mapping[str, Shape]) -> Misfit:
    """How the tensors differ from the class, by the Hub's names, its older ones or the module's: whichever fit best."""
    best = None
    for candidate in _namings(skeleton, dict(config), shapes):
        found = _compared(skeleton, config, candidate)
        if best is None or found.weight < best.weight:
            best = found
        if not found.weight:
            break
    assert best is not None
    if best.wrong:
        either = hub_names.taken_either_way([name for name, *_ in best.wrong], dict(config))
        best.wrong = [each for each in best.wrong if each[0] not in either]
    return best


def _namings(
    skeleton: Skeleton, config: dict[str, Any], shapes: Mapping[str, Shape]
) -> Iterable[Mapping[str, Shape]]:
    """The tensors as they are named, and as transformers itself would read those names."""
    yield shapes
    if config.get("quantization_config"):
        return
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


def _compared(skeleton: Skeleton, config: Mapping[str, Any], shapes: Mapping[str, Shape]) -> Misfit:
    """The tensors against the skeleton, under the names that they have."""
    found = Misfit()
    values = Values(skeleton, config)
    quantised = bool(config.get("quantization_config"))
    mtp_layers = re.compile("|".join(mtp.patterns(config)))
    ignored = re.compile("|".join(skeleton.ignored) or "$^")
    present: dict[str, set[Numbers]] = {}
    sizes: dict[str, tuple[int | None, ...]] = {}
    for name, shape in shapes.items():
        if mtp_layers.search(name):
            continue
        numbers = tuple(map(int, _NUMBER.findall(name)))
        member = _member(skeleton, _NUMBER.sub("*", name), numbers)
        if member is None:
            if not (_BESIDE.search(name) or ignored.search(name) or (quantised and _QUANTISED.search(name))):
                found.foreign.append(name)
            continue
        pattern = member[0].pattern
        present.setdefault(pattern, set()).add(member[1])
        if quantised:
            continue
        if pattern not in sizes:
            sizes[pattern] = tuple(values.number(each) for each in member[0].dims)
        _compare_dims(name, shape, member[0], sizes[pattern], values, found)
    _Whole(skeleton, values, present, _may_be_tied(config), found, "score.weight" in shapes).check()
    return found


def _may_be_tied(config: Mapping[str, Any]) -> bool:
    """True where the config or a part of it ties weights."""
    parts = [part for part in config.values() if isinstance(part, dict)]
    return facts.says_tied(dict(config)) or any(_may_be_tied(part) for part in parts)


def _member(skeleton: Skeleton, star: str, numbers: Numbers) -> tuple[Member, Numbers] | None:
    """The pattern that a name matches, and the numbers at its stars."""
    for member, fixed in skeleton.by_star.get(star, ()):
        if all(f is None or f == n for f, n in zip(fixed, numbers, strict=True)):
            return member, tuple(n for f, n in zip(fixed, numbers, strict=True) if f is None)
    return None


def _compare_dims(
    name: str, shape: Shape, member: Member, wanted: tuple[int | None, ...], values: Values, found: Misfit
) -> None:
    if len(wanted) != len(shape):
        return
    for dim, (size, stated) in enumerate(zip(shape, wanted, strict=True)):
        if stated is not None and size != stated and not _is_heads(name, size, member.dims[dim], values):
            found.wrong.append((name, values.text(member.dims[dim]), stated, size))
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


class _Whole:
    """Looks for what is missing: layers, experts, and members of a group."""

    def __init__(
        self,
        skeleton: Skeleton,
        values: Values,
        present: Mapping[str, set[Numbers]],
        tied: bool,
        found: Misfit,
        has_score: bool,
    ) -> None:
        self._skeleton, self._values, self._tied, self._found = skeleton, values, tied, found
        self._present = dict(present)
        self._has_score = has_score
        self._instances: dict[str, set[Numbers]] = {"": {()}}
        for stack in skeleton.stacks[1:]:
            star = f"{stack.context}.*"
            depth = star.split(".").count("*")
            inside = {
                numbers[:depth]
                for pattern, each in present.items()
                if pattern.startswith(f"{star}.") or pattern == star
                for numbers in each
            }
            self._instances[stack.context] = inside
            if inside:
                self._present[f"{star}*"] = {numbers[:-1] for numbers in inside}

    def check(self) -> None:
        """Add to the misfit what is missing or too much."""
        for stack in self._skeleton.stacks[1:]:
            if stack.form != "gaps":
                self._check_numbers(stack)
        for group in self._skeleton.groups:
            self._check_group(group)
        self._check_slots()

    def _check_numbers(self, stack: Stack) -> None:
        """Numbers from 0 to what the config counts; where that is not known, to the highest that is there."""
        count = self._values.number(stack.count)
        by_outer: dict[Numbers, set[int]] = {}
        for numbers in self._instances[stack.context]:
            by_outer.setdefault(numbers[:-1], set()).add(numbers[-1])
        highest = max((max(held) for held in by_outer.values()), default=-1) + 1
        for outer, held in sorted(by_outer.items()):
            alone = max(held) + 1 if stack.form == "ragged" else highest
            wanted = count if count is not None else alone
            here = _filled(stack.context, outer)
            key = self._values.text(stack.count) if stack.count else ""
            end = max(held) + 1
            # Up to the highest that is there: the config may state any number.
            self._found.missing += [
                f"{here}.{n} (all of it)" for n in range(min(wanted, end)) if n not in held
            ]
            if end < wanted:
                self._found.wrong.append((here, key or "the others'", wanted, end))
            elif end > wanted:
                self._found.wrong.append((f"{here}.{end - 1}", key, wanted, end))

    def _check_group(self, group: Group) -> None:
        stack = self._skeleton.stacks[group.stack]
        everywhere = self._instances[stack.context]
        held = [self._present.get(member.pattern, set()) for member in group.members]
        anywhere: set[Numbers] = set().union(*held)
        wanted, needless = self._wanted(group, everywhere, anywhere)
        for member, instances in zip(group.members, held, strict=True):
            if member.kind == "optional" or (member.kind == "tied" and self._tied):
                continue
            if member.pattern == "score.bias" or member.pattern.endswith(_ROUTER_BIAS):
                continue
            if self._has_score and member.pattern.endswith("lm_head.weight"):
                continue
            if instances == wanted:
                continue
            self._found.missing += [_filled(member.pattern, n) for n in sorted(wanted - instances)]
            self._found.foreign += [
                f"{_filled(member.pattern, n)} ({needless})" for n in sorted(instances - wanted) if needless
            ]

    def _wanted(
        self, group: Group, everywhere: set[Numbers], anywhere: set[Numbers]
    ) -> tuple[set[Numbers], str]:
        """Where the group must be, and why it must not be elsewhere ("" where it may be)."""
        if group.when == "always":
            return everywhere, ""
        if group.when == "sometimes":
            return anywhere, ""
        kind, path, *rest = group.when
        stated = self._values.of(tuple(path))
        if kind == "if":
            on = self._values.switched(tuple(path))
            if on is None:
                return anywhere, ""
            return (everywhere, "") if on else (set(), f"{path[-1]} is {json_text(stated)}")
        if kind == "in":
            if not isinstance(stated, list):
                return anywhere, ""
            return {n for n in everywhere if (n[-1] in stated) is rest[0]}, f"by {path[-1]}"
        choices: dict[str, bool] = rest[0]
        if not isinstance(stated, list) or any(str(value) not in choices for value in stated):
            return anywhere, ""
        if any(numbers[-1] >= len(stated) for numbers in everywhere):
            return anywhere, ""
        return {n for n in everywhere if choices[str(stated[n[-1]])]}, f"by {path[-1]}"

    def _check_slots(self) -> None:
        for ids in self._skeleton.slots:
            groups = [self._skeleton.groups[number] for number in ids]
            everywhere = self._instances[self._skeleton.stacks[groups[0].stack].context]
            held: set[Numbers] = set()
            for group in groups:
                held |= set().union(*(self._present.get(m.pattern, set()) for m in group.members))
            for numbers in sorted(everywhere - held):
                names = [_filled(group.members[0].pattern, numbers) for group in groups]
                self._found.missing.append(" or ".join(names))


def json_text(value: object) -> str:
    """true, false or a number, as config.json has it."""
    return str(value).lower() if isinstance(value, bool) else str(value)


def _filled(pattern: str, numbers: Numbers) -> str:
    """A pattern with its stars filled; a whole stack is shown with one star."""
    left = iter(numbers)
    return ".".join(
        str(next(left)) if part == "*" else "*" if part == "**" else part for part in pattern.split(".")
    )


def _has_own_code(config: Mapping[str, Any], architecture: str) -> bool:
    code = config.get("auto_map")
    return isinstance(code, dict) and any(
        str(path).rpartition(".")[2] == architecture for path in code.values()
    )
