"""The receipt's hashes against the files' bytes, read plainly from where safetensors' own reader places them."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from ckptconv.commands.verify.integrity import Found, OnRead, read_file, read_json
from ckptconv.commands.verify.records import Problem
from ckptconv.copy.hashing import HASH, Stretch
from ckptconv.publish.receipt import RECEIPT
from ckptconv.publish.receipt_check import compare, is_receipt, key_of
from ckptconv.tensors.look import is_file

_HINT = "the file was changed or damaged after it was written"


def receipt_files(folder: Path) -> list[Path]:
    """The files whose tensors a folder's receipt has hashes for."""
    receipt = read_json(folder / RECEIPT, Found())
    files = receipt["files"] if receipt is not None and is_receipt(receipt) else {}
    return [folder / name for name in files if is_file(folder / name)]


def check_receipt(
    folder: Path, places: Mapping[str, Stretch], workers: int | None, on_read: OnRead = None
) -> Found:
    """Hash every tensor again and compare with ckptconv.json."""
    found = Found()
    receipt = read_json(folder / RECEIPT, found)
    if receipt is None:
        if not found.problems:
            found.notes.append(f"no {RECEIPT} here: the hashes of its tensors are not known")
        return found
    if not is_receipt(receipt):
        found.problems.append(Problem(RECEIPT, "is not a receipt that ckptconv wrote", str(folder / RECEIPT)))
        return found
    if receipt.get("hash") != HASH:
        found.notes.append(f"{RECEIPT} has hashes of an unknown kind: {receipt.get('hash')}")
        return found
    placed = dict(places)
    for name in receipt["files"]:
        if (folder / name).parent != folder and is_file(folder / name):
            placed.update({key_of(name, key): at for key, at in read_file(folder / name, found).items()})
    compared = compare(receipt, folder, placed, workers, on_read)
    found.problems += [
        Problem(each.name, each.what, each.where, _HINT if each.what.startswith("its bytes") else "")
        for each in compared.wrong
    ]
    if compared.hashes:
        found.seen.append(f"{compared.hashes:,} hashes")
        found.proves.append("the tensors are those of the receipt")
    return found
