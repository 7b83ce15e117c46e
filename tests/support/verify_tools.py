"""Breaking checkpoints and model folders on purpose, and asking a verification what it said of it."""

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
from safetensors.numpy import load_file, save_file

from ckptconv.backends import open_checkpoint
from ckptconv.commands.verify import Verified
from ckptconv.errors import ExitCode
from ckptconv.tensors.dtypes import itemsize
from ckptconv.tensors.view import View

Q = "model.layers.1.self_attn.q_proj.weight"
NORM = "model.norm.weight"
Made = Callable[[str], Path]


def where_is(view: View, index: tuple[int, ...]) -> tuple[str, int]:
    """The file and byte of one element."""
    for chunk in view.chunks:
        inside = [o <= i < o + s for i, o, s in zip(index, chunk.offsets, chunk.sizes, strict=True)]
        if all(inside):
            steps = zip(index, chunk.offsets, chunk.strides, strict=True)
            return chunk.file, chunk.start + sum((i - o) * stride for i, o, stride in steps)
    raise LookupError(index)


def poke(view: View, index: tuple[int, ...], flip: int = 1, byte: int = 0) -> str:
    """Flip bits of one element in its file; returns the file."""
    file, start = where_is(view, index)
    data = bytearray(Path(file).read_bytes())
    data[start + byte] ^= flip
    Path(file).write_bytes(data)
    return file


def put(view: View, index: tuple[int, ...], value: float) -> None:
    """Write one float32."""
    assert itemsize(view.dtype) == 4
    file, start = where_is(view, index)
    with open(file, "r+b") as handle:
        handle.seek(start)
        handle.write(np.float32(value).tobytes())


def rewrite(folder: Path, change: Callable[[dict[str, np.ndarray]], None]) -> None:
    """Change the tensors of a folder with one file."""
    tensors = load_file(folder / "model.safetensors")
    change(tensors)
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})


def edit_config(folder: Path, **values: object) -> None:
    path = folder / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | values))


def views(folder: Path) -> dict[str, View]:
    return {name: tensor.view for name, tensor in open_checkpoint(folder).tensors.items()}


def states(result: Verified) -> dict[str, bool | None]:
    return {layer.name: layer.ok for layer in result.layers}


def problems(result: Verified, layer: str) -> dict[str, str]:
    """Tensor -> all that the layer says of it."""
    found = result.layer(layer)
    assert found is not None
    return {problem.name: f"{problem.what} {problem.where} {problem.hint}" for problem in found.problems}


def only_wrong(result: Verified, *layers: str) -> None:
    """Exactly these layers say no."""
    assert [name for name, ok in states(result).items() if ok is False] == list(layers), result.layers
    assert result.ok is (not layers)
    assert result.code is (ExitCode.NO if layers else ExitCode.OK)
