"""The files of a model folder that are not weights. They are copied byte for byte, except a corrected config.json."""

from __future__ import annotations

import errno
import json
import re
import shutil
from collections.abc import Iterator, Sequence
from fnmatch import fnmatchcase
from pathlib import Path, PurePosixPath
from typing import Any, NamedTuple

from ckptconv.backends.registry import is_trainers
from ckptconv.errors import CkptconvError, Kind, cannot_write
from ckptconv.formats.json import read_json
from ckptconv.formats.torch_zip import SUFFIXES as TORCH_SUFFIXES
from ckptconv.publish.known_files import is_known, known_files
from ckptconv.tensors.look import entries, is_dir, is_far, is_file, opened, paths_in, resolved
from ckptconv.tensors.stored_file import far_of

_WEIGHTS = (
    ".safetensors",
    *TORCH_SUFFIXES,
    ".distcp",
    ".pkl",
    ".h5",
    ".msgpack",
    ".gguf",
    ".onnx",
    ".onnx_data",
    ".ot",
    ".npz",
    ".tflite",
)
# With peft installed, transformers treats a folder with this file as an adapter (PreTrainedModel.from_pretrained,
# find_adapter_config_file) and looks for adapter_model.safetensors.
_ADAPTERS = ("adapter_config.json", "lora_train_meta.json")
_NOT_COPIED = ("ckptconv.json", ".gitattributes", *_ADAPTERS)
# vLLM and others treat a model with one of these files as quantised: GPTQ's, AWQ's and ModelOpt's.
QUANTISERS = ("quantize_config.json", "quant_config.json", "hf_quant_config.json")
# sentence-transformers keeps each module after the transformer in a folder NUMBER_CLASS, some with weights of their own
# (SentenceTransformer.save, modules.json); the transformer's own weights are in the folder above.
_MODULE = re.compile(r"^[1-9]\d*_[A-Za-z]\w*$")
_MODULE_WEIGHTS = ("model.safetensors", "pytorch_model.bin")
_PIECE = 4 << 20  # bytes that are copied from a store at a time


def read_config(folder: Path) -> dict[str, Any]:
    """The parsed config.json of a folder. Nothing that it names is imported."""
    path = folder / "config.json" if is_dir(folder) else folder
    if not is_file(path):
        raise CkptconvError(
            "no config.json here",
            where=folder,
            hint="pass a model folder: --config DIR",
            kind=Kind.INCOMPLETE,
        )
    if is_dir(folder) and not _inside(folder, path):
        raise CkptconvError(
            "config.json is a link to a file outside its folder, which would be copied into the model",
            where=path,
            found=resolved(path),
            hint="name the file itself with --config FILE if it is the model's",
            kind=Kind.UNSUPPORTED,
        )
    try:
        config = read_json(path)
    except CkptconvError as error:
        if is_far(path) and error.kind is Kind.ENVIRONMENT:
            raise
        raise CkptconvError(
            "config.json cannot be read",
            where=path,
            found=": ".join(filter(None, (error.what, error.found))),
            kind=Kind.DAMAGED,
        ) from error
    if not isinstance(config, dict):
        raise CkptconvError("config.json is not a JSON object", where=path, kind=Kind.DAMAGED)
    return config


class Beside(NamedTuple):
    """The files next to the weights of a model.

    Args:
        belong: those of the model: tokenizer, processor, templates, custom code. Sorted.
        left: paths of others, relative to the folder, that are neither weights nor a trainer's: at most MOST_LEFT.
    """

    belong: list[Path]
    left: list[str]


MOST_LEFT = 1000


def beside(folder: Path, include: Sequence[str] = ()) -> Beside:
    """What is next to the weights.

    Links are followed only inside the folder. Known files in subfolders (custom code) are included.

    Args:
        folder: the model folder.
        include: globs of further files to take, matched with the path and with the name.
    """
    names = list(_walk(folder))
    known = known_files(folder, names)
    belong: list[Path] = []
    left: list[str] = []
    for name in names:
        last = name.rpartition("/")[2]
        mine = name in known or is_module_weight(PurePosixPath(name)) or _is_wanted(name, include)
        if (not mine and (len(left) == MOST_LEFT or _is_taken_care_of(last))) or is_trainers(last):
            continue
        if not mine:
            left.append(name)
        elif _inside(folder, folder / name):
            belong.append(folder / name)
    return Beside(sorted(belong), sorted(left))


def assets_of(folder: Path) -> list[Path]:
    """The files that belong to the model next to its weights: tokenizer, processor, templates, custom code."""
    return beside(folder).belong


