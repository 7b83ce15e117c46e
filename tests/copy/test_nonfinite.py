"""The digest of a block, and the look for NaN and Inf that shares its pieces."""

from __future__ import annotations

import numpy as np
import pytest
import xxhash

from ckptconv.copy.nonfinite import _PIECE, digest_and_look
from ckptconv.read.reader import raw_dtype
from ckptconv.tensors.dtypes import FLOAT_BITS, itemsize

SIZES = (0, 1, 3, _PIECE // 8 - 1, _PIECE // 8, _PIECE // 4 + 1, _PIECE + 5)


@pytest.mark.parametrize(
    "dtype", ["float32", "bfloat16", "float16", "float64", "float8_e4m3fn", "int64", "bool"]
)
@pytest.mark.parametrize("numel", SIZES)
def test_the_digest_is_that_of_the_whole_block(dtype: str, numel: int) -> None:
    data = np.random.default_rng(numel).integers(0, 100, numel * itemsize(dtype), np.uint8)
    assert digest_and_look(data, dtype)[0] == xxhash.xxh3_128_digest(data)


@pytest.mark.parametrize("dtype", list(FLOAT_BITS))
@pytest.mark.parametrize("place", [0, -1, _PIECE // 2, _PIECE])
@pytest.mark.parametrize("negative", [False, True])
def test_one_bad_element_is_found_in_any_piece(dtype: str, place: int, negative: bool) -> None:
    bits, raw = FLOAT_BITS[dtype], raw_dtype(dtype)
    values = np.full(2 * _PIECE, bits.first - 1, raw)  # the largest finite magnitude
    values[::2] |= raw.type(bits.mask + 1)  # of both signs
    assert not digest_and_look(values.view(np.uint8), dtype)[1]
    values[place] = bits.first + (bits.mask + 1 if negative else 0)
    assert digest_and_look(values.view(np.uint8), dtype)[1]
