"""Read DeepSpeed's model files: tensors that the partitions lack (buffers, frozen and tied weights), and the order of names.

Fields: deepspeed/runtime/engine.py, `_common_checkpoint_state`. At stage 3 each rank has a model file: buffers
are whole in it, trained parameters are empty, and frozen ones are cut.
"""

from __future__ import annotations

from collections.abc import Collection
from functools import cached_property
from math import prod
from typing import Any

from ckptconv.backends.copied_files import refuse_copies
from ckptconv.backends.deepspeed.files import shapes_of, table
from ckptconv.backends.deepspeed.flat import Shapes, whole
from ckptconv.errors import CkptconvError, Kind
from ckptconv.formats.bounds import check_name
from ckptconv.formats.inert import items
from ckptconv.formats.stand_ins import TensorRecord
from ckptconv.formats.torch_zip import TorchZip
from ckptconv.tensors.checkpoint import StoredTensor
from ckptconv.tensors.view import View


class ModelFiles:
    """The opened model files of one model parallel rank, by data parallel rank; rank 0's file lists the tensors.

    Args:
        files: data parallel rank -> file.
        partitioned: True at stage 3, with one file per rank.
        shared: name of a tied parameter -> the parameter that is stored. Only the file of the first rank records it
            (deepspeed/runtime/engine.py, `_get_shared_params`); None for that file itself.
    """

    def __init__(
        self, files: dict[int, TorchZip], partitioned: bool, shared: dict[str, Any] | None = None
    ) -> None:
        self.files, self.partitioned = files, partitioned
        self.main = files[min(files)]
        self.root = _root(self.main)
        self.step = _step(self.root)
        self.skipped_steps = _count(self.root.get("skipped_steps")) or 0
        self.shared = shared or table(self.root.get("shared_params"), "shared_params", self.main)
        for source in self.shared.values():
            check_name(source, f"shared_params in {self.main.path}")
        for file in files.values():
            if (step := _step(_root(file))) != self.step:
                raise CkptconvError(
                    "the model files are of different steps",
                    where=file.path,
                    found=step,
                    wanted=self.step,
                    hint="they are from different saves; copy all of one step again",
                )

    @property
    def shapes(self) -> list[Shapes] | None:
        """Return name -> shape of the trained parameters, for each group; None at stage 0."""
        groups = self.root.get("param_shapes")
        if groups is None:
            return None
        listed = groups if isinstance(groups, list | tuple) else [groups]
        return [shapes_of(group, "param_shapes", self.main) for group in listed]

    @property
    def has_module(self) -> bool:
        """Return False for a stage of a pipeline, whose layers have files of their own."""
        return self.root.get("module") is not None

    @cached_property
    def buffers(self) -> set[str]:
        """Return the names of the persistent buffers."""
        return {name for name in items(self.root.get("buffer_names")) if isinstance(name, str)}

    @property
    def frozen_names(self) -> set[str]:
        """Return the names of the parameters without an optimizer, as stages 2 and 3 list them."""
        return set(table(self.root.get("frozen_param_shapes"), "frozen_param_shapes", self.main))

    @property
    def expert_counts(self) -> tuple[int, ...]:
        """Return the number of experts of each MoE layer; () if the model has no experts."""
        layers = self.autoep_layers
        counts = [layer.get("num_experts") for layer in layers] or items(self.root.get("num_experts"))
        if any(_count(count) is None for count in counts):
            raise CkptconvError(
                "num_experts is not made of whole numbers", where=self.main.path, found=counts
            )
        return tuple(counts)

    @property
    def has_experts(self) -> bool:
        """Return True for a model with MoE layers of DeepSpeed's own, or of AutoEP."""
        return bool(self.expert_counts)

    @property
    def autoep_layers(self) -> list[dict[str, Any]]:
        """Return what AutoEP records of each MoE layer that it replaced."""
        listed = items(self.root.get("ds_autoep_layers"))
        return [table(layer, "ds_autoep_layers", self.main) for layer in listed]

    def _routers(self) -> set[str]:
        """Return the second names of AutoEP's routers: the module that it puts in place has `router` as `gate` too."""
        found = set()
        for layer in self.autoep_layers:
            path, names = f"{layer.get('module_path')}.", _module(self.main)
            for name in names:
                rest = name.removeprefix(path).split(".")
                if (
                    name.startswith(path)
                    and len(rest) == 3
                    and rest[0] != "router"
                    and rest[1:] == ["gate", "weight"]
                ):
                    found.add(name)
        return found

    @property
    def fused_experts(self) -> set[str]:
        """Return the names of AutoEP's parameters, each with one expert per index of dim 0."""
        prefixes = [layer.get("expert_key_prefix") for layer in self.autoep_layers]
        return {f"{prefix}.{weight}" for prefix in prefixes for weight in ("w1", "w2", "w3")}

    def tensors(
        self, trained: dict[str, View], placement: str, leave: Collection[str] = ()
    ) -> dict[str, StoredTensor]:
        """Return every tensor of the model in the module's order.

        Args:
            trained: the master weights, by name.
            placement: how the master weights are cut, as text.
            leave: names that the caller has from elsewhere.

        Raises:
            CkptconvError: neither the partitions nor the model files hold a parameter.
        """
        aside = self._routers() | set(leave)
        module = {name: value for name, value in _module(self.main).items() if name not in aside}
        frozen = self._frozen(module)
        known = {name: StoredTensor(view, placement) for name, view in trained.items()} | frozen
        shared = self.shared
        # Files of DeepSpeed before 0.8 do not record ties: names with the same bytes of the file are the same parameter.
        place = {value: name for name, value in module.items() if name in known and _elements(value)}
        found: dict[str, StoredTensor] = {}
        for name, value in module.items():
            if not isinstance(value, TensorRecord):
                if value is None:
                    continue
                raise CkptconvError(f"{name} is stored, but not as a tensor", where=self.main.path)
            source = name if name in known else shared.get(name, place.get(value))
            if source in known:
                found[name] = known[source]
                if prod(value.shape) and value.shape != known[source].view.shape:
                    raise CkptconvError(
                        f"{name} has another shape in the module than in the partitions",
                        where=self.main.path,
                        found=list(value.shape),
                        wanted=list(known[source].view.shape),
                    )
            else:
                found[name] = self._own(name, value)
        found |= {name: tensor for name, tensor in known.items() if name not in found}
        tied = {
            name: known[source] for name, source in shared.items() if source in known and name not in aside
        }
        return found | {name: tensor for name, tensor in tied.items() if name not in found}

    def low_precision(self, trained: dict[str, View]) -> dict[str, View]:
        """Return the module's copies of the master weights, in its compute dtype; {} at stage 3, which saves none."""
        module = _module(self.main)
        records = {name: module.get(name) for name in trained} if not self.partitioned else {}
        return {
            name: self.main.view(record)
            for name, record in records.items()
            if isinstance(record, TensorRecord) and record.shape == trained[name].shape
        }

    def _own(self, name: str, value: TensorRecord) -> StoredTensor:
        """Return a tensor that is whole in the model file: a buffer, a weight at stage 0, or a frozen weight at stage 1."""
        if name not in self.buffers:
            if self.partitioned:
                raise CkptconvError(
                    f"no partition holds {name}",
                    where=self.main.path,
                    hint="saved without some of its parameters, or by a DeepSpeed that ckptconv does not know",
                )
            return StoredTensor(self.main.view(value))
        others = [(file, _module(file).get(name)) for file in self.files.values() if file != self.main]
        copies = [file.view(copy) for file, copy in others if isinstance(copy, TensorRecord)]
        view = self.main.view(value)
        return StoredTensor(
            view, "", tuple(((0,) * len(view.shape), copy) for copy in copies if copy.shape == view.shape)
        )

    def _frozen(self, module: dict[str, Any]) -> dict[str, StoredTensor]:
        """Return the parameters without an optimizer, which stages 2 and 3 list: whole ones, or one piece per rank."""
        shapes = shapes_of(self.root.get("frozen_param_shapes"), "frozen_param_shapes", self.main)
        if self.partitioned and len(self.files) > 1:
            refuse_copies((file, _fragments(file)) for file in self.files.values())
        found = {}
        for name, shape in shapes.items():
            records = [
                (file, table(_root(file).get("frozen_param_fragments"), "fragments", file).get(name))
                for file in self.files.values()
            ]
            views = []
            for file, record in records:
                if not isinstance(record, TensorRecord):
                    raise CkptconvError(
                        f"{name} is frozen, but its values are missing", where=file.path, kind=Kind.INCOMPLETE
                    )
                views.append(file.view(record))
            if self.partitioned:
                found[name] = StoredTensor(whole(views, shape, name, self.main.path), "stage 3, frozen")
                continue
            copy = module.get(name)
            copies = []
            if isinstance(copy, TensorRecord) and copy != records[0][1] and copy.shape == shape:
                copies.append(((0,) * len(shape), self.main.view(copy)))
            found[name] = StoredTensor(views[0], "", tuple(copies))
        return found


def _fragments(file: TorchZip) -> list[TensorRecord]:
    """Return a rank's parts of the frozen parameters."""
    held = table(_root(file).get("frozen_param_fragments"), "fragments", file)
    return [record for record in held.values() if isinstance(record, TensorRecord)]


def _root(file: TorchZip) -> dict[str, Any]:
    known = isinstance(file.root, dict) and isinstance(file.root.get("module", ""), dict | None)
    if not known:
        raise CkptconvError(
            "not a model file of DeepSpeed",
            where=file.path,
            wanted='a dict with the weights under "module"',
            kind=Kind.UNSUPPORTED,
        )
    return file.root  # type: ignore[no-any-return]


def _module(file: TorchZip) -> dict[str, Any]:
    """Return the weights in a model file; {} for a stage of a pipeline, whose layers have files of their own."""
    return table(_root(file).get("module"), "module", file)


def _step(root: dict[str, Any]) -> int | None:
    return _count(root.get("global_steps"))


def _count(value: Any) -> int | None:
    return value if type(value) is int and 0 <= value < 1 << 63 else None


def _elements(value: Any) -> int:
    return prod(value.shape) if isinstance(value, TensorRecord) else 0
