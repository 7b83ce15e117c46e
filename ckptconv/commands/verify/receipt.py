"""The receipt's hashes against the files' bytes, read plainly from where the headers place them."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

import xxhash

from ckptconv.commands.verify.integrity import Found, OnRead, Stretch, read_file, read_json
from ckptconv.commands.verify.records import Problem
from ckptconv.copy.run import HASH, HASH_BLOCK, combine
from ckptconv.errors import CkptconvError
from ckptconv.publish.receipt import RECEIPT
from ckptconv.read import workers as threads


def receipt_files(folder: Path) -> list[Path]:
    """The files whose tensors a folder's receipt has hashes for."""
    receipt = read_json(folder / RECEIPT, Found()) or {}
    return [folder / name for name in receipt.get("files", {}) if (folder / name).is_file()]


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
    if receipt.get("hash") != HASH:
        found.notes.append(f"{RECEIPT} has hashes of an unknown kind: {receipt.get('hash')}")
        return found
    stated = {name: entry.get("hash") for name, entry in receipt.get("tensors", {}).items()}
    placed = dict(places)
    for name, nbytes in receipt.get("files", {}).items():
        path = folder / name
        if not path.is_file():
            found.problems.append(
                Problem(name, "the receipt names this file, and it is not here", str(folder))
            )
        elif path.stat().st_size != nbytes:
            found.problems.append(
                Problem(name, f"has {path.stat().st_size:,} bytes, the receipt says {nbytes:,}")
            )
        elif path.parent != folder:
            placed.update(
                {f"{Path(name).parent.as_posix()}/{key}": at for key, at in read_file(path, found).items()}
            )
    hashes = _hashes({name: placed[name] for name in stated if name in placed}, workers, on_read)
    hint = "the file was changed or damaged after it was written"
    for name, wanted in stated.items():
        if name not in placed:
            found.problems.append(Problem(name, "the receipt has it, no file does"))
        elif hashes[name] != wanted:
            found.problems.append(
                Problem(name, "its bytes are not those of the receipt's hash", placed[name].file.name, hint)
            )
    found.problems += [
        Problem(name, "the receipt does not know it", placed[name].file.name)
        for name in placed
        if name not in stated
    ]
    found.seen.append(f"{len(hashes):,} hashes")
    return found


def _hashes(places: Mapping[str, Stretch], workers: int | None, on_read: OnRead) -> dict[str, str]:
    hashes: dict[str, str] = {}

    @contextmanager
    def worker() -> Iterator[Callable[[tuple[str, Stretch]], None]]:
        buffer = memoryview(bytearray(HASH_BLOCK))

        def do(task: tuple[str, Stretch]) -> None:
            name, place = task
            hashes[name] = _hash(place, buffer, on_read)

        yield do

    threads.for_each(places.items(), worker, threads.count(workers))
    return hashes


def _hash(place: Stretch, buffer: memoryview, on_read: OnRead) -> str:
    digests: list[bytes] = []
    left = place.nbytes
    with open(place.file, "rb", buffering=0) as file:
        file.seek(place.start)
        while left or not digests:
            size, got = min(left, HASH_BLOCK), 0
            while got < size:
                n = file.readinto(buffer[got:size])
                if not n:
                    raise CkptconvError("the file became shorter while it was read", where=place.file)
                got += n
            digests.append(xxhash.xxh3_128_digest(buffer[:size]))
            left -= size
            if on_read:
                on_read(size)
    return combine(digests)
