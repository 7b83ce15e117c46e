"""Looks for what no trained model has: NaN, Inf, matrices of one value, a layer that is a copy of another one."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from math import prod

import numpy as np

from ckptconv.commands.verify.records import LAYER, Layer, Problem
from ckptconv.commands.verify.tally import Tally
from ckptconv.commands.verify.values import Task
from ckptconv.read.reader import raw_dtype
from ckptconv.tensors.dtypes import to_numpy

# Buffers that a class fills before it uses them, or from the config alone: I-BERT's integers, MiniMax's decays.
_BUFFERS = ("weight_integer", "bias_integer", "scaling_factor", "query_decay", "key_decay", "diagonal_decay")
# Gemma 4's audio tower clips by these, and infinity says that it does not.
_BOUNDS = ("input_max", "input_min", "output_max", "output_min")


def sanity_layer(tasks: Sequence[Task], tied: Collection[str] = (), may_be_empty: bool = False) -> Layer:
    """Layer sanity: NaN, Inf, matrices of one value, layers twice. A norm of ones or a bias of zeros is normal.

    Args:
        tasks: what was read.
        tied: names that repeat another by the config's word.
        may_be_empty: the model's class or the reference gives every tensor the shape that it has; without such a
            witness a tensor of no elements is a fault (PEFT's save_pretrained under ZeRO-3 writes such ones).
    """
    problems, flat = [], {"zeros": 0, "ones": 0, "one value": 0}
    unused = []
    for task in tasks:
        tally, seen = task.tally, task.tally.sanity
        if not prod(tally.shape):
            if not may_be_empty:
                hint = "was it saved without its values, as under ZeRO-3 without gathering them?"
                problems.append(Problem(tally.name, "has no elements", f"shape {list(tally.shape)}", hint))
        elif seen.nan or (seen.inf and not tally.name.endswith(_BOUNDS)):
            parts = [f"{n:,} {word}" for n, word in ((seen.nan, "NaN"), (seen.inf, "Inf")) if n]
            where = f"first in row {tally.row_of(seen.first):,}" + _held(tally, seen.first)
            problems.append(Problem(tally.name, f"holds {' and '.join(parts)}", where))
        elif seen.one is not None and seen.is_flat:
            number = _constant(seen.one, tally.dtype)
            word = "zeros" if number == 0 else "ones" if number == 1 else "one value"
            if "lora_B" in tally.name or "lora_embedding_B" in tally.name:
                unused.append(tally.name)
            elif sum(size > 1 for size in tally.shape) > 1 and not tally.name.endswith(_BUFFERS):
                sentence = f"is {number:g} in every element"
                problems.append(
                    Problem(tally.name, sentence, hint="was it trained, and was all of it saved?")
                )
            else:
                flat[word] += 1
    notes = [
        f"{n:,} vector{'s' if n > 1 else ''} of {word} (norms and biases may be)"
        for word, n in flat.items()
        if n
    ]
    if unused:
        notes.append(
            f"{len(unused):,} LoRA B factors are constant: these adapters change nothing ({unused[0]})"
        )
    twice, equal = _duplicates(tasks, tied)
    problems += twice
    notes += equal
    floats = sum(task.tally.sanity.one is not None for task in tasks)
    proves = "no NaN/Inf, no constant matrix, no duplicated layer"
    if not floats and not problems:
        return Layer("sanity", None, proves, "not checked: there are no float tensors", (), tuple(notes))
    found = f"{floats:,} float tensors" + (f", {len(problems):,} strange" if problems else "")
    return Layer("sanity", not problems, proves, found, tuple(problems), tuple(notes))


def _duplicates(tasks: Sequence[Task], tied: Collection[str]) -> tuple[list[Problem], list[str]]:
    """Layers all of whose matrices another layer has too; a note of other matrices that stand there twice."""
    by_layer: dict[str, dict[str, str]] = {}
    by_hash: dict[str, list[str]] = {}
    for task in tasks:
        tally = task.tally
        many = sum(size > 1 for size in tally.shape) > 1
        if not many or tally.sanity.is_flat or task.ours.repeats or tally.name in tied or not tally.hash():
            continue
        by_hash.setdefault(tally.hash(), []).append(tally.name)
        if found := LAYER.match(tally.name):
            by_layer.setdefault(found[1], {})[found[2]] = tally.hash()
    alike: dict[tuple[str, frozenset[tuple[str, str]]], list[str]] = {}
    for layer, held in by_layer.items():
        alike.setdefault((layer.rpartition(".")[0], frozenset(held.items())), []).append(layer)
    hint = "was a layer written in the place of another, or is this model a stack of copies?"
    problems = [
        Problem(layer, f"has the weights of {layers[0]}, bit for bit", f"{len(held)} matrices", hint)
        for (_, held), layers in alike.items()
        for layer in layers[1:]
    ]
    known = tuple(f"{problem.name}." for problem in problems)
    others = [[name for name in names if not name.startswith(known)] for names in by_hash.values()]
    others = [names for names in others if len(names) > 1]
    if not others:
        return problems, []
    number = sum(len(names) - 1 for names in others)
    sentence = "matrix has the weights of another" if number == 1 else "matrices have the weights of another"
    return problems, [f"{number:,} {sentence}: {others[0][0]} and {others[0][1]}"]


def _constant(bits: int, dtype: str) -> float:
    return float(np.array([bits], raw_dtype(dtype)).view(to_numpy(dtype))[0])


def _held(tally: Tally, flat: int) -> str:
    ranks = sorted(tally.holders.of(np.array([flat]), set())) if tally.holders else []
    return f", stored by rank {ranks[0]}" if ranks else ""
