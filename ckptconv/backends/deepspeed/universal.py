"""Read universal checkpoints: `zero/PARAMETER/fp32.pt` is whole and has no padding; the moments are next to it.

deepspeed/checkpoint/ds_to_universal.py writes them: from stages 1 and 2 a dict with the tensor under "param", and from
stage 3 a vector, whose shape is in the model files. Tensor parallel parts are merged already.
"""

from __future__ import annotations

from collections.abc import Container, Sequence
from dataclasses import dataclass
from math import prod
from pathlib import Path
from typing import Any

from ckptconv.backends.deepspeed.flat import Shapes
from ckptconv.errors import CkptconvError, Incomplete
from ckptconv.formats.stand_ins import TensorRecord
from ckptconv.formats.torch_zip import open_torch_zip
from ckptconv.tensors.look import is_file, paths_in, size_of
from ckptconv.tensors.view import View, unflatten

_MASTER = "fp32.pt"


@dataclass(frozen=True, slots=True)
class Universal:
    """A universal checkpoint's parameters: name -> its folder."""

    folder: Path
    parameters: dict[str, Path]

    def masters(self, shapes: Sequence[Shapes]) -> dict[str, View]:
        """Return every parameter that the model file names.

        Raises:
            Incomplete: a parameter has no file.
        """
        found = {}
        for name, shape in (item for group in shapes for item in group.items()):
            path = self.parameters.get(name)
            if path is None:
                raise Incomplete(
                    f"{name} is missing from the universal checkpoint",
                    where=self.folder,
                    wanted=f"{name}/{_MASTER}",
                    hint="its conversion did not finish: run ds_to_universal again",
                )
            found[name] = _master(path / _MASTER, name, shape)
        return found

    def check_names(self, known: Container[str]) -> None:
        """Check that every folder belongs to a tensor of the model files.

        Raises:
            CkptconvError: a folder does not.
        """
        for name, path in self.parameters.items():
            if name not in known:
                raise CkptconvError(f"the model file does not list {name}", where=path)

    def rest(self, trained: Container[str]) -> int:
        """Return the bytes of the other files: moments, step counts, float32 copies of buffers, frozen and tied weights."""
        files = (path for folder in self.parameters.values() for path in paths_in(folder))
        return sum(size_of(f) for f in files if f.name != _MASTER or f.parent.name not in trained)


def universal(folders: Sequence[Path]) -> Universal | None:
    """Return the parameters under the `zero` folders, or None if there is no such folder."""
    found = {
        path.name: path
        for folder in reversed(folders)
        for path in paths_in(folder)
        if is_file(path / _MASTER)
    }
    return Universal(folders[0], found) if found else None


def _master(path: Path, name: str, shape: tuple[int, ...]) -> View:
    file = open_torch_zip(str(path))
    record: Any = file.root.get("param") if isinstance(file.root, dict) else file.root
    if not isinstance(record, TensorRecord):
        raise CkptconvError(f"{name} is stored, but not as a tensor", where=path)
    view = file.view(record)
    if view.numel != prod(shape) or view.shape not in (shape, (view.numel,)):
        raise CkptconvError(
            f"{name} has another shape than the model file says", where=path, found=view.shape, wanted=shape
        )
    return view if view.shape == shape else unflatten(view, 0, shape)
