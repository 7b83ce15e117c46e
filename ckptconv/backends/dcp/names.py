"""Select the entries of a distributed checkpoint that belong to the model, and find the prefix that a trainer adds.

A saved state dict is flat: a name is the keys that lead to a tensor, joined by dots
(torch/distributed/checkpoint/_nested_dict.py). `planner_data` keeps the keys separate, so
`{"model": {"layers.0.weight": ...}}` differs from `{"model.layers.0.weight": ...}`: the key of a
dict is not part of a module's name. Where the state dict itself was flat, only the names decide, by the rules of `_wraps`.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

from ckptconv.backends.dcp.states import Keys, states_of
from ckptconv.errors import CkptconvError, Kind, listed
from ckptconv.tensors.names import MODULE, WRAPPERS

# The top-level names of a whole model: its heads, and the usual names of its base model.
_WHOLE = {
    *("model", "base_model", "pretrained_model", "lm_head", "embed_out", "score", "classifier", "v_head"),
    *("qa_outputs", "value_head", "tok_embeddings", "output"),
}
# The top-level names of a base model.
_BODY = {
    *(
        "layers",
        "embed_tokens",
        "wte",
        "h",
        "blocks",
        "word_embeddings",
        "embed_in",
        "embeddings",
        "encoder",
        "decoder",
    ),
    *(
        "language_model",
        "text_model",
        "visual",
        "vision_tower",
        "vision_model",
        "transformer",
        "gpt_neox",
        "backbone",
    ),
}
# The names that transformers' own classes give their base model. They are kept if only a base model is below them.
_OWN = {"model", "base_model"} | _BODY
_AROUND = {"state_dict", "app", MODULE, *WRAPPERS}
_ATTRIBUTES = {"net", "network", "llm", "lm", "hf_model"}
_FIRST_ROLES = {"actor", "policy", "student"}
_OTHER_ROLES = {
    *("critic", "value", "ema", "swa", "shadow", "averaged", "ref", "reference", "teacher", "reward", "rm"),
    *("target", "old", "frozen", "initial", "discriminator"),
}
_FILLERS = {"model", "net", "network", "module", "policy", "state", "dict", "weights", "params"}


class Chosen(NamedTuple):
    """The tensors of the model.

    names: stored name -> the model's own name.
    why_not: stored name -> the reason why the entry does not belong to the model.
    """

    names: dict[str, str]
    why_not: dict[str, str]
    notes: tuple[str, ...]


def choose_model(
    paths: Mapping[str, Keys], shapes: Mapping[str, tuple[int, ...] | None], where: Path
) -> Chosen:
    """Separate the model's tensors from other entries, and remove their prefix.

    Args:
        paths: stored name -> the keys that lead to it.
        shapes: stored name -> its shape; None for an entry that is not a tensor.
        where: the checkpoint's folder, for error messages.

    Raises:
        CkptconvError: no tensors of a model are stored, several models cannot be ranked by name, or a tensor does not belong
            to a known part.
    """
    return choose_root(paths, shapes, where, states_of(paths))


def choose_root(
    paths: Mapping[str, Keys],
    shapes: Mapping[str, tuple[int, ...] | None],
    where: Path,
    why_not: dict[str, str],
) -> Chosen:
    """Separate one model's names from those of the models next to it, and remove their prefix.

    Args:
        paths: Stored name -> the keys that lead to it; one key where the trainer's state dict is flat.
        shapes: Stored name -> its shape, None for what is not a tensor.
        where: The checkpoint's folder, for messages.
        why_not: Stored name -> why it is not part of any model.

    Raises:
        CkptconvError: several models are stored, and their names do not rank them.
    """
    why_not = dict(why_not)
    tensors = [name for name in paths if name not in why_not and shapes[name] is not None]
    keys = {
        ".".join(map(str, paths[name][:depth])) + "."
        for name in tensors
        for depth in range(1, len(paths[name]))
    }
    notes: list[str] = []
    prefix = ""
    while True:
        prefix = _peel(tensors, prefix, keys)
        parts = _parts(tensors, prefix, keys)
        if not parts:
            break
        first = _first(parts, prefix, where)
        _leave_out(parts, first, why_not, shapes, where, notes)
        prefix, tensors = f"{prefix}{first}." if first else prefix, parts[first]
        if not first:
            break
    if not tensors:
        raise _no_model(why_not, where)
    kept = {name[len(prefix) :].split(".")[0] for name in tensors}
    if len(kept) == 1 and not kept & _OWN:
        notes.append(f"every name begins with {kept.pop()!r}, and keeps it")
    return Chosen({name: name[len(prefix) :] for name in tensors}, why_not, tuple(notes))


def _peel(names: Sequence[str], prefix: str, keys: Collection[str]) -> str:
    """Extend the prefix by the segments that all names share and that do not belong to the model's names."""
    while True:
        firsts, below = _below(names, prefix)
        if len(firsts) != 1 or "" in below:
            return prefix
        (first,) = firsts
        if f"{prefix}{first}." not in keys and not _wraps(first, below):
            return prefix
        prefix += f"{first}."


