"""A target on its own: the layers that hold it against the model class that its config names."""

from __future__ import annotations

import re

from ckptconv.commands.verify import structure
from ckptconv.commands.verify.expected import Expected, NotChecked, expect, is_beside
from ckptconv.commands.verify.records import Layer, Problem
from ckptconv.commands.verify.sides import Side
from ckptconv.commands.verify.whole import model_layer
from ckptconv.errors import CkptconvError, Kind
from ckptconv.models import mtp
from ckptconv.plan import why_unchecked
from ckptconv.read.reader import same_values
from ckptconv.tensors.dtypes import from_text, is_float
from ckptconv.tensors.view import View

_PROVES = "transformers can build the class named in config.json, without running code from the folder"


def alone(side: Side) -> list[Layer]:
    """The layers loads, names, shapes and dtypes of a side without a reference."""
    if side.is_adapter or side.config is None:
        why = "this is an adapter, not a full model" if side.is_adapter else "no config.json was found"
        wrong = () if side.is_adapter else (Problem("config.json", "is missing", str(side.checkpoint.root)),)
        return [Layer("loads", False if wrong else None, _PROVES, why, wrong), *_not_checked(why)]
    try:
        expected = expect(side.config, side.tensors)
    except CkptconvError as error:
        if error.kind is not Kind.ENVIRONMENT or why_unchecked(side.config):
            raise
        expected = NotChecked(f"{error.what}: {error.hint}")  # the list of the class needs neither
    if isinstance(expected, NotChecked):
        loads = Layer("loads", None, _PROVES, f"skipped: {expected.why}")
        listed = model_layer(side)
        return [loads, *(_not_checked(expected.why) if listed.ok is None else (listed, _dtypes(side)))]
    if isinstance(expected, Problem):
        why = "transformers cannot build the class to compare with"
        return [Layer("loads", False, _PROVES, expected.what, (expected,)), *_not_checked(why)]
    notes = (f"the names are those of the {expected.names}",) if expected.names != "Hub" else ()
    loads = Layer(
        "loads", True, _PROVES, f"{expected.architecture}, {len(expected.shapes):,} tensors", (), notes
    )
    return [loads, _names(side, expected), _shapes(side, expected), _dtypes(side)]


def _names(side: Side, expected: Expected) -> Layer:
    notes, problems = [], []
    tied = {a: b for a, b in expected.tied.items() if a in expected.shapes and b in expected.shapes}
    absent = {name for name in tied if name not in side.tensors and tied[name] in side.tensors}
    for name, source in tied.items():
        if name in absent:
            notes.append(f"{name} is tied to {source} and stored once")
        elif name in side.tensors and source in side.tensors and not _same(side, name, source):
            hint = "set tie_word_embeddings to false in config.json: loading would replace one by the other"
            problems.append(Problem(name, f"the config ties it to {source}, and they differ", hint=hint))
    missing = [n for n in expected.shapes if n not in side.tensors and n not in absent]
    extra = [n for n in side.tensors if n not in expected.shapes]
    beside = [n for n in extra if is_beside(n, expected)]
    if beside:
        notes.append(
            f"{len(beside):,} tensors that {expected.architecture} leaves unread, such as {beside[0]}"
        )
    counted = mtp.stated(side.config or {})
    if counted and not any(
        re.search("|".join(mtp.patterns(side.config or {})), name) for name in side.tensors
    ):
        notes.append(f"config.json counts {counted} MTP layers, and none is stored")
    known = [n for n in extra if not is_beside(n, expected)]
    layer = structure.names_layer(missing, known, len(expected.shapes), expected.architecture, notes)
    found = tuple(problems) + layer.problems
    return Layer("names", not found, layer.proves, layer.found, found, layer.notes)


def _same(side: Side, name: str, source: str) -> bool:
    a, b = side.tensors[name].source, side.tensors[source].source
    return isinstance(a, View) and isinstance(b, View) and same_values(a, b)


def _shapes(side: Side, expected: Expected) -> Layer:
    shared = [name for name in expected.shapes if name in side.tensors]
    wrong = [
        (name, side.tensors[name].shape, expected.shapes[name])
        for name in shared
        if not expected.has_shape(name, side.tensors[name].shape)
    ]
    return structure.shapes_layer(wrong, len(shared), expected.architecture)


def _dtypes(side: Side) -> Layer:
    """What is stored, and what the config says; another dtype is not wrong, but transformers casts to it."""
    config = side.config or {}
    stated = from_text(config.get("dtype") or config.get("torch_dtype") or "")
    floats = [output for output in side.tensors.values() if is_float(output.dtype)]
    proves = "stored dtypes (transformers converts to the dtype in config.json on load)"
    notes = []
    if stated and floats and not side.planned and all(output.dtype != stated for output in floats):
        notes.append(f"config.json says {stated}: loading casts every weight")
    if not side.tensors:
        return Layer("dtypes", None, proves, "there are no tensors")
    return Layer("dtypes", True, proves, structure.dtype_counts(side.tensors.values()), (), tuple(notes))


def _not_checked(why: str) -> list[Layer]:
    return [Layer(name, None, "", f"skipped: {why}") for name in ("names", "shapes")]