def is_module_weight(path: PurePosixPath | Path) -> bool:
    """True for the weights of a sentence-transformers module, such as `2_Dense/model.safetensors`.

    Args:
        path: relative to the model folder.
    """
    return len(path.parts) == 2 and _MODULE.match(path.parts[0]) is not None and path.name in _MODULE_WEIGHTS


def left_with_weights(folder: Path) -> list[str]:
    """The weight files of further models in subfolders, which `assets_of` does not include.

    Such a subfolder has its own config next to its weights, and is not a step or a role of a run.
    """
    found = []
    below = sorted(entry.name for entry in entries(folder) if entry.is_folder)
    for child in map(folder.joinpath, below):
        if is_trainers(child.name) or child.name.startswith("."):
            continue
        if any(is_file(child / name) for name in ("config.json", "adapter_config.json")):
            found += [
                f"{child.name}/{path.name}"
                for path in paths_in(child)
                if path.suffix in (".safetensors", ".bin") and not is_module_weight(path.relative_to(folder))
            ]
    return found


def _inside(folder: Path, path: Path) -> bool:
    """True if the file is inside the folder once links are resolved."""
    root = resolved(folder)
    homes = {root}
    if (
        root.parent.name == "snapshots"
    ):  # a folder of huggingface_hub's cache, whose files are links to ../../blobs
        homes.add(root.parent.parent / "blobs")
    return bool(homes & {*resolved(path).parents})


def is_asset(path: str) -> bool:
    """True if `assets_of` would include a file with this path in the model folder."""
    *folders, name = PurePosixPath(path).parts
    if is_module_weight(PurePosixPath(path)):
        return True
    if any(folder.startswith(".") for folder in folders) or any(map(is_trainers, (*folders, name))):
        return False
    return is_known(path) and not _is_taken_care_of(name)


def copy_asset(source: Path, target: Path) -> None:
    """Copy one file byte for byte, and create the folder for it.

    Raises:
        CkptconvError: a file cannot be read or written.
    """
    target.parent.mkdir(parents=True, exist_ok=True)
    _copy(source, target)


def write_config(target: Path, config: dict[str, Any], original: Path | None) -> None:
    """Write config.json, with the original's own bytes if no value changed.

    Args:
        target: the file to write.
        config: the config.
        original: the trainer's file; None if there is none.
    """
    if original is not None:
        path = original / "config.json" if is_dir(original) else original
        if is_file(path) and read_config(path) == config:
            _copy(path, target / "config.json")
            return
    # A lone surrogate, which JSON can hold and UTF-8 cannot, stays an escape.
    (target / "config.json").write_text(
        json.dumps(config, indent=2, ensure_ascii=False) + "\n", encoding="utf-8", errors="backslashreplace"
    )


def _copy(source: Path, target: Path) -> None:
    try:
        if far_of(source) is None:
            shutil.copyfile(source, target)
        else:
            with opened(source, "a file") as content, target.open("wb") as file:
                for start in range(0, content.nbytes, _PIECE):
                    file.write(content.read(start, _PIECE))
    except OSError as error:
        if error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EROFS):
            raise cannot_write(target, error) from error
        raise CkptconvError(
            f"cannot be copied: {error.strerror}", where=source, kind=Kind.ENVIRONMENT
        ) from error  # the read or the write failed


def _is_wanted(name: str, include: Sequence[str]) -> bool:
    """True if a glob of the user's takes a file. Weights have to be named in full, and ours are never replaced."""
    last = name.rpartition("/")[2]
    if last.endswith((".safetensors", ".index.json")) or last in (*_NOT_COPIED, "config.json"):
        return False
    if _is_taken_care_of(last):
        return name in include
    return any(fnmatchcase(name, glob) or fnmatchcase(last, glob) for glob in include)


def _walk(folder: Path, inside: str = "") -> Iterator[str]:
    """Every visible file under a folder, relative to it, but for the folders that a trainer makes."""
    for entry in entries(folder):
        name = entry.name
        if name.startswith("."):
            continue
        if entry.is_folder:
            if not is_trainers(name):
                yield from _walk(entry.path, f"{inside}{name}/")
        elif entry.is_regular:
            yield inside + name


def _is_taken_care_of(name: str) -> bool:
    """True for weights, their index, what a receipt or an adapter needs, and temporary files: they never come along."""
    return name.endswith((*_WEIGHTS, ".index.json", ".tmp")) or name in _NOT_COPIED
