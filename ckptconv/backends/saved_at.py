"""Notes on files whose times of change differ: a file that is newer or older than the others may be of another save.

Times are weak evidence, because a copy has the time of copying. A note is made only if the files of one folder form two
groups that were each written within a short time, long apart. Only a person can judge what it means.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from datetime import datetime, timezone
from itertools import pairwise
from pathlib import Path

from ckptconv.errors import listed
from ckptconv.tensors.look import is_file, stamp

_LONG = 600  # seconds between the groups; torch's default timeout for ranks that wait for each other
_TIMES = 10  # the time between the groups is at least this many times as long as each group took
_SKEW = 60  # seconds by which the clocks of two nodes may differ, plus the time to close a file
_MEANING = "Unless that is when it was copied, the folder mixes two saves"


def apart(files: Sequence[Path], last: Path | None = None, inside: int = 0) -> list[str]:
    """Notes on files that were changed long before or after the others of their folder.

    Args:
        files: the files of one checkpoint.
        last: the file that the trainer writes after all others, such as DCP's `.metadata`; None if there is none.
        inside: the number of folders between a file and the folder of all files; 1 where each rank has a folder of its own.
    """
    folders: dict[Path, list[tuple[float, str]]] = {}
    for path in files:
        home, name = path.parent, path.name
        for _ in range(inside):
            home, name = home.parent, f"{home.name}/{name}"
        folders.setdefault(home, []).append((_changed(path), name))
    notes: list[str] = []
    for found in folders.values():
        notes += _two_groups(sorted(found))
    if last is not None and not notes:
        notes += _after(last, sorted(folders.get(last.parent, [])))
    return list(dict.fromkeys(notes))  # nanotron has a folder for each module, with files of equal names


def _two_groups(times: Sequence[tuple[float, str]]) -> Iterator[str]:
    """A note if the longest pause between two files separates a few of them from the others.

    Args:
        times: (seconds since the epoch, name) of each file, in order.
    """
    gaps = [(later[0] - earlier[0], n + 1) for n, (earlier, later) in enumerate(pairwise(times))]
    gap, at = max(gaps, default=(0.0, 0))
    before, after = times[:at], times[at:]
    if gap < _LONG or gap < _TIMES * max(_span(before), _span(after)):
        return
    few, many = (after, before) if len(after) <= len(before) else (before, after)
    yield f"{_names(few)}: changed at {_when(few)}, the other {len(many)} at {_when(many)}. {_MEANING}"


def _after(last: Path, times: Sequence[tuple[float, str]]) -> Iterator[str]:
    """A note if at most half of the files are newer than the file that is written last.

    Args:
        last: that file.
        times: (seconds since the epoch, name) of each file, in order.
    """
    if not is_file(last):
        return
    end = _changed(last)
    late = [item for item in times if item[0] > end + _SKEW]
    if late and 2 * len(late) <= len(times):
        written = _when([(end, "")])
        yield f"{_names(late)}: changed at {_when(late)}, after {last.name}, the file written last, at {written}. {_MEANING}"


def _changed(path: Path) -> float:
    """When a file was changed, in seconds since 1970."""
    return stamp(path).changed / 10**9


def _span(times: Sequence[tuple[float, str]]) -> float:
    return times[-1][0] - times[0][0] if times else 0.0


def _names(times: Sequence[tuple[float, str]]) -> str:
    return listed(sorted(name for _, name in times))


def _when(times: Sequence[tuple[float, str]]) -> str:
    return f"{datetime.fromtimestamp(times[-1][0], tz=timezone.utc):%Y-%m-%d %H:%M} UTC"
