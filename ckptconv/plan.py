"""Checkpoint + what the model is + options -> Plan: every output byte, where it comes from, and what is left out.

All that can be wrong is found here, from metadata, before a byte is written. The ledger closes the plan.
"""

from __future__ import annotations

import copy
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from math import prod
from typing import Any

from ckptconv import dtype_policy, layout, ledger
from ckptconv.checkpoint import Checkpoint
from ckptconv.compute import Fuse, Shift, Source, views_of
from ckptconv.dtypes import FLOATS, is_float, itemsize
from ckptconv.errors import CkptconvError
from ckptconv.models import facts, lora
from ckptconv.models.config import check_fit, corrected
from ckptconv.models.naming import to_hub
from ckptconv.models.unwrap import unwrap
from ckptconv.read import same_values
from ckptconv.tiling import check_tiling
from ckptconv.view import Shape, View

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
    """Stored bytes that no output holds, and why. view: which; None for copies, which the ledger does not count."""

    name: str
    nbytes: int
    reason: str
    view: View | None = None


_Filled = dict[str, tuple[Source, Shape, tuple[str, ...]]]  # what fills a tensor, its label, trained names


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
    draft = _Draft(checkpoint, config, options, base)
    if draft.mode != "adapter":
        draft.add_model()
    if draft.mode in ("adapter", "both"):
        draft.add_adapter()
    if not draft.outputs:
        raise CkptconvError("the checkpoint holds no model tensors", where=checkpoint.root)
    return draft.close()


class _Draft:
    """A plan in the making: outputs, what is dropped, what must be said."""

    def __init__(
        self, checkpoint: Checkpoint, config: dict[str, Any] | None, options: Options, base: Checkpoint | None
    ) -> None:
        self._checkpoint, self._options, self._base = checkpoint, options, base
        self._config = copy.deepcopy(config)
        self._notes = list(checkpoint.notes)
        self._meta = checkpoint.extras.get("lora") or {}
        self._stored = [tensor.view for tensor in checkpoint.tensors.values()]
        bare, self._origin = unwrap({name: tensor.view for name, tensor in checkpoint.tensors.items()})
        self._parts = lora.separate(bare)
        self.mode = _lora_mode(self._parts, options, base, self._notes)
        replaced = "replaced by its trained copy (modules_to_save)"
        self.outputs: dict[str, Output] = {}
        self._files: tuple[layout.OutFile, ...] = ()
        self._texts: dict[str, Any] = {}
        self._dropped = _replicas(checkpoint)
        self._dropped += [Dropped(name, view.nbytes, replaced, view) for name, view in self._parts.replaced]
        self._rules: tuple[str, ...] = ()
        self._dtype_said = ""

    def add_model(self) -> None:
        """The model's tensors: tied, renamed, LoRA merged into them, with a dtype each."""
        weights, naming = self._weights()
        named = self._rename(weights, naming)
        if self._base is None:
            named = self._tie(named)
        config, options = self._config or {}, self._options
        turned = lora.is_fan_in_fan_out(self._meta, config)
        fused = _fuse(named, self._parts, self._meta, options, turned)
        policy = "keep" if self._checkpoint.naming == "hub" and options.dtype == "auto" else options.dtype
        stored = {source.dtype for source, _, _ in fused.values()}
        target, self._dtype_said = dtype_policy.target(stored, self._config, policy)
        keep = facts.keeps_fp32(config, target) if options.dtype == "auto" and target else ()
        for name, (source, shape, trained) in fused.items():
            dtype = dtype_policy.of(source.dtype, target, options.dtype, (name, *trained), keep)
            self.outputs[name] = Output(name, shape, dtype, source, tuple(map(self._stored_name, trained)))
        shapes = {name: output.shape for name, output in self.outputs.items()}
        if self._config is not None:
            check_fit(self._config, shapes, self._checkpoint.root)
            self._config = corrected(
                self._config,
                shapes,
                dtype_policy.most((o.dtype, o.nbytes) for o in self.outputs.values()),
                self._notes,
            )
        if self.outputs:
            self._files = layout.shards(self.outputs, options.max_shard_size)

    def add_adapter(self) -> None:
        """The LoRA factors as PEFT keeps them; in a folder of their own where the model is written too."""
        folder = f"{ADAPTER_FOLDER}/" if self.mode == "both" else ""
        named = _adapter(self._parts, self._options)
        adapter = {
            f"{folder}{name}": replace(output, origins=tuple(map(self._stored_name, output.origins)))
            for name, output in named.items()
        }
        base = (self._config or {}).get("_name_or_path") or None
        self._texts[f"{folder}adapter_config.json"] = lora.adapter_config(
            self._parts, self._meta, self._options.lora_alpha, base
        )
        self._files += (layout.out_file(f"{folder}adapter_model.safetensors", adapter),)
        self.outputs.update(adapter)
        if self.mode == "adapter":
            for name, view in self._parts.weights.items():
                if name not in self._parts.trained:
                    self._drop(name, view, "base weight, not part of an adapter")
            self._config = None

    def close(self) -> Plan:
        """The ledger, and the plan."""
        return Plan(
            checkpoint=self._checkpoint,
            outputs=self.outputs,
            files=self._files,
            dropped=tuple(self._dropped),
            config=self._config,
            texts=self._texts,
            notes=tuple(self._notes),
            dtype_said=self._dtype_said,
            rules=self._rules,
            balanced=_balance(self._stored, self.outputs, self._dropped, self.mode),
            is_adapter=self.mode == "adapter",
        )

    def _weights(self) -> tuple[Mapping[str, View], str]:
        """The weights by trained name, and how they are named: the checkpoint's own, or the base model's."""
        if self._base is not None:
            views = {name: tensor.view for name, tensor in self._base.tensors.items()}
            self._stored += views.values()
            for name in self._parts.trained:
                if name not in views:
                    raise CkptconvError(f"{name} was trained whole, but the base model has no such weight")
                self._drop(f"base: {name}", views[name], "replaced by its trained copy (modules_to_save)")
                views[name] = self._parts.weights[name]
            return views, self._base.naming
        return self._parts.weights, self._checkpoint.naming

    def _tie(self, named: _Filled) -> _Filled:
        """Write a tied head once if its bytes are the embedding's; if they differ, both, and the config is corrected.

        Ties are stated in module names, so a tensor is found by its trained name or by its Hub name.
        """
        config = self._config
        if config is None or not facts.says_tied(config):
            return named
        hub = {trained[0]: name for name, (_, _, trained) in named.items() if len(trained) == 1}
        hub.update({name: name for name in named})
        kept = dict(named)
        for tied, repeated in facts.tied_pairs(config, hub):
            target, source = hub[tied], hub[repeated]
            one, two = named[target][0], named[source][0]
            if target not in kept or not isinstance(one, View) or not isinstance(two, View):
                continue
            if same_values(one, two):
                del kept[target]
                self._drop(named[target][2][0], one, f"tied: equal to {source}")
                continue
            self._notes.append(
                f"{target} differs from {source} although the config ties them: "
                "both are written, tie_word_embeddings is set to false"
            )
            config["tie_word_embeddings"] = False
            text = config.get("text_config")
            if isinstance(text, dict) and "tie_word_embeddings" in text:
                text["tie_word_embeddings"] = False
        return kept

    def _rename(self, weights: Mapping[str, View], naming: str) -> _Filled:
        if self._options.layout == "module":
            naming = "hub"
        renamed = to_hub(naming, weights, self._config or {})
        self._rules = tuple(renamed.rules)
        for name, view, reason in renamed.left_out:
            self._drop(name, view, reason)
        return {
            n: (Shift(t.value, t.added) if t.added else t.value, t.shape, t.sources)
            for n, t in renamed.tensors.items()
        }

    def _drop(self, name: str, view: View, reason: str) -> None:
        self._dropped.append(Dropped(self._stored_name(name), view.nbytes, reason, view))

    def _stored_name(self, name: str) -> str:
        bare = self._parts.origin.get(name, name)
        return self._origin.get(bare, bare)


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
    alone = set(parts.weights) <= set(parts.trained)
    if alone and base is None:
        if options.lora in ("merge", "both"):
            raise CkptconvError(
                "the checkpoint holds LoRA tensors alone", hint="name the base model's folder: --base DIR"
            )
        if options.lora is None:
            notes.append(
                "LoRA tensors alone are stored: writing a PEFT adapter (with --base DIR: the merged model)"
            )
        return "adapter"
    if not alone and base is not None:
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


