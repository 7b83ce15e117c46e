"""Compares a receipt with the files next to it. A contradiction means that a file was changed or damaged since."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path, PurePosixPath
from typing import Any, NamedTuple

from ckptconv.copy.hashing import HASH, Stretch, hash_stretches
from ckptconv.errors import CkptconvError, Kind
from ckptconv.formats.json import read_json
from ckptconv.formats.safetensors import read_header
from ckptconv.publish.receipt import RECEIPT, SMALL_FILES
from ckptconv.tensors.look import is_file, size_of


class Contradiction(NamedTuple):
    """One contradiction between the receipt and the files.

    Args:
        name: the tensor or the file.
        what: the contradiction, for the user.
        where: the file; "" if there is none.
    """

    name: str
    what: str
    where: str = ""


class Compared(NamedTuple):
    """The result of a comparison.

    Args:
        hashes: the number of tensors that were read and hashed.
        wrong: all contradictions.
    """

    hashes: int
    wrong: tuple[Contradiction, ...]


def require_agreement(folder: Path, workers: int | None = None) -> int:
    """Hash every tensor of a folder that has a receipt, and compare.

    Args:
        folder: a folder of a model or an adapter. It passes if it has no receipt, or one with another kind of hashes.
        workers: threads; None for one per core.

    Returns:
        How many tensors were hashed.

    Raises:
        CkptconvError: the receipt cannot be read, or contradicts a file.
    """
    path = folder / RECEIPT
    hint = f"copy or convert the folder again; if you changed it on purpose: rm {path}"
    if not is_file(path):
        return 0
    receipt = read_json(path)
    if not is_receipt(receipt):
        raise CkptconvError(
            f"{RECEIPT} is not a receipt that ckptconv wrote", where=path, hint=hint, kind=Kind.DAMAGED
        )
    if receipt.get("hash") != HASH:
        return 0
    found = compare(receipt, folder, _places(receipt, folder), workers)
    if found.wrong:
        first, more = found.wrong[0], len(found.wrong) - 1
        raise CkptconvError(
            f"{RECEIPT} contradicts the files next to it",
            where=folder,
            found=f"{first.name}: {first.what}" + (f", and {more:,} more contradictions" if more else ""),
            wanted="the bytes whose hashes the receipt lists",
            hint=hint,
            kind=Kind.DAMAGED,
        )
    return found.hashes


def is_receipt(data: Any) -> bool:
    """True if a JSON document has the parts of a receipt that `compare` reads."""
    if not isinstance(data, dict):
        return False
    tensors, files = data.get("tensors"), data.get("files")
    return (
        isinstance(tensors, dict)
        and isinstance(files, dict)
        and all(isinstance(entry, dict) for entry in tensors.values())
        and all(type(nbytes) is int for nbytes in files.values())
    )


def compare(
    receipt: Mapping[str, Any],
    folder: Path,
    places: Mapping[str, Stretch],
    workers: int | None = None,
    on_read: Callable[[int], None] | None = None,
) -> Compared:
    """Compare files and hashes.

    Args:
        receipt: a document that passes `is_receipt`, with hashes of the kind HASH.
        folder: the folder that holds the files.
        places: tensor -> where its bytes are according to the files' headers. The name of a tensor in a subfolder's file
            begins with the subfolder.
        workers: threads; None for one per core.
        on_read: called with the number of bytes that were read, from any thread.
    """
    wrong = []
    for name, nbytes in receipt["files"].items():
        path = folder / name
        if not is_file(path):
            wrong.append(Contradiction(name, "the receipt names this file, and it is not here", str(folder)))
        elif size_of(path) != nbytes:
            size = f"has {size_of(path):,} bytes, the receipt states {nbytes:,}"
            wrong.append(Contradiction(name, size, str(path)))
    expected = {name: entry.get("hash") for name, entry in receipt["tensors"].items()}
    hashes = hash_stretches({name: places[name] for name in expected if name in places}, workers, on_read)
    for name, wanted in expected.items():
        if name not in places:
            wrong.append(Contradiction(name, "the receipt has it, no file does"))
        elif hashes[name] != wanted:
            what = "its bytes are not those of the receipt's hash"
            wrong.append(Contradiction(name, what, places[name].file.name))
    wrong += [
        Contradiction(name, "the receipt does not know it", places[name].file.name)
        for name in places
        if name not in expected
    ]
    return Compared(len(hashes), tuple(wrong))


def changed_small_files(receipt: Mapping[str, Any], folder: Path) -> list[str]:
    """The small files that are not as the merge wrote them: "config.json changed", "chat_template.jinja is missing".

    People edit these files on purpose, so that a change is no contradiction. A receipt of an older ckptconv lists none.

    Args:
        receipt: a document that passes `is_receipt`, with hashes of the kind HASH.
        folder: the folder that holds the files.
    """
    stated = receipt.get(SMALL_FILES)
    if not isinstance(stated, dict):
        return []
    there = {
        name: Stretch(path, 0, size_of(path))
        for name in stated
        if is_file(path := folder / name) and folder in path.parents and ".." not in path.parts
    }
    hashes = hash_stretches(there, workers=1)
    return [
        f"{name} changed" if name in there else f"{name} is missing"
        for name, wanted in stated.items()
        if hashes.get(name) != wanted
    ]


def key_of(file: str, name: str) -> str:
    """The key of a tensor in the receipt.

    Args:
        file: the path of its file, relative to the model folder.
        name: its name in that file.
    """
    parent = PurePosixPath(file).parent.as_posix()
    return name if parent == "." else f"{parent}/{name}"


def _places(receipt: Mapping[str, Any], folder: Path) -> dict[str, Stretch]:
    places = {}
    for file in receipt["files"]:
        if is_file(folder / file):
            for name, view in read_header(folder / file)[0].items():
                start = view.chunks[0].start if view.chunks else 0
                places[key_of(file, name)] = Stretch(folder / file, start, view.nbytes)
    return places
