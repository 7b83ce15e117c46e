"""Checks that training changed the model: compares the target's hashes with those of the model it started from."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence

from ckptconv.commands.verify import structure
from ckptconv.commands.verify.records import Layer, Problem
from ckptconv.commands.verify.sides import Side
from ckptconv.commands.verify.tally import Tally
from ckptconv.commands.verify.values import Task

_PROVES = "training changed the weights: this is not just a renamed copy of the base model"


def tasks_for(ours: Side, base: Side, tasks: Sequence[Task]) -> list[Task]:
    """The base's tensors, to be hashed in the dtypes in which the target's are."""
    dtypes = {task.tally.name: task.tally.dtype for task in tasks}
    found = []
    for pair in structure.match(ours, base).matches:
        if pair.theirs is not None and pair.name in dtypes and pair.theirs.source.numel:
            tally = Tally(pair.name, pair.theirs.shape, dtypes[pair.name], False)
            found.append(Task(pair.theirs, None, tally, look=False))
    return found


def trained_layer(tasks: Sequence[Task], base: Sequence[Task], is_adapter: bool) -> Layer:
    """Layer trained. Many equal tensors may be right (frozen parts, LoRA): only all of them are a no."""
    if is_adapter:
        return Layer("trained", None, "", "skipped: an adapter has no tensors of the base")
    ours = {task.tally.name: task.tally for task in tasks}
    pairs = [(ours[task.tally.name], task.tally) for task in base]
    if not pairs:
        return Layer("trained", None, "", "skipped: no tensor is in the base under its name and shape")
    equal = [mine.name for mine, other in pairs if mine.hash() == other.hash()]
    changed = [mine.name for mine, other in pairs if mine.hash() != other.hash()]
    found = (
        f"{len(changed):,} of {len(pairs):,} tensors differ from the base, {len(equal):,} are bit-equal to it"
    )
    if not changed:
        hint = "the weights of a base model, or of a checkpoint whose LoRA was not merged"
        problem = Problem("the weights", "untrained: every one is the base's, bit for bit", hint=hint)
        return Layer("trained", False, _PROVES, found, (problem,))
    notes = [f"all {number:,} of {part} are the base's: frozen?" for part, number in _frozen(equal, changed)]
    if len(pairs) < len(tasks):
        notes.append(f"{len(tasks) - len(pairs):,} tensors are not in the base")
    return Layer("trained", True, _PROVES, found, (), tuple(notes))


def _frozen(equal: Sequence[str], changed: Sequence[str]) -> list[tuple[str, int]]:
    """The largest parts of the model of which nothing changed, with several tensors each."""
    touched = {prefix for name in changed for prefix in _prefixes(name)}
    parts: Counter[str] = Counter()
    for name in equal:
        whole = next((prefix for prefix in _prefixes(name) if prefix not in touched), None)
        if whole is not None:
            parts[whole] += 1
    return [(part, number) for part, number in parts.most_common(3) if number > 1]


def _prefixes(name: str) -> list[str]:
    """What a tensor is in, from the whole model down to a layer: "model", "model.layers", "model.layers.0"."""
    words = name.split(".")
    return [".".join(words[:n]) for n in range(1, min(len(words), 4))]
