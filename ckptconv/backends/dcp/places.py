"""Check that `.metadata` locates every entry that it describes in a place of its own.

torch/distributed/checkpoint/filesystem.py writes an archive for each part of each entry, also where weights are tied, so two
entries with one place are the work of another writer, or damage.
"""

from __future__ import annotations

from collections.abc import Container, Mapping
from pathlib import Path

from ckptconv.errors import CkptconvError, Kind
from ckptconv.formats.zip_directory import COPY_AGAIN
from ckptconv.tensors.checkpoint import starred

Info = tuple[str, int, int]  # file, offset, length
Infos = Mapping[
    tuple[str, tuple[int, ...] | None], Info
]  # name and offsets of a part -> the place of its archive


def check_places(infos: Infos, described: Container[str], metadata: Path) -> tuple[str, ...]:
    """Check the places of all entries.

    Args:
        infos: the places.
        described: the names of the entries that the metadata describes.
        metadata: the path of `.metadata`, for error messages.

    Returns:
        A note for each two names with one place, if tied weights can explain it.

    Raises:
        CkptconvError: an entry is located but not described, or parts of one tensor or of two layers have one place.
    """
    unknown = next((name for name, _ in infos if name not in described), None)
    if unknown is not None:
        raise CkptconvError(
            f"the metadata locates {unknown}, but does not describe it",
            where=metadata,
            hint=COPY_AGAIN,
            kind=Kind.DAMAGED,
        )
    if len(set(infos.values())) == len(infos):
        return ()
    first: dict[Info, tuple[str, tuple[int, ...] | None]] = {}
    notes = []
    for part, info in infos.items():
        other = first.setdefault(info, part)
        if other is part or not info[2]:
            continue
        if starred(other[0]) == starred(part[0]):
            raise CkptconvError(
                "the metadata locates two parts in one place",
                where=metadata,
                found=f"{_text(*other)} and {_text(*part)}: byte {info[1]:,} of {info[0]}",
                wanted="an archive for each",
                hint=COPY_AGAIN,
                kind=Kind.DAMAGED,
            )
        notes.append(f"{other[0]} and {part[0]} have one place in {info[0]}: they are read as tied weights")
    return tuple(dict.fromkeys(notes))


def _text(name: str, offset: tuple[int, ...] | None) -> str:
    return f"{name} at {list(offset)}" if offset else name
