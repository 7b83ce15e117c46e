"""Whether two tools wrote the same model: a hash of every tensor's bytes, whatever files they lie in."""

from __future__ import annotations

import hashlib
import json
import struct
from pathlib import Path

_BLOCK = 4 << 20

Digests = dict[str, tuple[str, tuple[int, ...], str]]


def digests(folder: Path) -> Digests:
    """Tensor name -> dtype, shape and hash of its bytes, over all safetensors files of a folder."""
    found: Digests = {}
    for path in sorted(folder.glob("*.safetensors")):
        with path.open("rb") as file:
            (length,) = struct.unpack("<Q", file.read(8))
            header = json.loads(file.read(length))
            for name, entry in header.items():
                if name == "__metadata__":
                    continue
                begin, end = entry["data_offsets"]
                file.seek(8 + length + begin)
                digest = hashlib.blake2b(digest_size=16)
                left = end - begin
                while left:
                    block = file.read(min(left, _BLOCK))
                    digest.update(block)
                    left -= len(block)
                found[name] = (entry["dtype"], tuple(entry["shape"]), digest.hexdigest())
    return found
