"""A plan in the making: the model's tensors, an adapter's, what is dropped, and the ledger over all of it."""

from __future__ import annotations

import copy
import re
from collections.abc import Iterable, Mapping
from dataclasses import replace
from typing import Any

from ckptconv.compute import Shift, views_of
from ckptconv.errors import CkptconvError
from ckptconv.models import facts, lora, mtp
from ckptconv.models.config import check_fit, corrected
from ckptconv.models.naming import to_hub, to_module
from ckptconv.models.unwrap import unwrap
from ckptconv.plan import adapter as updates
from ckptconv.plan import dtype_policy, placing, shards
from ckptconv.plan.balance import balance
from ckptconv.plan.records import ADAPTER_FOLDER, Dropped, Filled, Options, Output, Plan
from ckptconv.plan.tied import take_apart, tie
from ckptconv.tensors.checkpoint import Checkpoint
from ckptconv.tensors.view import View


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
        self._parts = lora.separate(bare, self._meta)
        self.mode = updates.mode_of(self._parts, self._meta, options, base, self._notes)
        replaced = "replaced by its trained copy (modules_to_save)"
        self.outputs: dict[str, Output] = {}
        self._files: tuple[shards.OutFile, ...] = ()
        self._texts: dict[str, Any] = {}
        self._dropped = _replicas(checkpoint)
        self._dropped += [Dropped(name, view.nbytes, replaced, view) for name, view in self._parts.replaced]
        self._rules: tuple[str, ...] = ()
        self._copies: dict[str, str] = {}
        self._dtype_said = ""
        self._used: list[View] = []  # what the ledger counts as used
        self._heads: list[str] = []  # heads that have their embedding's bytes and a weight of their own

    def add_model(self) -> None:
        """The model's tensors: tied, renamed, LoRA merged into them, with a dtype each."""
        weights, naming = self._weights()
        named = self._rename(weights, naming)
        if self._base is None:
            named, tied = tie(named, self._config, self._notes)
            for name, view, reason in tied:
                self._drop(name, view, reason)
        placed = self._placed(named, weights, naming)
        config, options = self._config or {}, self._options
        fused = updates.fuse(named, placed, self._meta, options.lora_alpha)
        twice = [weights[name] for name in self._heads]  # a head that began as its embedding
        self._used += [v for value, _, _ in named.values() for v in views_of(value) if not _among(v, twice)]
        self._count_once([*twice, *(view for each in placed for view in each.views)])
        policy = "keep" if self._checkpoint.naming == "hub" and options.dtype == "auto" else options.dtype
        stored = {source.dtype for source, _, _ in fused.values()}
        target, self._dtype_said = dtype_policy.target(stored, self._config, policy)
        keep = facts.keeps_fp32(config, target) if options.dtype == "auto" and target else ()
        for name, (source, shape, trained) in fused.items():
            dtype = dtype_policy.of(source.dtype, target, options.dtype, (name, *trained), keep)
            self.outputs[name] = Output(name, shape, dtype, source, tuple(map(self._stored_name, trained)))
        if all(output.dtype == output.source.dtype for output in self.outputs.values()):
            self._dtype_said = dtype_policy.KEPT
        self._repeat()
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
            self._files = shards.shards(self.outputs, options.max_shard_size)

    def add_adapter(self) -> None:
        """The LoRA factors as PEFT keeps them; in a folder of their own where the model is written too."""
        folder = f"{ADAPTER_FOLDER}/" if self.mode == "both" else ""
        config, naming = self._config or {}, self._checkpoint.naming
        placement = placing.placed_alone(self._parts, naming, self._meta, config)
        adapter = {
            f"{folder}{output.name}": replace(output, origins=tuple(map(self._stored_name, output.origins)))
            for output in updates.adapter_outputs(placement.placed, self._parts, self._options)
        }
        self._texts[f"{folder}adapter_config.json"] = lora.adapter_config(
            placement.placed, self._parts, self._meta, self._options.lora_alpha, config
        )
        self._files += (shards.out_file(f"{folder}adapter_model.safetensors", adapter),)
        self.outputs.update(adapter)
        if self.mode == "adapter":
            for name, view in self._parts.weights.items():
                if name not in self._parts.trained:
                    self._drop(name, view, "base weight, not part of an adapter")
            for name, view, reason in placement.left_out:
                self._drop(name, view, reason)
            self._count_once(view for each in placement.placed for view in each.views)
            self._used += [view for each in self._parts.stacks for _, view in each.stored]
            self._used += [self._parts.weights[name] for name in self._parts.trained]
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
            balanced=balance(self._stored, self.outputs, self._used, self._dropped),
            is_adapter=self.mode == "adapter",
        )

    def _weights(self) -> tuple[Mapping[str, View], str]:
        """The weights by trained name, and how they are named: the checkpoint's own, or the base model's."""
        parts = self._parts
        if not parts.factors:
            return parts.weights, self._checkpoint.naming
        updated = [each.weight for each in parts.factors]
        if self._base is None:
            weights = dict(parts.weights)
            self._heads = take_apart(weights, updated, self._config, self._notes)
            return weights, self._checkpoint.naming
        weights = {name: tensor.view for name, tensor in self._base.tensors.items()}
        self._stored += weights.values()
        originals = dict(weights)
        self._heads = take_apart(weights, [*updated, *parts.trained], self._config, self._notes)
        for name in parts.trained:
            if name not in weights:
                raise CkptconvError(f"{name} was trained whole, but the base model has no such weight")
            weights[name] = parts.weights[name]
        kept = list(weights.values())
        for name, view in originals.items():
            if weights[name] is not view and not _among(view, kept):
                self._drop(f"base: {name}", view, "replaced by its trained copy (modules_to_save)")
        self._heads = [name for name in self._heads if _among(weights[name], originals.values())]
        return weights, self._base.naming

    def _placed(self, named: Filled, weights: Mapping[str, View], naming: str) -> tuple[lora.Placed, ...]:
        """The updates at the Hub's weights that they belong to."""
        config, meta = self._config or {}, self._meta
        if not self._parts.factors:
            return ()
        if self._base is None:
            found = placing.placed_in(named, weights, self._parts, naming, meta, config)
        else:
            found = placing.placed_on(named, self._parts, self._checkpoint.naming, meta, config)
        for name, view, reason in found.left_out:
            self._drop(name, view, reason)
        return found.placed

    def _rename(self, weights: Mapping[str, View], naming: str) -> Filled:
        if self._options.mtp == "drop":
            weights = self._without_mtp(weights)
        rename = to_module if self._options.layout == "module" else to_hub
        renamed = rename(naming, weights, self._config or {})
        self._rules, self._copies = tuple(renamed.rules), renamed.copies
        self._notes += renamed.notes
        for name, view, reason in renamed.left_out:
            self._drop(name, view, reason)
        return {
            n: (Shift(t.value, t.added) if t.added else t.value, t.shape, t.sources)
            for n, t in renamed.tensors.items()
        }

    def _without_mtp(self, weights: Mapping[str, View]) -> Mapping[str, View]:
        ours = re.compile("|".join(mtp.patterns(self._config or {})))
        kept = {name: view for name, view in weights.items() if not ours.search(name)}
        for name, view in weights.items():
            if name not in kept:
                self._drop(name, view, "an MTP layer (--mtp drop)")
        if self._config is not None and (said := mtp.set_none(self._config)):
            self._notes.append(said)
        return kept

    def _repeat(self) -> None:
        """What the Hub's model has twice: the same source once more, whatever became of it on the way."""
        written = {name: of for name, of in self._copies.items() if of in self.outputs}
        for name, of in written.items():
            self.outputs[name] = replace(self.outputs[of], name=name, repeats=of)
        if written:
            self._notes.append(f"written twice, as the Hub's model has them: {', '.join(written)}")

    def _count_once(self, views: Iterable[View]) -> None:
        """What the ledger takes as used, though several outputs may share it: a factor, a head that was taken apart."""
        self._used += {id(view): view for view in views}.values()

    def _drop(self, name: str, view: View, reason: str) -> None:
        self._dropped.append(Dropped(self._stored_name(name), view.nbytes, reason, view))

    def _stored_name(self, name: str) -> str:
        bare = self._parts.origin.get(name, name)
        return self._origin.get(bare, bare)


def _replicas(checkpoint: Checkpoint) -> list[Dropped]:
    count = sum(len(tensor.replicas) for tensor in checkpoint.tensors.values())
    nbytes = sum(tensor.replica_bytes for tensor in checkpoint.tensors.values())
    return [Dropped(f"{count} copies", nbytes, "replicas on other ranks")] if count else []


def _among(view: View, views: Iterable[View]) -> bool:
    return any(view is other for other in views)
