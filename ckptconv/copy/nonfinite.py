"""Hashes every block that is written and looks for NaN and Inf in it, while it is in a core's cache.

The two take turns on pieces of half a megabyte, so that the second finds the piece in the core's own cache. On blocks of
4 MiB the look then adds 0.08 ms to the hash's 0.2; after the whole hash it added 0.27.
"""

from __future__ import annotations

import numpy as np
import xxhash

from ckptconv.copy.finished import Nonfinite
from ckptconv.plan import Output
from ckptconv.read.reader import Array, raw_dtype
from ckptconv.tensors.dtypes import FLOAT_BITS
from ckptconv.tensors.holders import Holders
from ckptconv.tensors.view import View

_PIECE = 1 << 19  # bytes; a whole number of elements of every dtype
_LARGEST = np.maximum.reduce


def digest_and_look(data: Array, dtype: str) -> tuple[bytes, bool]:
    """The XXH3-128 digest of a block's bytes, and whether it holds NaN or Inf.

    We take two maxima over the bits, without a copy. As signed integers, the largest is the positive float with the largest
    magnitude; as unsigned integers, it is the negative float with the largest magnitude.

    Args:
        data: the bytes, as uint8.
        dtype: the dtype of the elements; dtypes that have neither NaN nor Inf are only hashed.
    """
    bits = FLOAT_BITS.get(dtype)
    if bits is None or not data.size:
        return xxhash.xxh3_128_digest(data), False
    unsigned = data.view(raw_dtype(dtype))
    signed = unsigned.view(f"i{unsigned.itemsize}")
    positive, negative = bits.first, bits.first + bits.mask + 1
    digest, strange, step = xxhash.xxh3_128(), False, _PIECE // unsigned.itemsize
    for at in range(0, unsigned.size, step):
        piece = unsigned[at : at + step]
        digest.update(piece)
        if not strange:
            strange = bool(_LARGEST(signed[at : at + step]) >= positive or _LARGEST(piece) >= negative)
    return digest.digest(), strange


class Gathered:
    """Counts the NaN and Inf of one tensor, and who stored them. Callers hold a lock."""

    def __init__(self, key: str, output: Output) -> None:
        self._key, self._output, self._count = key, output, 0
        view = output.source if isinstance(output.source, View) else None
        self._files = () if view is None else view.files
        numbers = {file: number for number, file in enumerate(self._files)}
        self._holders = None if view is None else Holders.of_view(view, output.shape, numbers)
        self._seen: set[int] = set()

    def add(self, data: Array, low: int) -> None:
        """Count those of a block. `low` is the flat index of its first element."""
        bits = FLOAT_BITS[self._output.dtype]
        raw = data.view(raw_dtype(self._output.dtype))
        places = np.flatnonzero((raw & raw.dtype.type(bits.mask)) >= bits.first)
        self._count += len(places)
        if self._holders is not None:
            self._seen |= self._holders.of(places + low, self._seen)

    def record(self) -> Nonfinite:
        """The result for the tensor."""
        files = tuple(self._files[number] for number in sorted(self._seen))
        return Nonfinite(self._key, self._count, self._output.source.numel, files)
