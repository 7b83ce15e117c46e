"""Checkpoint + what the model is + options -> Plan: every output byte, where it comes from, and what is left out.

All that can be wrong is found here, from metadata, before a byte is written. The ledger closes the plan.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field
from math import prod
from typing import Any

from ckptconv import layout, ledger
from ckptconv.checkpoint import Checkpoint
from ckptconv.compute import Fuse, Source, views_of
from ckptconv.dtypes import FLOATS, from_text, is_float, itemsize
from ckptconv.errors import CkptconvError
from ckptconv.models import facts, lora
from ckptconv.models.config import check_fit, corrected
from ckptconv.models.hub_names import to_hub
from ckptconv.read import same_values
from ckptconv.view import Shape, View, check_tiling

ADAPTER_FOLDER = "lora_adapter"


@dataclass(frozen=True, slots=True)
class Options:
    """What a user may choose. None and "auto" mean: found from the files, and said.

    dtype: "auto", "keep" or a float dtype. lora: "merge", "adapter" or "both". layout: "hub" or "module".
    """

    dtype: str = "auto"
    lora: str | None = None
    lora_alpha: float | None = None
    layout: str = "hub"
    max_shard_size: int | str = "5GB"


@dataclass(frozen=True, slots=True)
class Output:
    """One tensor of the model: its label shape and dtype, what fills it, and the stored names that is."""

    name: str
    shape: Shape
    dtype: str
    source: Source
    origins: tuple[str, ...]

    @property
    def nbytes(self) -> int:
        return prod(self.shape) * itemsize(self.dtype)


@dataclass(frozen=True, slots=True)
class Dropped:
    """Stored bytes that no output holds, and why."""

    name: str
    nbytes: int
    reason: str


@dataclass(frozen=True, slots=True)
class Plan:
    """All that a merge will write. files and outputs are keyed alike; texts: small files by name."""

    checkpoint: Checkpoint
    outputs: dict[
        str, Output
    ]  # by tensor name; an adapter beside the model has "lora_adapter/" before its names
    files: tuple[layout.OutFile, ...]
    dropped: tuple[Dropped, ...]
    config: dict[str, Any] | None
    texts: dict[str, Any] = field(default_factory=dict)
    notes: tuple[str, ...] = ()
    dtype_said: str = ""
    rules: tuple[str, ...] = ()
    balanced: int = 0
    is_adapter: bool = False

    @property
    def nbytes(self) -> int:
        return sum(file.nbytes for file in self.files)

    @property
    def casts(self) -> list[tuple[str, str, int, int]]:
        """(stored dtype, output dtype, tensors, output bytes), largest first."""
        count: Counter[tuple[str, str]] = Counter()
        size: Counter[tuple[str, str]] = Counter()
        for output in self.outputs.values():
            count[output.source.dtype, output.dtype] += 1
            size[output.source.dtype, output.dtype] += output.nbytes
        return [(a, b, count[a, b], n) for (a, b), n in size.most_common()]


def make_plan(
    checkpoint: Checkpoint, config: dict[str, Any] | None, options: Options, base: Checkpoint | None = None
) -> Plan:
    """The plan for a merge. config: the model's config.json. base: a model folder for a checkpoint that holds LoRA alone.

    Raises CkptconvError where the checkpoint cannot become what is asked.
    """
    views = {name: tensor.view for name, tensor in checkpoint.tensors.items()}
    stored = dict(views)
    parts = lora.separate(views)
    notes = list(checkpoint.notes)
    meta = checkpoint.extras.get("lora") or {}
    mode = _lora_mode(parts, options, base, notes)
    weights, origin = parts.weights, parts.origin
    if base is not None and parts.factors:
        weights = {name: tensor.view for name, tensor in base.tensors.items()}
        origin = {name: name for name in weights}
        stored.update({f"base: {name}": view for name, view in weights.items()})
    dropped = _replicas(checkpoint)
    outputs: dict[str, Output] = {}
    rules: tuple[str, ...] = ()
    said = ""
    if mode != "adapter":
        if base is None:
            weights = _tie(weights, config, origin, dropped, notes)
        named, rules = _rename(weights, config or {}, options.layout if base is None else "module")
        fused = _fuse(named, parts, mode, meta, options)
        target, said = _target_dtype(checkpoint, config, options)
        keep = facts.keeps_fp32(config or {}, target) if options.dtype == "auto" and target else ()
        for name, (source, shape, trained) in fused.items():
            dtype = _dtype_of(source.dtype, target, options.dtype, (name, *trained), keep)
            outputs[name] = Output(name, shape, dtype, source, tuple(origin.get(t, t) for t in trained))
        if config is not None:
            check_fit(config, {name: output.shape for name, output in outputs.items()}, checkpoint.root)
    files = layout.shards(outputs, options.max_shard_size) if outputs else ()
    texts: dict[str, Any] = {}
    if mode in ("adapter", "both") and parts.factors:
        folder = f"{ADAPTER_FOLDER}/" if mode == "both" else ""
        adapter = {f"{folder}{name}": output for name, output in _adapter(parts, options).items()}
        texts[f"{folder}adapter_config.json"] = lora.adapter_config(
            parts.factors, meta, options.lora_alpha, (config or {}).get("_name_or_path") or None
        )
        files += (layout.out_file(f"{folder}adapter_model.safetensors", adapter),)
        outputs.update(adapter)
    if mode == "adapter":
        dropped += [
            Dropped(origin[n], v.nbytes, "base weight, not part of an adapter")
            for n, v in parts.weights.items()
        ]
    if not outputs:
        raise CkptconvError("the checkpoint holds no model tensors", where=checkpoint.root)
    if config is not None and mode != "adapter":
        config = corrected(config, {n: o.shape for n, o in outputs.items()}, _main_dtype(outputs), notes)
    return Plan(
        checkpoint=checkpoint,
        outputs=outputs,
        files=files,
        dropped=tuple(dropped),
        config=None if mode == "adapter" else config,
        texts=texts,
        notes=tuple(notes),
        dtype_said=said,
        rules=rules,
        balanced=_balance(stored, outputs, dropped, views, mode),
        is_adapter=mode == "adapter",
    )


def _lora_mode(parts: lora.Separated, options: Options, base: Checkpoint | None, notes: list[str]) -> str:
    """ "merge", "adapter", "both", or "none" where no LoRA is stored."""
    if not parts.factors:
        if options.lora in ("adapter", "both"):
            raise CkptconvError("no LoRA tensors are in this checkpoint", hint="leave --lora away")
        if base is not None:
            raise CkptconvError(
                "--base is for checkpoints that hold LoRA tensors alone", hint="leave --base away"
            )
        return "none"
    if not parts.weights and base is None:
        if options.lora in ("merge", "both"):
            raise CkptconvError(
                "the checkpoint holds LoRA tensors alone", hint="name the base model's folder: --base DIR"
            )
        if options.lora is None:
            notes.append(
                "LoRA tensors alone are stored: writing a PEFT adapter (with --base DIR: the merged model)"
            )
        return "adapter"
    if parts.weights and base is not None:
        raise CkptconvError("the checkpoint holds its base weights itself", hint="leave --base away")
    if options.lora is None:
        notes.append(
            f"LoRA on {len(parts.factors)} modules is merged into the weights (--lora adapter exports it instead)"
        )
    return options.lora or "merge"


def _replicas(checkpoint: Checkpoint) -> list[Dropped]:
    count = sum(len(tensor.replicas) for tensor in checkpoint.tensors.values())
    nbytes = sum(tensor.replica_bytes for tensor in checkpoint.tensors.values())
    return [Dropped(f"{count} copies", nbytes, "replicas on other ranks")] if count else []


def _tie(
    weights: dict[str, View],
    config: dict[str, Any] | None,
    origin: dict[str, str],
    dropped: list[Dropped],
    notes: list[str],
) -> dict[str, View]:
    """Write a tied head once if its bytes are the embedding's; if they differ, both, and the config is corrected."""
    if config is None:
        return weights
    says = facts.says_tied(config)
    kept = dict(weights)
    for target, source in facts.tied_pairs(config, weights):
        if not says:
            continue
        if same_values(weights[target], weights[source]):
            dropped.append(
                Dropped(origin.get(target, target), weights[target].nbytes, f"tied: equal to {source}")
            )
            del kept[target]
        else:
            notes.append(
                f"{target} differs from {source} although the config ties them: "
                "both are written, tie_word_embeddings is set to false"
            )
            config["tie_word_embeddings"] = False
            if isinstance(config.get("text_config"), dict) and "tie_word_embeddings" in config["text_config"]:
                config["text_config"]["tie_word_embeddings"] = False
    return kept


