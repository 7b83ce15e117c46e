"""The directories of like files: those of the ranks of a large job mostly differ in checksums and in their pickle's length.

What follows from a directory is worked out for one of these files. In the others it is compared bit by bit, but for the
CRCs and for the places of the small entries before the first storage, and these are read. torch prefixes all names with that
of the file (torch/serialization.py, _open_zipfile_writer_file), which differs as well.
"""

from __future__ import annotations

import struct
from collections.abc import Sequence
from typing import NamedTuple, Union

from ckptconv.errors import CkptconvError, Kind
from ckptconv.formats.stand_ins import TensorRecord
from ckptconv.formats.zip_directory import Directory, RawDirectory, Window, ZipEntry, data_start, entry_at
from ckptconv.formats.zip_places import USUAL_ALIGNMENT, Computed, computed_start, stated_alignment

RESAVE = "load it with the torch that wrote it and torch.save it again (the zip form is the default since torch 1.6)"
_MAIN = "data.pkl"
# A tensor, the size of its storage, and the storage's CRC, or the file if none was written -> the tensor's values.
Ints = dict[tuple[TensorRecord, int, Union[int, str]], list[int]]  # noqa: UP007 - it is evaluated on Python 3.10
_LENGTH, _LENGTH_AT, _NAME = (
    struct.Struct("<H"),
    28,
    46,
)  # where an entry has the length of its name, and its name
_CRC = 16  # where an entry of a directory has its CRC-32
_SMALL = ((20, 8), (42, 4))  # its two sizes, and the place of its local header: (where, bytes)
_MOST = 8  # forms; a file that has none of them is read on its own


class Place(NamedTuple):
    """One storage: its first byte in the file, its length in bytes, and the number of its entry in the directory."""

    start: int
    nbytes: int
    number: int


class Form:
    """What the directories of like files have in common. Forms are compared by identity.

    Attributes:
        main: the number of the pickle's entry in the directory.
        order: the number of the byte order's entry; None if there is none.
        places: key -> storage, in file order.
        nbytes: the size of all storages.
        computed: the entries whose places were computed.
    """

    __slots__ = ("computed", "main", "nbytes", "order", "places")

    def __init__(
        self,
        main: int,
        order: int | None,
        places: dict[str, Place],
        computed: Computed,
    ) -> None:
        self.main, self.order, self.places, self.computed = main, order, places, computed
        self.nbytes = sum(place.nbytes for place in places.values())

    @property
    def is_computed(self) -> bool:
        """True if the directory alone tells the places of all storages, and none was taken from a local header."""
        return 0 < len(self.computed.starts) == len(self.places)


class Formed(NamedTuple):
    """One file's directory.

    Attributes:
        form: what it shares with like files.
        crcs: the CRC-32 of every entry, in the directory's order.
        main: the entry of the pickle.
        order: the entry of the byte order; None if there is none.
    """

    form: Form
    crcs: Sequence[int]
    main: ZipEntry
    order: ZipEntry | None

    @property
    def prefix(self) -> str:
        """What all names of the archive begin with."""
        return self.main.name.removesuffix(_MAIN)


class Forms:
    """The forms of one checkpoint's files.

    Attributes:
        ints: the values of small tensors that were read; see `TorchZip.ints`.
    """

    def __init__(self) -> None:
        self._known: list[_Known] = []
        self.ints: Ints = {}

    def find(self, raw: RawDirectory, size: int) -> Formed | None:
        """Return a directory in the form of a file before it, or None if none had its form.

        Args:
            raw: the directory.
            size: the size of the archive, in bytes.
        """
        plain = _without_prefix(raw.data) if self._known else b""
        for known in self._known:
            alike = (len(raw.data), raw.total, raw.begin, size) == known.sizes
            if alike and int.from_bytes(plain, "little") & known.mask == known.rest:
                main, order = (at if at is None else entry_at(raw.data, at)[0] for at in known.small)
                assert main is not None
                return Formed(known.form, known.crcs.unpack_from(raw.data), main, order)
        return None

    def add(self, form: Form, raw: RawDirectory, size: int) -> None:
        """Remember the form of a directory."""
        if form.is_computed and len(self._known) < _MOST:
            self._known.append(_known(form, raw, size))


class _Known(NamedTuple):
    """A form, with what makes another directory have it: equal sizes, and equal bits where `mask` has ones."""

    form: Form
    sizes: tuple[int, int, int, int]
    mask: int
    rest: int
    crcs: struct.Struct
    small: tuple[int | None, int | None]  # where the entries of the pickle and the byte order are