def _wraps(first: str, below: Collection[str]) -> bool:
    """Return True if a segment that all names share is a wrapper of the model; the segments after it decide.

    A head or a `model` below it shows a wrapper. transformers' own classes name their base model `model.layers`, so
    without a head that segment is kept. A trainer's attribute (`net.layers`) is removed.
    """
    if first == "base_model":  # PEFT's prefix, which the LoRA rules read
        return False
    if first in _AROUND or _WHOLE & set(below):
        return True
    return bool(first in _ATTRIBUTES or _role(first)) and bool(_BODY & set(below))


def _parts(names: Sequence[str], prefix: str, keys: Collection[str]) -> dict[str, list[str]]:
    """Return segment -> names for the models under a prefix; "" has the other names. The result for one model is {}."""
    groups: dict[str, list[str]] = {}
    for name in names:
        groups.setdefault(name[len(prefix) :].split(".")[0], []).append(name)
    parts = {}
    for first, group in groups.items():
        start = f"{prefix}{first}."
        role, is_dict = _role(first), start in keys
        apart = is_dict or bool(role) or (first == "model" and _is_whole(group, start))
        if apart and (_is_model(group, start) or (is_dict and role == "other")):
            parts[first] = group
    if not parts:
        return {}
    rest = [name for first, group in groups.items() if first not in parts for name in group]
    return {**parts, "": rest} if rest else parts


def _first(parts: Mapping[str, Sequence[str]], prefix: str, where: Path) -> str:
    """Return the part to convert: the only part, or the only one that is not a copy, a critic or a reference."""
    models = [part for part in parts if part or _is_model(parts[part], prefix)]
    first = [part for part in models if _role(part) != "other"]
    chosen = first if first else models
    if len(chosen) != 1:
        raise CkptconvError(
            "several models are stored, and it is not clear which one to convert",
            where=where,
            found=", ".join(f"{prefix}{part} ({len(parts[part])} tensors)" for part in models),
            hint='save only the one you want: dcp.save({"model": model.state_dict()})',
            kind=Kind.UNSUPPORTED,
        )
    return chosen[0]


def _leave_out(
    parts: Mapping[str, Sequence[str]],
    first: str,
    why_not: dict[str, str],
    shapes: Mapping[str, tuple[int, ...] | None],
    where: Path,
    notes: list[str],
) -> None:
    """Drop the parts that are not chosen, with a reason and a note; refuse parameters that belong to none of the models."""
    for part, names in parts.items():
        if part == first:
            continue
        if not part:
            weights = [
                name for name in names if len(shapes[name] or ()) > 1 or name.endswith((".weight", ".bias"))
            ]
            if weights:
                raise CkptconvError(
                    "some stored parameters do not belong to the model",
                    where=where,
                    found=listed(weights, 4),
                    hint='save only the model: dcp.save({"model": model.state_dict()})',
                )
            notes.append(
                f"also stored but not read: {', '.join(names[:4])}" + (" ..." if len(names) > 4 else "")
            )
        else:
            notes.append(
                f"the model is {first or 'at the top'}; also stored but not read: {part} ({len(names)} tensors)"
            )
        why_not.update(dict.fromkeys(names, f"another model: {part}" if part else "no part of the model"))


def _below(names: Sequence[str], prefix: str) -> tuple[set[str], set[str]]:
    """Return the segments right after the prefix, and the segments after those ("" if a name ends there)."""
    split = [name[len(prefix) :].split(".") for name in names]
    return {keys[0] for keys in split}, {keys[1] if len(keys) > 1 else "" for keys in split}


def _is_model(names: Sequence[str], prefix: str) -> bool:
    return any((_BODY | {"layer"}) & set(name[len(prefix) :].split(".")[:-1]) for name in names)


def _is_whole(names: Sequence[str], prefix: str) -> bool:
    return bool(_WHOLE & {name[len(prefix) :].split(".")[0] for name in names})


def _role(segment: str) -> str:
    """Return "first" for a model that users convert (actor, policy), "other" for one next to it (critic, ema), else ""."""
    words = set(re.findall("[a-z]+", segment.lower()))
    for role, known in (("other", _OTHER_ROLES), ("first", _FIRST_ROLES)):
        if words & known and not words - known - _FILLERS:
            return role
    return ""


def _no_model(why_not: Mapping[str, str], where: Path) -> CkptconvError:
    reasons = sorted(set(why_not.values()))
    return CkptconvError(
        "the checkpoint holds no model tensors",
        where=where,
        found=f"{len(why_not)} entries: {', '.join(reasons)}" if reasons else "nothing",
        hint="name the folder that the model was saved to",
        kind=Kind.NOT_A_CHECKPOINT,
    )