_Filled = dict[str, tuple[Source, Shape, tuple[str, ...]]]


def _rename(
    weights: Mapping[str, View], config: dict[str, Any], names: str
) -> tuple[_Filled, tuple[str, ...]]:
    if names == "module":
        return {name: (view, view.shape, (name,)) for name, view in weights.items()}, ()
    renamed = to_hub(weights, config)
    return {n: (t.value, t.shape, t.sources) for n, t in renamed.tensors.items()}, tuple(renamed.rules)


def _fuse(
    named: _Filled, parts: lora.Separated, mode: str, meta: Mapping[str, Any], options: Options
) -> _Filled:
    if mode not in ("merge", "both"):
        return named
    fused = dict(named)
    by_source = {sources[0]: name for name, (_, _, sources) in named.items() if len(sources) == 1}
    for factors in parts.factors:
        name = by_source.get(factors.weight)
        if name is None:
            raise CkptconvError(f"LoRA on {factors.module}, but the model has no weight of that name")
        source, shape, origins = named[name]
        left, right = factors.sides()
        if (
            (left.shape[0], right.shape[1]) != source.shape
            or not isinstance(source, View)
            or shape != source.shape
        ):
            raise CkptconvError(
                f"LoRA on {factors.module} does not fit its weight",
                found=f"{left.shape[0]} × {right.shape[1]}",
                wanted=" × ".join(map(str, source.shape)),
            )
        scale = lora.scale(factors, meta, options.lora_alpha)
        fused[name] = (Fuse(source, left, right, scale), shape, (*origins, factors.a_name, factors.b_name))
    return fused


