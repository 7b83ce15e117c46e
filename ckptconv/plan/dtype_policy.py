"""Decides the dtype of every output: one policy for all tensors, and a sentence that reports it.

verl's config.json says float32 because master weights are loaded in float32; it does not mean that the model is served in
float32. verl's own merger always writes bfloat16 (verl/model_merger/fsdp_model_merger.py).
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping
from typing import Any, NamedTuple

from ckptconv.errors import CkptconvError, Kind
from ckptconv.models import facts
from ckptconv.plan.records import Filled
from ckptconv.tensors.dtypes import from_text, is_coded, is_float

KEPT = "dtypes unchanged"
_PACKED = ("int8", "uint8", "int32")  # dtypes into which quantized weights are packed


class Typed(NamedTuple):
    """The result of the dtype policy.

    Args:
        dtypes: output name -> dtype.
        sentence: the policy and its reason, for the user.
    """

    dtypes: Mapping[str, str]
    sentence: str


def typed(
    filled: Filled,
    config: Mapping[str, Any] | None,
    policy: str,
    naming: str,
    replaced: Mapping[str, str] | None = None,
) -> Typed:
    """Step 5: give every tensor its dtype.

    Args:
        filled: the model's tensors by final name.
        config: the model's config.json.
        policy: "auto", "keep" or a float dtype. "auto" keeps the dtypes of a model folder (naming "hub").
        naming: whose names the checkpoint's tensors have; see `Checkpoint.naming`.
        replaced: trained name -> the dtype of the base model's weight that it replaces. PEFT trains such copies in
            float32; "auto" writes them in the base model's dtype.
    """
    asked = "keep" if naming == "hub" and policy == "auto" else policy
    wanted, sentence = target((fill.source.dtype for fill in filled.values()), config, asked)
    keep = facts.keeps_fp32(dict(config or {}), wanted) if policy == "auto" and wanted else ()
    dtypes = {
        name: of(fill.source.dtype, wanted, policy, (name, *fill.trained), keep)
        for name, fill in filled.items()
    }
    if policy == "auto" and replaced:
        dtypes |= {
            name: replaced[fill.trained[0]]
            for name, fill in filled.items()
            if fill.trained[0] in replaced and is_float(replaced[fill.trained[0]])
        }
        sentence = sentence if wanted else "what the adapter holds whole gets the base model's dtype"
    kept = all(dtypes[name] == fill.source.dtype for name, fill in filled.items())
    return Typed(dtypes, KEPT if kept else sentence)


def target(stored: Iterable[str], config: Mapping[str, Any] | None, policy: str) -> tuple[str, str]:
    """Decide the dtype to which float master weights are cast.

    Args:
        stored: the dtypes of the stored tensors.
        config: the model's config.json; None if it is not known.
        policy: "auto", "keep" or a float dtype.

    Returns:
        The dtype ("" for no cast), and the sentence with the reason.

    Raises:
        CkptconvError: quantized weights would be cast, which without their scales would change their values.
    """
    stored = set(stored)
    if policy not in ("auto", "keep"):
        _refuse_quantized(stored, config or {}, policy)
    if policy == "keep" or (policy == "auto" and "float32" not in stored):
        return "", KEPT
    if policy != "auto":
        return policy, f"all floats → {policy}, as requested"
    text = (config or {}).get("dtype") or (config or {}).get("torch_dtype")
    wanted = from_text(text) if text else None
    if wanted in (None, "float32"):
        why = "float32 in config.json is the dtype of training" if wanted else "config.json gives no dtype"
        return "bfloat16", f"float32 → bfloat16 ({why}; use --dtype keep to keep float32)"
    return str(wanted), f"float32 → {wanted}, the dtype in config.json"


def _refuse_quantized(stored: set[str], config: Mapping[str, Any], policy: str) -> None:
    coded = {dtype for dtype in stored if is_coded(dtype)}
    packed = stored.intersection(_PACKED) if config.get("quantization_config") else set()
    if coded or packed:
        raise CkptconvError(
            f"quantized weights cannot be cast to {policy}: only their scales make them numbers",
            found=", ".join(sorted(coded | packed)),
            wanted="--dtype auto or keep, which copy them as they are",
            hint="dequantize the model first, with the library that quantized it",
            kind=Kind.UNSUPPORTED,
        )


def of(stored: str, wanted: str, policy: str, names: tuple[str, ...], keep: tuple[str, ...]) -> str:
    """The dtype in which one tensor is written.

    Args:
        stored: its stored dtype.
        wanted: the dtype from `target`.
        policy: "auto", "keep" or a float dtype.
        names: its names, final and trained.
        keep: name parts of the tensors that the model keeps in float32.
    """
    if not wanted or not is_float(stored):
        return stored
    if policy != "auto":
        return wanted
    if stored != "float32" or any(facts.is_kept(name, keep) for name in names):
        return stored
    return wanted


def most(sizes: Iterable[tuple[str, int]]) -> str:
    """The float dtype with the most bytes, from (dtype, bytes) pairs; float32 if there is none."""
    count: Counter[str] = Counter()
    for dtype, nbytes in sizes:
        if is_float(dtype):
            count[dtype] += nbytes
    return count.most_common(1)[0][0] if count else "float32"
