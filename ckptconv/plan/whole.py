"""Looks for what a model lacks by its skeleton: layers, experts, tensors of a layer."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from ckptconv.models.skeleton import Group, Numbers, Skeleton, Stack, numbers_joined
from ckptconv.models.values import Values
from ckptconv.plan.misfit import Misfit

# A critic of verl or Megatron has a score without the bias that transformers gives it, which begins at zero.
_CRITICS_BIAS = "score.bias"
ROUTER_BIAS = "e_score_correction_bias"  # a buffer that begins at zero, and that some trainers do not keep


class Whole:
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
        wanted = {g.stack for g in self._skeleton.groups if any(not member.kind for member in g.members)}
        for number, stack in enumerate(self._skeleton.stacks):
            if number in wanted and stack.context and stack.form != "gaps":
                self._check_numbers(stack)
        for group in self._skeleton.groups:
            self._check_group(group)
        self._check_slots()

    def _check_numbers(self, stack: Stack) -> None:
        """Numbers from 0 to what the config counts; where that is not known, to the highest that is there."""
        count = self._values.number(stack.number)
        by_outer: dict[Numbers, set[int]] = {}
        for numbers in self._instances[stack.context]:
            by_outer.setdefault(numbers[:-1], set()).add(numbers[-1])
        highest = max((max(held) for held in by_outer.values()), default=-1) + 1
        for outer, held in sorted(by_outer.items()):
            alone = max(held) + 1 if stack.form == "ragged" else highest
            wanted = count if count is not None else alone
            here = _filled(stack.context, outer)
            key = self._values.text(stack.number) if stack.number else ""
            end = max(held) + 1
            # Up to the highest that is there: the config may state any number.
            self._found.missing += [
                numbers_joined(f"{here}.{n} (all of it)") for n in range(min(wanted, end)) if n not in held
            ]
            if end < wanted:
                self._found.wrong.append((here, key or "the others'", wanted, end))
            elif end > wanted:
                self._found.wrong.append((numbers_joined(f"{here}.{end - 1}"), key, wanted, end))

    def _check_group(self, group: Group) -> None:
        stack = self._skeleton.stacks[group.stack]
        everywhere = self._instances[stack.context]
        held = [self._present.get(member.pattern, set()) for member in group.members]
        anywhere: set[Numbers] = set().union(*held)
        wanted, needless = self._wanted(group, everywhere, anywhere)
        for member, instances in zip(group.members, held, strict=True):
            if member.kind == "optional" or (member.kind == "tied" and self._tied):
                continue
            if member.pattern == _CRITICS_BIAS:
                continue
            if member.pattern.endswith(ROUTER_BIAS) and not instances:  # reported by `fit`
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
        needed, allowed = group.when[1:] if group.when[0] == "may" else (group.when, False)
        wanted = set()
        for numbers in everywhere:
            holds = self._values.holds(needed, numbers)
            if holds or (numbers in anywhere and (holds is None or self._may(allowed, numbers))):
                wanted.add(numbers)
        return wanted, self._values.reason(needed)

    def _may(self, allowed: Any, numbers: Numbers) -> bool:
        return allowed is not False and self._values.holds(allowed, numbers) is not False

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


def _filled(pattern: str, numbers: Numbers) -> str:
    """A pattern with its stars filled; a whole stack is shown with one star."""
    left = iter(numbers)
    return numbers_joined(
        ".".join(
            str(next(left)) if part == "*" else "*" if part == "**" else part for part in pattern.split(".")
        )
    )
