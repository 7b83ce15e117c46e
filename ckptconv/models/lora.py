"""LoRA keys among trained names: which are base weights, which are updates to them. PEFT's naming.

`base_model.model.X.base_layer.weight` is X.weight; `X.lora_A.NAME.weight` (r, in) and `X.lora_B.NAME.weight` (out, r)
update it by B @ A * alpha / r; `lora_embedding_A` (r, vocab) and `lora_embedding_B` (dim, r) by their transposed
product. Source: peft/tuners/lora/layer.py, `get_delta_weight`; peft/utils/save_and_load.py for the saved names.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from math import inf, sqrt
from typing import Any

from ckptconv.errors import CkptconvError
from ckptconv.view import View, permute

_PREFIX = "base_model.model."
_FACTOR = re.compile(
    r"^(?P<module>.+)\.lora_(?P<kind>embedding_)?(?P<side>[AB])(?:\.(?P<adapter>[^.]+))?(?P<tail>\.weight)?$"
)
_CONV1D = ("gpt2", "openai-gpt", "imagegpt", "decision_transformer")  # transformers.pytorch_utils.Conv1D
_OTHER = re.compile(r"\.lora_|lora_magnitude_vector|\.adapter_")


@dataclass(frozen=True, slots=True)
class Factors:
    """A and B of one module. embedding: they are stored transposed to the weight."""

    module: str
    a: View
    b: View
    a_name: str
    b_name: str
    embedding: bool

    @property
    def rank(self) -> int:
        return self.a.shape[0]

    @property
    def weight(self) -> str:
        return f"{self.module}.weight"

    def sides(self, fan_in_fan_out: bool) -> tuple[View, View]:
        """left (rows, r) and right (r, columns), so that the update is scale * left @ right.

        fan_in_fan_out: the weight is (in, out), as GPT-2's Conv1D has it.
        """
        if self.embedding or fan_in_fan_out:
            return permute(self.a, (1, 0)), permute(self.b, (1, 0))
        return self.b, self.a


@dataclass(frozen=True, slots=True)
class Separated:
    """A state dict taken apart: base weights under their own names, and the updates.

    origin: new name -> stored name. trained: weights that PEFT trained whole (modules_to_save); replaced: the
    originals of those, by stored name.
    """

    weights: dict[str, View]
    factors: tuple[Factors, ...]
    origin: dict[str, str]
    trained: tuple[str, ...] = ()
    replaced: tuple[tuple[str, View], ...] = ()


def separate(tensors: Mapping[str, View]) -> Separated:
    """Take a PEFT-wrapped state dict apart; one without LoRA keys comes back as it is.

    Raises CkptconvError for two adapters at once, a lonely A or B, and kinds that are not plain LoRA.
    """
    halves: dict[str, dict[str, tuple[str, View]]] = {}
    adapters: set[str] = set()
    weights: dict[str, View] = {}
    origin: dict[str, str] = {}
    saved: dict[str, tuple[str, View]] = {}
    for name, view in tensors.items():
        match = _FACTOR.match(name)
        if match:
            module = _bare(match["module"])
            side = ("e" if match["kind"] else "") + match["side"]
            adapters.add(match["adapter"] or "default")
            halves.setdefault(module, {})[side] = (name, view)
        elif _OTHER.search(name):
            raise CkptconvError(
                f"{name} is an adapter of a kind that is not plain LoRA", hint="merge it in PEFT first"
            )
        else:
            bare, is_saved = _saved_module(_bare(name))
            if bare in (saved if is_saved else weights):
                first = saved[bare][0] if is_saved else origin[bare]
                raise CkptconvError(f"two stored tensors are both {bare}", found=f"{first} and {name}")
            if is_saved:
                saved[bare] = name, view
            else:
                weights[bare], origin[bare] = view, name
    if len(adapters) > 1:
        raise CkptconvError(
            "more than one adapter is stored", found=", ".join(sorted(adapters)), hint="save one of them"
        )
    replaced = tuple((origin[bare], weights[bare]) for bare in saved if bare in weights)
    for bare, (name, view) in saved.items():
        weights[bare], origin[bare] = view, name
    pairs = tuple(_pair(module, found) for module, found in halves.items())
    return Separated(weights, pairs, origin, tuple(saved), replaced)


def scale(factors: Factors, meta: Mapping[str, Any], alpha: float | None) -> float:
    """alpha / r (or alpha / sqrt(r) for rsLoRA). alpha: what the user said; otherwise the metadata must say it."""
    rank = factors.rank
    if alpha is None:
        alpha = _of_module(meta.get("alpha_pattern"), factors.module, meta.get("lora_alpha"))
        stated = _of_module(meta.get("rank_pattern"), factors.module, meta.get("r"))
        if isinstance(stated, int) and stated > 0 and stated != rank:
            raise CkptconvError(
                "the LoRA metadata does not belong to these tensors",
                found=f"r = {rank} in {factors.a_name}",
                wanted=f"r = {stated}",
                hint="say the alpha yourself: --lora-alpha N",
            )
    if not isinstance(alpha, int | float) or isinstance(alpha, bool) or not 0 < alpha < inf:
        raise CkptconvError(
            "LoRA tensors are there, but their alpha is not known",
            found="no lora_alpha above 0 in lora_train_meta.json or adapter_config.json",
            hint="say it: --lora-alpha N (the training configuration has it)",
        )
    return alpha / (sqrt(rank) if meta.get("use_rslora") else rank)


def is_fan_in_fan_out(meta: Mapping[str, Any], config: Mapping[str, Any]) -> bool:
    """True where weights are (in, out): what PEFT's config says, and the model types built of Conv1D."""
    return bool(meta.get("fan_in_fan_out")) or config.get("model_type") in _CONV1D