def _adapter(parts: lora.Separated, options: Options) -> dict[str, Output]:
    forced = options.dtype if options.dtype in FLOATS else None
    found = {}
    for factors in parts.factors:
        named = lora.adapter_names(factors)
        for (name, view), origin in zip(named, (factors.a_name, factors.b_name), strict=True):
            dtype = forced if forced and is_float(view.dtype) else view.dtype
            found[name] = Output(name, view.shape, dtype, view, (origin,))
    return found


def _target_dtype(checkpoint: Checkpoint, config: dict[str, Any] | None, options: Options) -> tuple[str, str]:
    """The dtype that float32 masters become ("" for none), and the sentence that says why."""
    if options.dtype == "keep":
        return "", "dtypes are kept as stored"
    if options.dtype != "auto":
        return options.dtype, f"floats become {options.dtype}, as asked"
    if checkpoint.backend == "huggingface":
        return "", "dtypes are kept as stored"
    text = (config or {}).get("dtype") or (config or {}).get("torch_dtype")
    wanted = from_text(text) if text else None
    if wanted in (None, "float32"):
        why = "the config's float32 is how masters are loaded" if wanted else "the config names no dtype"
        return "bfloat16", f"float32 masters become bfloat16 ({why}; --dtype keep leaves them)"
    return str(wanted), f"float32 masters become {wanted}, the config's dtype"


def _dtype_of(stored: str, target: str, policy: str, names: tuple[str, ...], keep: tuple[str, ...]) -> str:
    if not target or not is_float(stored):
        return stored
    if policy != "auto":
        return target
    if stored != "float32" or any(part in name for part in keep for name in names):
        return stored
    return target


def _main_dtype(outputs: Mapping[str, Output]) -> str:
    """The dtype that most of the model's floats have."""
    sizes: Counter[str] = Counter()
    for output in outputs.values():
        if is_float(output.dtype):
            sizes[output.dtype] += output.nbytes
    return sizes.most_common(1)[0][0] if sizes else "float32"


def _balance(
    stored: Mapping[str, View],
    outputs: Mapping[str, Output],
    dropped: list[Dropped],
    views: Mapping[str, View],
    mode: str,
) -> int:
    """Close the ledger; every output is tiled exactly once and every stored element is used or dropped."""
    used: list[View] = []
    for output in outputs.values():
        made_of = views_of(output.source)
        for view in made_of:
            check_tiling(view.shape, view.chunks)
        if prod(output.shape) != output.source.numel:
            raise CkptconvError(f"{output.name} would have another number of elements than its source")
        # With "both", a LoRA factor goes into the weight and into the adapter; the adapter is what accounts for it.
        used += made_of[:1] if mode == "both" else made_of
    names = {item.name for item in dropped}
    gone = [view for name, view in views.items() if name in names]
    return ledger.check_balance(stored.values(), used, gone)
