"""Choose which archives of `.distcp` files to look at, so that few ranges of each file are read.

An archive has its directory at its end and its pickle at its beginning. The end of one is next to the beginning of the next,
and a small archive is read as a whole. So the archives that follow the largest one are preferred: where a layer's weights
are next to each other, one more kind takes one more range.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence

from ckptconv.backends.dcp.archive_file import Piece
from ckptconv.formats.zip_directory import EDGE
from ckptconv.tensors.intervals import joined

# Ranges of a file that are read where no elements are. Two more may be needed to tell copies, and one for settings: 8.
MOST_RANGES = 5
_GAP = 64 << 10  # bytes between two ranges that are read as well, since they cost less than another read


def ranges_of(pieces: Iterable[Piece]) -> list[tuple[int, int]]:
    """The ranges (start, end) of a file that hold the pickles and directories of some pieces' archives."""
    ends: list[tuple[int, int]] = []
    for piece in pieces:
        end, edge = piece.start + piece.length, min(piece.length, EDGE)
        ends += (piece.start, piece.start + edge), (end - edge, end)
    return joined(ends, _GAP)


def choose_samples(
    pieces: Sequence[Piece],
    kinds: Sequence[Sequence[int]],
    inside: Mapping[str, Sequence[int]],
    largest: Mapping[str, int],
    most: int | None,
) -> dict[int, int]:
    """Choose one piece of each kind to look at.

    Args:
        pieces: all pieces.
        kinds: the numbers of each kind's pieces.
        inside: file -> the numbers of its pieces.
        largest: file -> the number of its largest piece, which is looked at anyway.
        most: ranges of one file that may be read; None for as many as the kinds need.

    Returns:
        The number of a kind -> the number of a piece. Kinds for which `most` leaves no room are missing.
    """
    kind_of = [0] * len(pieces)
    for kind, numbers in enumerate(kinds):
        for number in numbers:
            kind_of[number] = kind
    looks = {file: [pieces[number]] for file, number in largest.items()}
    samples = {kind_of[number]: number for number in largest.values()}

    def take(number: int) -> bool:
        piece = pieces[number]
        if most is not None and len(ranges_of([*looks[piece.file], piece])) > most:
            return False
        looks[piece.file].append(piece)
        samples[kind_of[number]] = number
        return True

    for file, numbers in inside.items():
        if len(samples) == len(kinds):
            return samples
        at = {pieces[number].start: number for number in numbers}
        last = pieces[largest[file]]
        while (found := at.get(last.start + last.length)) is not None and kind_of[found] not in samples:
            if not take(found):
                break
            last = pieces[found]
    for kind, numbers in enumerate(kinds):
        if kind not in samples:
            one_each = {pieces[number].file: number for number in reversed(numbers)}
            any(take(one_each[file]) for file in sorted(one_each, key=lambda file: len(looks[file])))
    return samples
