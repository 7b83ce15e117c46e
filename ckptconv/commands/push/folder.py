"""Checks the model folder of a push, and lists the files to send."""

from __future__ import annotations

import os
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from fnmatch import fnmatch
from pathlib import Path
from typing import Any

from ckptconv.commands.packages import require_packages
from ckptconv.errors import CkptconvError, Kind, listed
from ckptconv.formats.json import read_json

_SHARD = re.compile(r"-\d{5}-of-\d{5}\.safetensors$")
_CONFIGS = ("config.json", "adapter_config.json")  # of a model, or of a LoRA adapter without its base
_MERGE = "make the folder again, then push: ckptconv merge DIR"


@dataclass(frozen=True)
class ModelFolder:
    """A folder that from_pretrained can load, as far as its files show without their data.

    Args:
        root: the folder.
        config: the content of config.json or adapter_config.json.
        receipt: the content of ckptconv.json; {} if there is none.
        dtypes: dtype -> number of elements.
        tensors: the number of tensors.
    """

    root: Path
    config: dict[str, Any]
    receipt: dict[str, Any]
    dtypes: dict[str, int]
    tensors: int

    @property
    def is_adapter(self) -> bool:
        return "peft_type" in self.config


def check_folder(folder: Path) -> ModelFolder:
    """Read config, index and every safetensors header, and hash the tensors of a folder that has a receipt.

    Raises:
        CkptconvError: a file is missing or damaged, or contradicts the receipt.
    """
    from ckptconv.backends.huggingface import read as huggingface
    from ckptconv.backends.runs import Place
    from ckptconv.publish.receipt_check import require_agreement

    try:
        config = _config(folder)
        _weights(folder)
        found = huggingface.read(Place(folder, None, None))
        require_agreement(folder)
    except CkptconvError as error:
        raise _not_sent(error, folder) from error
    dtypes: dict[str, int] = {}
    for tensor in found.tensors.values():
        dtypes[tensor.view.dtype] = dtypes.get(tensor.view.dtype, 0) + tensor.view.numel
    return ModelFolder(folder, config, _receipt(folder), dtypes, len(found.tensors))


def choose_files(folder: Path, include: Sequence[str], exclude: Sequence[str]) -> list[tuple[str, int]]:
    """The files to send as (path in the folder, bytes), sorted. Hidden (except .gitattributes) and temporary files stay.

    Args:
        folder: the model folder.
        include: patterns as in the `hf` command line: fnmatch on the whole path, or `name/` for everything in a folder.
        exclude: such patterns too.
    """
    chosen = [
        (path, (folder / path).stat().st_size) for path in _walk(folder) if is_wanted(path, include, exclude)
    ]
    if not chosen:
        wanted = ", ".join(include) or "a file that --exclude does not name"
        hint = "look at --include and --exclude"
        raise CkptconvError(
            "found no file to upload", where=folder, wanted=wanted, hint=hint, kind=Kind.NOT_A_CHECKPOINT
        )
    return sorted(chosen)


def is_wanted(path: str, include: Sequence[str], exclude: Sequence[str]) -> bool:
    """True if the patterns select a path."""
    return (not include or _fits(path, include)) and not _fits(path, exclude)


def check_structure(folder: Path) -> None:
    """Compare names and shapes with the class that the config names, as `verify` does.

    A model whose class transformers does not have or cannot build passes. A bias may be missing, since it is initialised
    with zeros (Megatron's value heads and some routers have none). This imports transformers, which takes seconds.

    Raises:
        CkptconvError: a tensor is missing, unknown or has another shape.
    """
    require_packages("push, which compares the folder with its class,", "torch", "transformers", "accelerate")
    from ckptconv.commands.verify.loads import alone
    from ckptconv.commands.verify.sides import open_side
    from ckptconv.tensors.source_spec import SourceSpec

    layers = [layer for layer in alone(open_side(SourceSpec(folder))) if layer.name in ("names", "shapes")]
    found = [problem for layer in layers if layer.ok is False for problem in layer.problems]
    problems = [p for p in found if not (p.name.endswith("bias") and p.what.startswith("missing"))]
    if problems:
        raise CkptconvError(
            "the tensors do not match the model named in config.json; nothing was uploaded",
            where=folder,
            found=listed([f"{problem.name} {problem.what}" for problem in problems], 1),
            hint=f"ckptconv verify {folder}",
            kind=Kind.DOES_NOT_FIT,
        )


def _config(folder: Path) -> dict[str, Any]:
    if not folder.is_dir():
        hint = f"write it first: ckptconv merge DIR {folder}"
        raise CkptconvError("no such folder", where=folder, hint=hint, kind=Kind.NOT_A_CHECKPOINT)
    path = next((folder / name for name in _CONFIGS if (folder / name).is_file()), None)
    if path is None:
        hint = f"is it a trainer's checkpoint? Then first: ckptconv merge {folder} OUT"
        raise CkptconvError("the folder has no config.json", where=folder, hint=hint, kind=Kind.INCOMPLETE)
    config = read_json(path)
    if not isinstance(config, dict):
        raise CkptconvError(f"{path.name} is not a JSON object", where=path, kind=Kind.DAMAGED)
    return config


def _weights(folder: Path) -> None:
    names = sorted(path.name for path in folder.glob("*.safetensors"))
    index = folder / "model.safetensors.index.json"
    if not names and not index.is_file():
        raise CkptconvError("the folder has no .safetensors file", where=folder, kind=Kind.NOT_A_CHECKPOINT)
    lone = next((name for name in names if _SHARD.search(name)), None)
    if lone and not index.is_file():
        raise CkptconvError(
            "the shards have no index", where=folder, found=lone, wanted=index.name, kind=Kind.INCOMPLETE
        )


def _receipt(folder: Path) -> dict[str, Any]:
    try:
        receipt = read_json(folder / "ckptconv.json")
    except CkptconvError:
        return {}
    return receipt if isinstance(receipt, dict) else {}


def _not_sent(error: CkptconvError, folder: Path) -> CkptconvError:
    return CkptconvError(
        f"{error.what}; nothing was uploaded",
        where=error.where or folder,
        found=error.found,
        wanted=error.wanted,
        hint=error.hint or f"{_MERGE} {folder}",
        kind=error.kind,
    )


def _walk(folder: Path) -> Iterator[str]:
    for here, below, names in os.walk(folder):
        below[:] = sorted(name for name in below if not name.startswith("."))
        for name in names:
            path = Path(here, name)
            if _is_public(name) and path.is_file():
                yield path.relative_to(folder).as_posix()


def _is_public(name: str) -> bool:
    return name == ".gitattributes" or not (name.startswith(".") or name.endswith((".tmp", ".incomplete")))


def _fits(path: str, patterns: Sequence[str]) -> bool:
    return any(fnmatch(path, f"{pattern}*" if pattern.endswith("/") else pattern) for pattern in patterns)
