"""Separates the stored tensors into base weights and LoRA factors, by their names.

PEFT: `base_model.model.X.base_layer.weight` is X.weight. `X.lora_A.NAME.weight` (r, in) and `X.lora_B.NAME.weight` (out, r)
update it by B @ A * alpha / r; `lora_embedding_A` (r, vocab) and `lora_embedding_B` (dim, r) by the transposed product;
`lora_magnitude_vector` is DoRA's. Sources: peft/tuners/lora/layer.py, peft/utils/save_and_load.py.
Megatron-Bridge: `X.adapter.linear_in.weight` (r, in) and `X.adapter.linear_out.weight` (out, r); the base weight is X or
X.to_wrap. Its canonical LoRA has adapter_q, _k, _v, _gate and _up. Source: megatron/bridge/peft/adapter_wrapper.py.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any, NamedTuple

from ckptconv.errors import CkptconvError, Kind
from ckptconv.models.lora.factors import PREFIX, Factors, NamedView, paired
from ckptconv.models.lora.kinds import check_name, is_adapter_config
from ckptconv.models.lora.tokens import Tokens, rows_of_tokens
from ckptconv.tensors.names import numbered_parts
from ckptconv.tensors.view import View

_NAME = r"(?:\.(?P<adapter>(?!weight$|bias$)[^.]+))?"
_PEFT = re.compile(
    rf"^(?P<module>.+)\.lora_(?P<kind>embedding_|magnitude_vector)?(?P<side>[AB])?{_NAME}(?P<tail>\.weight|\.bias)?$"
)
_MEGATRON = re.compile(
    r"^(?P<module>.+)\.adapter(?:\.adapter_(?P<part>q|k|v|gate|up))?\.linear_(?P<side>in|out)\.weight$"
)
_TOKENS = re.compile(rf"^(?P<module>.+)\.token_adapter\.trainable_tokens_delta{_NAME}$")
_SAVED = re.compile(
    r"\.modules_to_save\.(?:[^.]+\.)?"
)  # a resized embedding's copy has no adapter name in it


_NUMBERED = re.compile(r"\.\d+\..*weight$")


class Separated(NamedTuple):
    """A state dict, separated into base weights and updates.

    Args:
        weights: bare name -> weight.
        factors: the LoRA layers.
        origin: bare name -> stored name.
        trained: bare names of weights that replace those of the base model: modules that PEFT trained completely
            (modules_to_save), biases, resized embeddings, and copies of adapted embeddings and heads.
        replaced: (stored name, elements) of older copies of these.
        holds_base: the checkpoint also has the weights that the factors update.
        tokens: single rows of embeddings that were trained.
        twice: (one, the other) of magnitudes that are stored under two names. PEFT writes those of a resized embedding whose
            target is a path with and without `.weight` (peft/utils/save_and_load.py, get_peft_model_state_dict).
    """

    weights: dict[str, View]
    factors: tuple[Factors, ...]
    origin: dict[str, str]
    trained: tuple[str, ...] = ()
    replaced: tuple[NamedView, ...] = ()
    holds_base: bool = False
    tokens: tuple[Tokens, ...] = ()
    twice: tuple[tuple[NamedView, NamedView], ...] = ()

    @property
    def stacks(self) -> tuple[Factors, ...]:
        """The factors of stacked expert parameters."""
        return tuple(each for each in self.factors if each.parameters)


@dataclass
class _Sorted:
    """Stored tensors by their kind. A weight may have up to three copies.

    Args:
        halves: (module, part, adapter) -> side -> tensor.
        adapters: the names of the adapters, in order.
        tokens: bare name of a weight -> its trained rows.
        weights: bare name -> the weight under its own name.
        originals: bare name -> the weight before training (original_module).
        saved: bare name -> the weight that was trained completely (modules_to_save).
        twice: magnitudes that are stored under two names.
    """

    halves: dict[tuple[str, str, str], dict[str, NamedView]] = field(default_factory=dict)
    adapters: dict[str, None] = field(default_factory=dict)
    tokens: dict[str, NamedView] = field(default_factory=dict)
    weights: dict[str, NamedView] = field(default_factory=dict)
    originals: dict[str, NamedView] = field(default_factory=dict)
    saved: dict[str, NamedView] = field(default_factory=dict)
    twice: list[tuple[NamedView, NamedView]] = field(default_factory=list)


def is_of_an_adapter(name: str) -> bool:
    """True for a tensor that only an adapter has: a factor, trained rows, or a module in modules_to_save."""
    return _side(name) is not None or _SAVED.search(name) is not None or _TOKENS.match(name) is not None


def saved_factor(name: str) -> str:
    """A factor's name as PEFT saves it: with PEFT's prefix, and without the adapter's name."""
    match = _PEFT.match(name)
    if match and match["adapter"]:
        name = name[: match.start("adapter") - 1] + name[match.end("adapter") :]
    return name if name.startswith(PREFIX) else f"{PREFIX}{name}"