def _fuse(
    named: _Filled, parts: lora.Separated, meta: Mapping[str, Any], options: Options, turned: bool
) -> _Filled:
    """LoRA merged into the weights. turned: these are (in, out)."""
    fused = dict(named)
    by_source = {sources[0]: name for name, (_, _, sources) in named.items() if len(sources) == 1}
    for factors in parts.factors:
        name = by_source.get(factors.weight)
        if name is None:
            raise CkptconvError(f"LoRA on {factors.module}, but the model has no weight of that name")
        source, shape, origins = named[name]
        left, right = factors.sides(turned)
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
    """What PEFT saves: the factors, and the weights that were trained whole."""
    forced = options.dtype if options.dtype in FLOATS else None
    pairs = [(lora.saved_name(name), parts.weights[name], name) for name in parts.trained]
    for factors in parts.factors:
        a, b = lora.adapter_names(factors)
        pairs += [(*a, factors.a_name), (*b, factors.b_name)]
    found = {}
    for name, view, origin in pairs:
        dtype = forced if forced and is_float(view.dtype) else view.dtype
        found[name] = Output(name, view.shape, dtype, view, (origin,))
    return found


def _balance(stored: list[View], outputs: Mapping[str, Output], dropped: list[Dropped], mode: str) -> int:
    """Close the ledger; every output is tiled exactly once and every stored element is used or dropped."""
    used: list[View] = []
    untouched = {id(view) for view in stored}  # these were checked when they were made
    for key, output in outputs.items():
        made_of = views_of(output.source)
        for view in made_of:
            if id(view) not in untouched:
                check_tiling(view.shape, view.chunks)
        if prod(output.shape) != output.source.numel:
            raise CkptconvError(f"{output.name} would have another number of elements than its source")
        # With "both", factors and trained weights go into the model and into the adapter. The factors are accounted
        # for in the adapter, everything else in the model.
        if mode != "both":
            used += made_of
        elif not key.startswith(ADAPTER_FOLDER):
            used += made_of[:1]
        elif ".lora_" in key:
            used += made_of
    return ledger.check_balance(stored, used, [item.view for item in dropped if item.view is not None])
