"""Computes the receipt's hash of a tensor: XXH3-128 of each block of its bytes, then of these digests in order."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import NamedTuple

import xxhash

from ckptconv.errors import CkptconvError, Kind
from ckptconv.read import workers as threads
from ckptconv.tensors.look import opened

HASH_BLOCK = 4 << 20  # bytes per digest; the receipt's format fixes this constant
HASH = "xxh3-128/4MiB"


class Stretch(NamedTuple):
    """The bytes of a tensor: the file, the first byte and the number of bytes."""

    file: Path
    start: int
    nbytes: int


def combine(digests: list[bytes]) -> str:
    """The hash of a tensor from the digests of its blocks: a single digest itself, or the digest of all in order."""
    return digests[0].hex() if len(digests) == 1 else xxhash.xxh3_128_hexdigest(b"".join(digests))


def hash_stretches(
    places: Mapping[str, Stretch], workers: int | None = None, on_read: Callable[[int], None] | None = None
) -> dict[str, str]:
    """Read bytes from files and hash them as the receipt does.

    Args:
        places: name -> where its bytes are.
        workers: threads; None for one per core. Each has a buffer of HASH_BLOCK bytes.
        on_read: called with the bytes of each block that was read, from any thread.

    Returns:
        name -> hash, for every name.

    Raises:
        CkptconvError: a file cannot be read, or ends too early.
    """
    hashes: dict[str, str] = {}

    @contextmanager
    def worker() -> Iterator[Callable[[tuple[str, Stretch]], None]]:
        buffer = memoryview(bytearray(HASH_BLOCK))

        def do(task: tuple[str, Stretch]) -> None:
            name, place = task
            try:
                hashes[name] = _hash(place, buffer, on_read)
            except OSError as error:
                raise CkptconvError(
                    f"cannot be read: {error.strerror}", where=place.file, kind=Kind.ENVIRONMENT
                ) from error

        yield do

    threads.for_each(places.items(), worker, threads.count(workers))
    return hashes


def _hash(place: Stretch, buffer: memoryview, on_read: Callable[[int], None] | None) -> str:
    digests: list[bytes] = []
    left = place.nbytes
    with opened(place.file, "a safetensors file") as file:
        while left or not digests:
            size = min(left, HASH_BLOCK)
            if file.fill(place.start + place.nbytes - left, buffer[:size]) < size:
                raise CkptconvError(
                    "the file became shorter while it was read", where=place.file, kind=Kind.ENVIRONMENT
                )
            digests.append(xxhash.xxh3_128_digest(buffer[:size]))
            left -= size
            if on_read:
                on_read(size)
    return combine(digests)