def separate(
    tensors: Mapping[str, View], meta: Mapping[str, Any] | None = None, is_folder: bool = False
) -> Separated:
    """Separate base weights and LoRA factors. A state dict without LoRA is all weights.

    Args:
        tensors: stored name -> tensor.
        meta: the known LoRA settings. With PEFT's own config, the tensors are an adapter, which may also hold some of the
            weights that it updates: resized embeddings, and the base_layer of an adapted head.
        is_folder: the tensors are those of PEFT's adapter_model.safetensors, which never holds the base model.

    Raises:
        CkptconvError: there are several adapters, only one of A and B, or an adapter that is not LoRA.
    """
    meta, found = meta or {}, _Sorted()
    plain: set[str] = set()  # kinds of names that are no adapter's
    for name, view in tensors.items():
        kind, _ = numbered_parts(name)
        if kind in plain and name not in found.weights:
            found.weights[name] = (name, view)
            continue
        _sort(name, view, found)
        if name in found.weights:
            plain.add(kind)
    if len(found.adapters) > 1:
        raise CkptconvError(
            "more than one adapter is stored",
            found=", ".join(sorted(found.adapters)),
            hint="save one of them",
            kind=Kind.UNSUPPORTED,
        )
    # Of PEFT's three copies of a resized embedding, the plain one and the one in modules_to_save are trained.
    stale = [found.originals[bare] for bare in found.originals if bare in found.weights]
    found.weights = {**found.originals, **found.weights}
    every = {bare: view for bare, (_, view) in {**found.weights, **found.saved}.items()}
    factors = tuple(
        paired(_bare(module), part, sides, _parameters(_bare(module), every, meta))
        for (module, part, _), sides in found.halves.items()
    )
    based = [bool({each.weight, *each.parameters} & every.keys()) for each in factors]
    copies = is_adapter_config(meta) and not _has_layers(found.weights, factors)
    alone = is_folder or (not all(based) if copies else not any(based))
    adapted = bool(factors or found.tokens)
    stale += [found.weights[bare] for bare in found.saved if bare in found.weights]
    if (adapted or is_folder) and alone:
        _check_trained(factors, found.weights)
        found.saved, found.weights = {**found.weights, **found.saved}, {}
    tokens = rows_of_tokens(found.tokens, meta, every)
    return Separated(
        every,
        factors,
        {bare: name for bare, (name, _) in {**found.weights, **found.saved}.items()},
        tuple(found.saved),
        tuple(stale),
        holds_base=adapted and not alone,
        tokens=tokens,
        twice=tuple(found.twice),
    )


def _has_layers(weights: Iterable[str], factors: Iterable[Factors]) -> bool:
    """True if numbered layers hold weights that no factor updates: the base model, and not copies of single weights."""
    updated = {each.weight for each in factors}
    return any(_NUMBERED.search(name) and name not in updated for name in weights)


def _check_trained(factors: Iterable[Factors], weights: Mapping[str, NamedView]) -> None:
    """Refuse other parameters of adapted layers, if the weights that the factors update are not stored."""
    modules = {each.module for each in factors}
    for bare, (name, _) in weights.items():
        module, _, leaf = bare.rpartition(".")
        if module in modules and leaf not in ("weight", "bias"):
            raise CkptconvError(
                f"{name} is stored with LoRA tensors, but the weight that they update is not",
                where=module,
                kind=Kind.INCOMPLETE,
            )