def _without_prefix(data: bytes) -> bytes:
    """Return a directory's bytes with NULs in the place of the first segment of its names."""
    if len(data) < _NAME:
        return data
    (length,) = _LENGTH.unpack_from(data, _LENGTH_AT)
    prefix, slash, _ = data[_NAME : _NAME + length].partition(b"/")
    return data.replace(prefix + slash, bytes(len(prefix + slash))) if slash else data


def _known(form: Form, raw: RawDirectory, size: int) -> _Known:
    mask, parts, at, end = bytearray(b"\xff" * len(raw.data)), ["<"], 0, 0
    places: list[int] = []
    for _ in range(raw.total):
        places.append(at)
        entry, following = entry_at(raw.data, at)
        small = entry.header < form.computed.headers[0]
        for field, width in ((_CRC, 4), *(_SMALL if small else ())):
            mask[at + field : at + field + width] = bytes(width)
        parts.append(f"{at + _CRC - end}xI")
        at, end = following, at + _CRC + 4
    bits = int.from_bytes(mask, "little")
    sizes = len(raw.data), raw.total, raw.begin, size
    order = None if form.order is None else places[form.order]
    return _Known(
        form,
        sizes,
        bits,
        int.from_bytes(_without_prefix(raw.data), "little") & bits,
        struct.Struct("".join(parts)),
        (places[form.main], order),
    )


def form_of(window: Window, directory: Directory, compute: bool) -> Formed:
    """Check a directory's entries, and find the places of its storages.

    Args:
        window: the archive.
        directory: its central directory.
        compute: compute places where that is possible; else every local header is read.

    Raises:
        CkptconvError: it is not an archive of torch.save, or its storages overlap or are outside it.
    """
    entries, path = directory.entries, window.path
    if len({entry.name for entry in entries}) != len(entries):
        raise CkptconvError("two entries of a torch file have one name", where=path, kind=Kind.DAMAGED)
    main = next((item for item in enumerate(entries) if item[1].name.endswith(f"/{_MAIN}")), None)
    if main is None:
        raise CkptconvError("not a torch.save file: the zip has no data.pkl", where=path, kind=Kind.DAMAGED)
    prefix = main[1].name.removesuffix(_MAIN)
    for entry in entries:
        if not entry.stored:
            raise CkptconvError(
                "a compressed entry is not a torch storage",
                where=f"{path}:{entry.name}",
                hint=RESAVE,
                kind=Kind.DAMAGED,
            )
    order = next((item for item in enumerate(entries) if item[1].name == f"{prefix}byteorder"), None)
    places, computed = _places(window, directory, prefix, compute)
    form = Form(main[0], None if order is None else order[0], places, Computed.of(computed, prefix))
    crcs = [entry.crc for entry in entries]
    return Formed(form, crcs, main[1], None if order is None else order[1])


def _places(
    window: Window, directory: Directory, prefix: str, compute: bool
) -> tuple[dict[str, Place], list[tuple[ZipEntry, int]]]:
    """Return key -> storage in file order, and the entries whose places were computed.

    Raises:
        CkptconvError: a storage is outside the archive or overlaps another.
    """
    ordered = sorted(enumerate(directory.entries), key=lambda item: item[1].header)
    ends = [*(entry.header for _, entry in ordered[1:]), directory.begin]
    places, computed, end = dict[str, Place](), list[tuple[ZipEntry, int]](), 0
    data, alignment, is_stated = f"{prefix}data/", USUAL_ALIGNMENT, False
    first: int | None = None  # the header of the first storage; torch writes the small entries before it
    for (number, entry), following in zip(ordered, ends, strict=True):
        if not entry.name.startswith(data):
            continue
        first = entry.header if first is None else first
        start = computed_start(entry, following, alignment) if compute else None
        if start is None and compute and not is_stated:
            window.keep(0, first)
            alignment, is_stated = stated_alignment(window, directory.entries, prefix), True
            start = computed_start(entry, following, alignment)
        if start is None:
            start = data_start(window, entry)
        else:
            computed.append((entry, start))
        if start < end or start + entry.nbytes > window.size:
            raise CkptconvError(
                "a storage lies outside the file or overlaps another one",
                where=f"{window.path}:{entry.name}",
                kind=Kind.DAMAGED,
            )
        end = start + entry.nbytes
        places[entry.name[len(data) :]] = Place(window.start + start, entry.nbytes, number)
    return places, computed
