"""What the tests of .pt files share: saving by torch, pickles by hand, comparing."""

from __future__ import annotations

import pickle
import struct
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from ckptconv.errors import CkptconvError
from ckptconv.formats.stand_ins import TensorRecord, stand_in
from ckptconv.formats.torch_zip import TorchZip, open_torch_zip
from ckptconv.read.reader import read_numpy
from ckptconv.tensors.dtypes import itemsize
from ckptconv.tensors.view import View


def tensor(dtype: str, *shape: int) -> torch.Tensor:
    """Random bytes as a tensor of any dtype."""
    count = torch.Size(shape).numel() * getattr(torch, dtype).itemsize
    raw = torch.randint(
        0, 2 if dtype == "bool" else 256, (count,), generator=torch.Generator().manual_seed(1)
    )
    return raw.to(torch.uint8).view(getattr(torch, dtype)).reshape(shape)


def saved(folder: Path, content: Any) -> TorchZip:
    torch.save(content, folder / "saved.pt")
    return open_torch_zip(str(folder / "saved.pt"))


def view_of_root(file: TorchZip) -> View | None:
    """The tensor that a file is; None for anything else."""
    return file.view(file.root) if isinstance(file.root, TensorRecord) else None


def same_bits(file: TorchZip, name: str, wanted: torch.Tensor) -> bool:
    view = file.view(file.root[name])
    raw = wanted.detach().contiguous().reshape(-1).view(torch.uint8).numpy().tobytes()
    alike = (view.shape, view.dtype) == (tuple(wanted.shape), str(wanted.dtype).removeprefix("torch."))
    return alike and read_numpy(view).tobytes() == raw


def refusal(path: Path) -> CkptconvError:
    """The error that opening a file gives: one sentence that names the file."""
    with pytest.raises(CkptconvError) as caught:
        open_torch_zip(str(path))
    assert "\n" not in caught.value.what
    assert str(path) in str(caught.value.where)
    return caught.value


# --- pickles by hand


def text(value: str) -> bytes:
    return b"X" + struct.pack("<I", len(value.encode())) + value.encode()


def name(module: str, attribute: str) -> bytes:
    return f"c{module}\n{attribute}\n".encode()


def call(function: bytes, *args: bytes) -> bytes:
    return function + b"(" + b"".join(args) + b"tR"


def storage(key: str = "0", kind: str = "FloatStorage", numel: bytes = b"K\x0c") -> bytes:
    return b"(" + text("storage") + name("torch", kind) + text(key) + text("cpu") + numel + b"tQ"


def rebuilt(*args: bytes) -> bytes:
    return call(name("torch._utils", "_rebuild_tensor_v2"), *args)


def numbers(*values: int) -> bytes:
    return pickle.dumps(values, 2)[2:-1]


def torch_file(path: Path, pickled: bytes) -> Path:
    """A .pt with this pickle and one storage of 48 bytes."""
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("x/data.pkl", pickled)
        archive.writestr("x/data/0", bytes(range(48)))
    return path


def assert_unharmed(folder: Path) -> None:
    """The stand-ins are what they were: a good file is still read, and classes have their own kinds."""
    assert stand_in("torch", "Tensor").kind == "Tensor"
    assert stand_in("some.where", "Thing").kind == "some.where.Thing"
    assert itemsize(stand_in("torch", "float32").name) == 4
    x = tensor("float32", 3, 2)
    assert same_bits(saved(folder, {"x": x.t()}), "x", x.t())


def edit_archive(path: Path, change: Callable[[bytes], bytes]) -> None:
    """Write a .pt file again with another pickle and the same storages, as torch lays it out: stored, in the same order."""
    with zipfile.ZipFile(path) as old:
        entries = [(entry.filename, old.read(entry)) for entry in old.infolist()]
    with zipfile.ZipFile(path, "w", zipfile.ZIP_STORED) as new:
        for name, data in entries:
            new.writestr(name, change(data) if name.endswith("/data.pkl") else data)