def _sort(name: str, view: View, found: _Sorted) -> None:
    """Add one stored tensor to its group."""
    side = _side(name)
    if side is not None:
        module, part, kind, adapter = side
        found.adapters[adapter] = None
        sides = found.halves.setdefault((module, part, adapter), {})
        if kind == "m" and kind in sides:
            found.twice.append((sides[kind], (name, view)))
            return
        if kind in sides:
            raise CkptconvError(
                "a LoRA tensor is stored twice", found=f"{sides[kind][0]} and {name}", kind=Kind.DAMAGED
            )
        sides[kind] = (name, view)
        return
    tokens = _TOKENS.match(name)
    if tokens is not None:
        found.tokens[f"{_bare(tokens['module'])}.weight"] = (name, view)
        found.adapters[tokens["adapter"] or next(iter(found.adapters), "default")] = None
        return
    check_name(name)
    bare = _bare(name)
    saved = _SAVED.sub(".", bare)
    original = bare.replace(".original_module.", ".")
    if saved != bare:
        group, bare = found.saved, saved
    elif original != bare:
        group, bare = found.originals, original
    else:
        group = found.weights
    if bare in group:
        raise CkptconvError(
            f"two stored tensors are both {bare}", found=f"{group[bare][0]} and {name}", kind=Kind.DAMAGED
        )
    group[bare] = (name, view)


def may_be_factor(name: str) -> bool:
    """False for a name that no LoRA factor has; a quick look before `separate`."""
    return ".lora_" in name or ".adapter." in name


def _side(name: str) -> tuple[str, str, str, str] | None:
    """(stored module name, part, side, adapter's name) of a factor; None for any other tensor.

    The side is A, B, eA, eB (embeddings), m (magnitude) or bias.
    """
    match = _MEGATRON.match(name)
    if match:
        return match["module"], match["part"] or "", "A" if match["side"] == "in" else "B", "default"
    match = _PEFT.match(name)
    if match is None or (match["kind"] == "magnitude_vector") == (match["side"] is not None):
        return None
    side = "m" if match["side"] is None else ("e" if match["kind"] else "") + match["side"]
    if match["tail"] == ".bias":
        if side != "B":
            return None
        side = "bias"
    return match["module"], "", side, match["adapter"] or "default"


def _bare(name: str) -> str:
    """The name without PEFT's and Megatron-Bridge's wrappers."""
    name = name.removeprefix(PREFIX).replace(".to_wrap.", ".").replace(".token_adapter.base_layer.", ".")
    # The wrappers of expert parameters are nested.
    while ".base_layer." in name or name.endswith(".base_layer"):
        name = name.replace(".base_layer.", ".").removesuffix(".base_layer")
    return name


def _parameters(module: str, weights: Mapping[str, View], meta: Mapping[str, Any]) -> tuple[str, ...]:
    """The stacked parameters of a module, which PEFT adapts with target_parameters; () for an ordinary layer.

    A target may lack its module: for target_modules that transformers 5 holds as one parameter, PEFT writes `down_proj`
    (peft/utils/transformers_weight_conversion.py). It is for the modules that no other target names.

    Args:
        module: the module's bare name.
        weights: bare name -> weight.
        meta: the LoRA settings.
    """
    stacked = [
        name for name, view in weights.items() if name.rpartition(".")[0] == module and len(view.shape) == 3
    ]
    targets = meta.get("target_parameters")
    split = [str(target).rpartition(".") for target in targets if target] if isinstance(targets, list) else []
    named = [leaf for parent, _, leaf in split if parent and is_named_by(module, parent)]
    stacked += [f"{module}.{leaf}" for leaf in named if leaf != "weight"]
    if not named and not _is_target(module, meta.get("target_modules")):
        stacked += [f"{module}.{leaf}" for parent, _, leaf in split if not parent]
    return tuple(dict.fromkeys(stacked))


def is_named_by(module: str, target: str) -> bool:
    """True if a target of PEFT is the end of a module's name (peft/tuners/tuners_utils.py, check_target_module_exists)."""
    return module == target or module.endswith(f".{target}")


def _is_target(module: str, targets: Any) -> bool:
    """Whether target_modules names a module: the ends of names, or one regex for whole names."""
    if isinstance(targets, str):
        return re.fullmatch(targets, module) is not None
    return isinstance(targets, list) and any(is_named_by(module, str(target)) for target in targets)
