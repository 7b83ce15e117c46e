"""Read what hf_xet stored under a `local://` address: which Xet file has a given sha256, and its bytes.

A shard (xet-core, `mdb_shard`: shard_format.rs, file_structs.rs) is a 48-byte header, then 48-byte records.
A file is one record with its hash, flags and number of segments, then the segments, then as many verification
records if bit 31 of the flags is set, then one record with its sha256 if bit 30 is set. ff..ff ends the list.
"""

from __future__ import annotations

import struct
import time
from pathlib import Path

_RECORD = 48
_VERIFICATION, _SHA256 = 1 << 31, 1 << 30


def address(cas: Path) -> str:
    """The casUrl that makes hf_xet store in a folder instead of a server."""
    return f"local://{cas}"


def token_answer(cas: Path) -> dict[str, object]:
    """What the xet-{read,write}-token endpoints say."""
    return {"casUrl": address(cas), "accessToken": "xet-token", "exp": int(time.time()) + 3600}


def hashes(cas: Path) -> dict[str, str]:
    """The Xet hash of every stored file, by its sha256."""
    found: dict[str, str] = {}
    for shard in sorted((cas / "xet" / "xorbs" / "shards").glob("*.mdb")):
        found.update(_files(shard.read_bytes()))
    return found


def stored_bytes(cas: Path) -> int:
    """How many bytes of content lie in the folder."""
    found = (cas / "xet" / "xorbs" / "xorbs").glob("default.*")
    return sum(path.stat().st_size for path in found if path.suffix != ".tagset")


def fetch(cas: Path, xet_hash: str, size: int, target: Path) -> None:
    """Put the bytes of one stored file at target."""
    import hf_xet

    group = hf_xet.XetSession().new_file_download_group(
        endpoint=address(cas), token="xet-token", token_expiry_unix_secs=int(time.time()) + 3600
    )
    with group as download:
        download.start_download_file(hf_xet.XetFileInfo(xet_hash, size), str(target))


def _files(data: bytes) -> dict[str, str]:
    found, at = {}, _RECORD
    while data[at : at + 32] != b"\xff" * 32:
        flags, segments = struct.unpack_from("<II", data, at + 32)
        name = _hex(data[at : at + 32])
        at += _RECORD * (1 + segments * (2 if flags & _VERIFICATION else 1))
        if flags & _SHA256:
            found[_hex(data[at : at + 32])] = name
            at += _RECORD
    return found


def _hex(digest: bytes) -> str:
    """Xet prints a hash as four little-endian 64-bit words."""
    return "".join(f"{word:016x}" for word in struct.unpack("<4Q", digest))
