"""Read DeepSpeed's model files: tensors that the partitions lack (buffers, frozen and tied weights), and the order of names.

Fields: deepspeed/runtime/engine.py, `_common_checkpoint_state`. At stage 3 each rank has a model file: buffers
are whole in it, trained parameters are empty, and frozen ones are cut.
"""

from __future__ import annotations

from math import prod
from typing import Any

from ckptconv.backends.copied_files import refuse_copies
from ckptconv.backends.deepspeed.files import shapes_of, table
from ckptconv.backends.deepspeed.flat import Shapes, whole
from ckptconv.errors import CkptconvError, Kind
from ckptconv.formats.bounds import check_name
from ckptconv.formats.stand_ins import TensorRecord, items
from ckptconv.formats.torch_zip import TorchZip
from ckptconv.tensors.checkpoint import StoredTensor
from ckptconv.tensors.view import View


class ModelFiles:
    """The opened model files, by rank; rank 0's file lists the tensors. `partitioned`: stage 3, with one file per rank."""

    def __init__(self, files: dict[int, TorchZip], partitioned: bool) -> None:
        self.files, self.partitioned = files, partitioned
        self.main = files[min(files)]
        self.root = _root(self.main)
        self.step = _step(self.root)
        self.skipped_steps = _count(self.root.get("skipped_steps")) or 0
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

    def tensors(self, trained: dict[str, View], placement: str) -> dict[str, StoredTensor]:
        """Return every tensor of the model in the module's order.

        Args:
            trained: the master weights, by name.
            placement: how the master weights are cut, as text.

        Raises:
            CkptconvError: neither the partitions nor the model files hold a parameter.
        """
        module = table(self.root.get("module"), "module", self.main)
        frozen = self._frozen(module)
        known = {name: StoredTensor(view, placement) for name, view in trained.items()} | frozen
        shared = table(self.root.get("shared_params"), "shared_params", self.main)
        for source in shared.values():
            check_name(source, f"shared_params in {self.main.path}")
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
        tied = {name: known[source] for name, source in shared.items() if source in known}
        return found | {name: tensor for name, tensor in tied.items() if name not in found}

    def low_precision(self, trained: dict[str, View]) -> dict[str, View]:
        """Return the module's copies of the master weights, in its compute dtype; {} at stage 3, which saves none."""
        module = table(self.root.get("module"), "module", self.main)
        records = {name: module.get(name) for name in trained} if not self.partitioned else {}
        return {
            name: self.main.view(record)
            for name, record in records.items()
            if isinstance(record, TensorRecord) and record.shape == trained[name].shape
        }

    def _own(self, name: str, value: TensorRecord) -> StoredTensor:
        """Return a tensor that is whole in the model file: a buffer, a weight at stage 0, or a frozen weight at stage 1."""
        if name not in items(self.root.get("buffer_names")):
            if self.partitioned:
                raise CkptconvError(
                    f"no partition holds {name}",
                    where=self.main.path,
                    hint="saved without some of its parameters, or by a DeepSpeed that ckptconv does not know",
                )
            return StoredTensor(self.main.view(value))
        others = [
            (file, _root(file)["module"].get(name)) for file in self.files.values() if file != self.main
        ]
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
    if not isinstance(file.root, dict) or not isinstance(file.root.get("module"), dict):
        raise CkptconvError(
            "not a model file of DeepSpeed, or one of a pipeline",
            where=file.path,
            wanted='a dict with the weights under "module"',
            kind=Kind.UNSUPPORTED,
        )
    return file.root


def _step(root: dict[str, Any]) -> int | None:
    return _count(root.get("global_steps"))


def _count(value: Any) -> int | None:
    return value if type(value) is int and 0 <= value < 1 << 63 else None


def _elements(value: Any) -> int:
    return prod(value.shape) if isinstance(value, TensorRecord) else 0