def _of_module(patterns: Any, module: str, default: Any) -> Any:
    """What a rank_pattern or alpha_pattern says of a module (peft/utils/other.py, get_pattern_key), or the default."""
    for pattern, value in patterns.items() if isinstance(patterns, dict) else ():
        if re.match(rf"(?:.*\.)?(?:{pattern})$", module):
            return value
    return default


def adapter_config(
    parts: Separated, meta: Mapping[str, Any], alpha: float | None, base: str | None
) -> dict[str, Any]:
    """PEFT's adapter_config.json for exported factors."""
    factors = parts.factors
    ranks = {f.rank for f in factors}
    if len(ranks) != 1 and not meta.get("rank_pattern"):
        raise CkptconvError(
            "LoRA ranks differ between modules and no rank_pattern says how", found=sorted(ranks)
        )
    first = factors[0]
    scale(first, meta, alpha)  # the same refusal when alpha is not known
    known = {
        key: value for key, value in meta.items() if key in ("rank_pattern", "alpha_pattern", "use_rslora")
    }
    return {
        "peft_type": "LORA",
        "task_type": meta.get("task_type"),
        "base_model_name_or_path": meta.get("base_model_name_or_path") or base,
        "r": meta["r"] if meta.get("rank_pattern") and "r" in meta else first.rank,
        "lora_alpha": alpha if alpha is not None else meta["lora_alpha"],
        "target_modules": sorted({f.module.rsplit(".", 1)[-1] for f in factors}),
        "lora_dropout": 0.0,
        "bias": "none",
        "fan_in_fan_out": bool(meta.get("fan_in_fan_out")),
        "inference_mode": True,
        "init_lora_weights": True,
        "modules_to_save": sorted({name.rsplit(".", 2)[-2] for name in parts.trained}) or None,
        **known,
    }


def saved_name(name: str) -> str:
    """A wholly trained weight (modules_to_save) as PEFT saves it."""
    return f"{_PREFIX}{name}"


def adapter_names(factors: Factors) -> tuple[tuple[str, View], tuple[str, View]]:
    """The two tensors as PEFT saves them: no adapter name in them."""
    stem = f"{_PREFIX}{factors.module}.lora_"
    if factors.embedding:
        return (f"{stem}embedding_A", factors.a), (f"{stem}embedding_B", factors.b)
    return (f"{stem}A.weight", factors.a), (f"{stem}B.weight", factors.b)


def _bare(name: str) -> str:
    return name.removeprefix(_PREFIX).replace(".base_layer.", ".").removesuffix(".base_layer")


def _saved_module(name: str) -> tuple[str, bool]:
    """modules_to_save keeps a trained copy and the original; the trained copy is the model's."""
    trained = re.sub(r"\.modules_to_save\.[^.]+\.", ".", name)
    return trained.replace(".original_module.", "."), trained != name


def _pair(module: str, found: dict[str, tuple[str, View]]) -> Factors:
    embedding = "eA" in found or "eB" in found
    a, b = ("eA", "eB") if embedding else ("A", "B")
    if set(found) != {a, b}:
        raise CkptconvError(
            f"of the LoRA pair of {module} only one half is stored",
            found=", ".join(n for n, _ in found.values()),
        )
    (a_name, a_view), (b_name, b_view) = found[a], found[b]
    if len(a_view.shape) != 2 or len(b_view.shape) != 2 or a_view.shape[0] != b_view.shape[1]:
        raise CkptconvError(
            f"the LoRA pair of {module} does not fit together",
            found=f"A {list(a_view.shape)}, B {list(b_view.shape)}",
        )
    return Factors(module, a_view, b_view, a_name, b_name, embedding)
