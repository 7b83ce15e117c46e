"""When files were last changed: a file that was put in later than the others may be of another save.

Times are weak evidence. Copies have the times of copying, so a note is made only where files of one folder fall into two
groups, each written within a short while, and long apart. What it means only a person can judge.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from datetime import datetime, timezone
from itertools import pairwise
from pathlib import Path

from ckptconv.errors import listed

_LONG = 600  # seconds; the ranks of one save wait for each other, and give up after about as long
_TIMES = 10  # how many times longer than the groups themselves took the time between them must be
_SKEW = 60  # seconds that the clocks of two nodes may differ, and that closing a file may take
_MEANING = "Unless that is when it was copied, the folder mixes two saves"


def apart(files: Sequence[Path], last: Path | None = None) -> list[str]:
    """Notes on files that were changed long before or after the others of their folder.

    last: the file that the trainer writes after all others, such as DCP's `.metadata`.
    """
    folders: dict[Path, list[tuple[float, str]]] = {}
    for path in files:
        folders.setdefault(path.parent, []).append((path.stat().st_mtime, path.name))
    notes: list[str] = []
    for found in folders.values():
        notes += _two_groups(sorted(found))
    if last is not None and not notes:
        notes += _after(last, sorted(folders.get(last.parent, [])))
    return notes


def _two_groups(times: Sequence[tuple[float, str]]) -> Iterator[str]:
    """One note where the longest time between two files cuts off a minority of them."""
    gaps = [(later[0] - earlier[0], n + 1) for n, (earlier, later) in enumerate(pairwise(times))]
    gap, at = max(gaps, default=(0.0, 0))
    before, after = times[:at], times[at:]
    if gap < _LONG or gap < _TIMES * max(_span(before), _span(after)):
        return
    few, many = (after, before) if len(after) <= len(before) else (before, after)
    yield f"{_names(few)}: changed at {_when(few)}, the other {len(many)} at {_when(many)}. {_MEANING}"


def _after(last: Path, times: Sequence[tuple[float, str]]) -> Iterator[str]:
    """One note where a minority of the files is younger than the file that is written last."""
    if not last.is_file():
        return
    end = last.stat().st_mtime
    late = [item for item in times if item[0] > end + _SKEW]
    if late and 2 * len(late) <= len(times):
        written = _when([(end, "")])
        yield f"{_names(late)}: changed at {_when(late)}, after {last.name}, the file written last, at {written}. {_MEANING}"


def _span(times: Sequence[tuple[float, str]]) -> float:
    return times[-1][0] - times[0][0] if times else 0.0


def _names(times: Sequence[tuple[float, str]]) -> str:
    return listed(sorted(name for _, name in times))


def _when(times: Sequence[tuple[float, str]]) -> str:
    return f"{datetime.fromtimestamp(times[-1][0], tz=timezone.utc):%Y-%m-%d %H:%M} UTC"
