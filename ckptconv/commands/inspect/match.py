"""Finds the tensors of `--tensor PATTERN`, and each rank's part of them."""

from __future__ import annotations

import difflib
import fnmatch
import re
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator
from itertools import groupby
from typing import Any

from ckptconv.commands.inspect.records import Match, Part
from ckptconv.errors import CkptconvError, Kind
from ckptconv.tensors.boxes import Chunk, Shape, box_around
from ckptconv.tensors.checkpoint import Checkpoint, StoredTensor, starred
from ckptconv.tensors.dtypes import itemsize

_GLOB = re.compile(r"[*?\[]")
_NEAR = 3


def matches_of(checkpoint: Checkpoint, pattern: str) -> tuple[Match, ...]:
    """The tensors that a pattern matches, in stored order. Tensors with equal parts share a record.

    Args:
        checkpoint: the checkpoint.
        pattern: see `matcher`.

    Raises:
        CkptconvError: no name matches; the error lists the nearest names.
    """
    if not pattern.strip():
        raise CkptconvError(
            "--tensor needs a pattern, and this one is empty",
            hint="--tensor '*' matches all tensors",
            kind=Kind.USAGE,
        )
    fits = matcher(pattern)
    names = [name for name in checkpoint.tensors if fits(name)]
    if not names:
        raise CkptconvError(
            f"no tensor's name matches {pattern}",
            where=checkpoint.root,
            found=f"{len(checkpoint.tensors)} tensors",
            hint=f"nearest: {', '.join(nearest(pattern, checkpoint.tensors))}",
            kind=Kind.USAGE,
        )
    coordinates = {file.path: (file.rank, dict(file.coordinate)) for file in checkpoint.files}
    groups: dict[tuple[Any, ...], list[str]] = defaultdict(list)
    found: dict[str, tuple[Part, ...]] = {}
    for name in names:
        tensor = checkpoint.tensors[name]
        found[name] = parts = tuple(_parts(tensor, coordinates))
        alike = tuple((p.rank, p.offsets, p.sizes, p.run, p.file, p.copy) for p in parts)
        groups[starred(name), tensor.view.shape, tensor.view.dtype, tensor.placement, alike].append(name)
    return tuple(
        Match(
            star if len(same) > 1 else same[0],
            tuple(same),
            shape,
            dtype,
            placement,
            checkpoint.tensors[same[0]].view.nbytes,
            found[same[0]],
        )
        for (star, shape, dtype, placement, _), same in groups.items()
    )


def matcher(pattern: str) -> Callable[[str], bool]:
    """A predicate for names.

    A glob must match the whole name, or its end after a dot. Any other pattern must be a part of the name. `...` means
    `*`. A number in the pattern matches only the same number: `layers.3` and `layers.3...` do not match layer 31.
    """
    text = pattern.replace("…", "...").strip()
    if "..." not in text and not _GLOB.search(text):
        before = r"(?<!\d)" if text[:1].isdigit() else ""
        after = r"(?!\d)" if text[-1:].isdigit() else ""
        found = re.compile(f"{before}{re.escape(text)}{after}")
        return lambda name: found.search(name) is not None
    pieces = [fnmatch.translate(piece).removeprefix("(?s:") for piece in text.split("...")]
    joined = ""
    for number, piece in enumerate(pieces):
        end = re.sub(
            r"\)(?:\\[zZ])$", "", piece
        )  # fnmatch.translate adds anchors: (?s:…)\Z, or \z on newer Pythons
        guard = r"(?!\d)" if number and text.split("...")[number - 1][-1:].isdigit() else ""
        joined += (f"{guard}.*" if number else "") + end
    whole = re.compile(rf"(?s:(?:.*\.)?{joined})\Z")
    return lambda name: whole.match(name) is not None


def nearest(pattern: str, names: Iterable[str]) -> list[str]:
    """The names that are most similar to a pattern, one for all names that differ only in numbers.

    Args:
        pattern: what the user typed.
        names: all names.
    """
    first: dict[str, str] = {}
    for name in names:
        first.setdefault(starred(name), name)
    wanted = re.sub(r"\d+", "*", pattern.replace("...", "").replace("…", "")).strip("*.")
    words = set(re.split(r"[._*]+", wanted.lower())) - {""}

    def likeness(star: str) -> tuple[float, float]:
        own = set(re.split(r"[._*]+", star.lower()))
        close = sum(max((_ratio(word, other) for other in own), default=0.0) for word in words)
        return close, _ratio(wanted, star)

    return [first[star] for star in sorted(first, key=likeness, reverse=True)[:_NEAR]]


def _ratio(a: str, b: str) -> float:
    return difflib.SequenceMatcher(None, a, b).ratio()


_Coordinates = dict[str, tuple[int, dict[str, int]]]


def _parts(tensor: StoredTensor, coordinates: _Coordinates) -> Iterator[Part]:
    """The parts of a tensor in every file, both used ones and copies, in the order of their elements."""
    shape, item = tensor.view.shape, itemsize(tensor.view.dtype)
    placed = [(chunk, False) for chunk in tensor.view.chunks]
    for at, view in tensor.replicas:
        placed += [(chunk._replace(offsets=chunk.box.shifted(at).offsets), True) for chunk in view.chunks]
    placed.sort(key=lambda pair: (pair[1], pair[0].file, pair[0].box.position_in(shape)))
    found: list[Part] = []
    for (copy, file), group in groupby(placed, key=lambda pair: (pair[1], pair[0].file)):
        rank, coordinate = coordinates[file]
        for run in _runs([chunk for chunk, _ in group], shape, item):
            offsets, sizes = box_around(c.box for c in run)
            begin, count = run[0].box.position_in(shape), sum(c.box.volume for c in run)
            between = (begin, begin + count - 1) if len(run) > 1 else None
            found.append(
                Part(rank, coordinate, offsets, sizes, between, count * item, file, run[0].start, copy)
            )
    yield from sorted(found, key=lambda part: (_first(part, shape), part.copy, part.rank))


def _first(part: Part, shape: Shape) -> int:
    return part.run[0] if part.run else part.box.position_in(shape)


def _runs(chunks: list[Chunk], shape: Shape, item: int) -> Iterator[list[Chunk]]:
    """Group the chunks of one file. Chunks that follow each other in the tensor and in the file form one run.

    A run that begins or ends in the middle of a row (a flat partition) consists of up to 2n-1 boxes.
    """
    run: list[Chunk] = []
    for chunk in chunks:
        if run and not _follows(run[-1], chunk, shape, item):
            yield run
            run = []
        run.append(chunk)
    if run:
        yield run


def _follows(one: Chunk, two: Chunk, shape: Shape, item: int) -> bool:
    count = one.box.volume
    return (
        one.box.is_contiguous_in(shape)
        and two.box.is_contiguous_in(shape)
        and two.box.position_in(shape) == one.box.position_in(shape) + count
        and two.start == one.start + count * item
    )
