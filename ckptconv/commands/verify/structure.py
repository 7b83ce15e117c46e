"""Layers names, shapes, dtypes and adapter: compares two sides by their metadata.

A tied head may be stored under one name or under both.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

from ckptconv.commands.verify.records import Layer, Problem
from ckptconv.commands.verify.sides import Side
from ckptconv.models import mtp
from ckptconv.plan import Output
from ckptconv.tensors.dtypes import is_float, itemsize
from ckptconv.tensors.view import Shape


@dataclass(frozen=True, slots=True)
class Match:
    """A tensor with its counterpart in the reference.

    Args:
        name: the name under which they are reported.
        ours: the target's tensor.
        theirs: the reference's tensor; None if it has none of the same shape.
    """

    name: str
    ours: Output
    theirs: Output | None


@dataclass(frozen=True, slots=True)
class Matched:
    """The result of pairing the tensors of two sides.

    Args:
        matches: the target's tensors in the order of their files, with their counterparts.
        missing: names that only the reference has.
        extra: names that only the target has.
        wrong_shape: names that both have, with different shapes.
        notes: what was paired under another name, and which MTP layers were omitted.
    """

    matches: tuple[Match, ...]
    missing: tuple[str, ...]
    extra: tuple[str, ...]
    wrong_shape: tuple[str, ...]
    notes: tuple[str, ...]


def match(ours: Side, theirs: Side) -> Matched:
    """Pair the tensors of the target (`ours`) and of the reference (`theirs`) by name."""
    our_ties, their_ties = ours.ties(theirs.tensors), theirs.ties(ours.tensors)
    matches: list[Match] = []
    extra, wrong, notes = [], [], []
    for name, output in ours.tensors.items():
        other = theirs.tensors.get(name)
        if other is None and their_ties.get(name) in theirs.tensors:
            other = theirs.tensors[their_ties[name]]
            notes.append(f"{name} is tied in the reference: compared with its {their_ties[name]}")
        if other is None:
            extra.append(name)
        elif other.shape != output.shape:
            wrong.append(name)
            other = None
        matches.append(Match(name, output, other))
    missing = []
    for name, output in theirs.tensors.items():
        source = our_ties.get(name, "")
        if name in ours.tensors:
            continue
        if source in ours.tensors and ours.tensors[source].shape == output.shape:
            notes.append(f"{name} is tied: {source} is compared with the reference's {name}")
            matches.append(Match(name, ours.tensors[source], output))
        else:
            missing.append(name)
    missing, left_out = _without_mtp(missing, theirs, ours)
    extra, more = _without_mtp(extra, ours, theirs)
    if left_out:
        notes.append(f"{left_out:,} tensors of MTP layers are omitted here, as its config.json says")
    if more:
        notes.append(f"{more:,} tensors of MTP layers are omitted in the reference, as its config.json says")
    return Matched(tuple(matches), tuple(missing), tuple(extra), tuple(wrong), tuple(notes))


def _without_mtp(names: list[str], holds: Side, lacks: Side) -> tuple[list[str], int]:
    """Remove the names of MTP layers, if the config of the side that lacks them states that it has none.

    Args:
        names: the names that only one side has.
        holds: that side.
        lacks: the other side.

    Returns:
        The remaining names, and the number of those that were removed.
    """
    if holds.config is None or lacks.config is None or mtp.stated(lacks.config):
        return names, 0
    ours = re.compile("|".join(mtp.patterns(holds.config)))
    kept = [name for name in names if not ours.search(name)]
    return kept, len(names) - len(kept)


def against_reference(ours: Side, theirs: Side, found: Matched) -> list[Layer]:
    """The layers names, shapes and dtypes of a pair of sides, and the layer adapter if both are adapters."""
    pairs = [(m.name, m.ours, m.theirs) for m in found.matches if m.theirs is not None]
    wrong = [
        (n, ours.tensors[n].shape, theirs.tensors[n].shape) for n in found.wrong_shape if n in theirs.tensors
    ]
    return [
        names_layer(found.missing, found.extra, len(theirs.tensors), "the reference", found.notes),
        shapes_layer(wrong, len(pairs) + len(found.wrong_shape), "the reference"),
        _dtypes(ours, theirs, [(name, a, b) for name, a, b in pairs if b is not None]),
        *_adapter(ours, theirs),
    ]


def names_layer(
    missing: Iterable[str], extra: Iterable[str], expected: int, reference: str, notes: Iterable[str] = ()
) -> Layer:
    """Layer names.

    Args:
        missing: names that only the reference has.
        extra: names that only the target has.
        expected: the number of the reference's names.
        reference: what the target is compared with, for the user.
        notes: the layer's notes.
    """
    missing, extra = list(missing), list(extra)
    problems = [Problem(name, f"missing: {reference} has it") for name in missing]
    problems += [Problem(name, f"{reference} has no such tensor") for name in extra]
    found = f"{expected - len(missing):,} of {expected:,}" + (f", {len(extra):,} unexpected" if extra else "")
    hint = _other_names(missing, extra)
    if hint:
        problems[0] = Problem(problems[0].name, problems[0].what, hint=hint)
    proves = f"no tensor of {reference} is missing, none is extra"
    if not expected and not problems:
        return Layer("names", None, proves, "there are no tensors on either side", (), tuple(notes))
    return Layer("names", not problems, proves, found, tuple(problems), tuple(notes))


def shapes_layer(wrong: list[tuple[str, Shape, Shape]], total: int, reference: str) -> Layer:
    """Layer shapes.

    Args:
        wrong: (name, the target's shape, the wanted shape) of every tensor whose shape is wrong.
        total: the number of tensors that were compared.
        reference: what the target is compared with, for the user.
    """
    problems = tuple(
        Problem(name, f"has shape {_text(found)}, {reference}'s is {_text(wanted)}")
        for name, found, wanted in wrong
    )
    proves = f"every tensor has the shape that {reference} gives it"
    if not total:
        return Layer("shapes", None, proves, "the two sides have no name in common")
    return Layer("shapes", not wrong, proves, f"{total - len(wrong):,} of {total:,}", problems)


def dtype_counts(outputs: Iterable[Output]) -> str:
    """The dtypes with their counts, as text: "310 × bfloat16, 12 × float32"."""
    return _counts(output.dtype for output in outputs)


def _counts(dtypes: Iterable[str]) -> str:
    return ", ".join(f"{count:,} × {dtype}" for dtype, count in Counter(dtypes).most_common())


def compared_in(ours: Side, theirs: Side, a: Output, b: Output) -> str:
    """The dtype in which two tensors are compared: the model folder's, if the other side has a trainer's master weights.

    Args:
        ours: the target.
        theirs: the reference.
        a: the target's tensor.
        b: the reference's tensor.
    """
    if a.dtype == b.dtype:
        return a.dtype
    if ours.as_stored != theirs.as_stored:
        return b.dtype if ours.as_stored else a.dtype
    if ours.as_stored and is_float(a.dtype) and is_float(b.dtype) and itemsize(a.dtype) != itemsize(b.dtype):
        return min(a.dtype, b.dtype, key=itemsize)  # of two trainers' checkpoints, only one has masters
    return wider(a.dtype, b.dtype)


def wider(a: str, b: str) -> str:
    """A dtype that can represent the values of both dtypes."""
    if a == b:
        return a
    floats = [name for name in (a, b) if name.startswith(("float", "bfloat"))]
    if len(floats) == 2 and "float64" not in floats:
        return "float32"
    if floats:
        return "float64"
    return "complex64" if "complex64" in (a, b) else "int64"


def _dtypes(ours: Side, theirs: Side, pairs: list[tuple[str, Output, Output]]) -> Layer:
    """Layer dtypes of (name, the target's tensor, the reference's tensor)."""
    if not pairs:
        return Layer("dtypes", None, "", "the two sides have no name in common")
    differ = [(name, a.dtype, b.dtype) for name, a, b in pairs if a.dtype != b.dtype]
    if ours.as_stored or theirs.as_stored:
        proves = "the training weights are compared after rounding to the model's dtype"
        if ours.as_stored and theirs.as_stored:
            proves = "the dtypes of two trainers may differ: values are compared in the narrower one"
        used = [(a, b, compared_in(ours, theirs, a, b)) for _, a, b in pairs]
        casts = Counter(
            (side, output.dtype, dtype)
            for a, b, dtype in used
            for side, output in (("the target", a), ("the reference", b))
            if output.dtype != dtype
        )
        notes = tuple(
            f"{side} stores {stored}: {count:,} tensors are cast to {dtype} to be compared"
            for (side, stored, dtype), count in casts.items()
        )
        return Layer("dtypes", True, proves, _counts(dtype for _, _, dtype in used), (), notes)
    problems = tuple(Problem(name, f"is {a}, the reference's is {b}") for name, a, b in differ)
    found = f"{len(pairs) - len(differ):,} of {len(pairs):,}"
    if not problems:
        found += f": {dtype_counts(b for _, _, b in pairs)}"
    return Layer("dtypes", not problems, "every tensor has the reference's dtype", found, problems)


# Settings that change what an adapter's factors do, with PEFT's defaults (peft/tuners/lora/config.py, LoraConfig).
_ADAPTER: dict[str, Any] = {
    "r": None, "lora_alpha": None, "use_rslora": False, "use_dora": False, "rank_pattern": {}, "alpha_pattern": {},
    "fan_in_fan_out": False,
}  # fmt: skip


def _adapter(ours: Side, theirs: Side) -> list[Layer]:
    """Layer adapter, if both sides are adapters: their configs scale and apply the factors in the same way."""
    if not ours.is_adapter or not theirs.is_adapter:
        return []
    problems = []
    for key, default in _ADAPTER.items():
        mine, other = (side.adapter.get(key) or default for side in (ours, theirs))
        if mine != other:
            problems.append(Problem(key, f"is {mine}, the reference's is {other}", "adapter_config.json"))
    proves = "the factors are scaled and applied in the same way"
    found = f"r {ours.adapter.get('r')}, alpha {ours.adapter.get('lora_alpha')}"
    return [Layer("adapter", not problems, proves, found, tuple(problems))]


def _other_names(missing: list[str], extra: list[str]) -> str:
    """A hint if the same tensors have other names on the two sides; "" if they do not."""
    if not missing or not extra:
        return ""
    ends = {name.split(".", 1)[-1] for name in extra} | {
        f"{part}.{name}" for name in extra for part in ("model",)
    }
    if set(missing) <= ends or {name.split(".", 1)[-1] for name in missing} <= set(extra):
        return "the names differ by a prefix only: one side has the module's names, the other the Hub's"
    return ""


def _text(shape: Shape) -> str:
    return "×".join(map(str, shape)) if shape else "a scalar"
