"""Check that one step wrote all rank files, by the scheduler's state that verl saves next to each of them.

A rank file has no step in it. `extra_state_world_size_W_rank_R.pt` has the state of the learning rate's scheduler, which all
ranks advance together (verl/utils/checkpoint/fsdp_checkpoint_manager.py, save_checkpoint; torch/optim/lr_scheduler.py).
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from pathlib import Path

from ckptconv.errors import CkptconvError
from ckptconv.formats.in_order import in_order
from ckptconv.formats.torch_zip import open_torch_zip
from ckptconv.tensors.look import names_in, opened

_STATE = re.compile(r"^extra_state_world_size_(\d+)_rank_(\d+)\.pt$")
_BEGIN, _END = b"lr_scheduler", b"rng"  # the two keys of the pickle, in this order
_MOST = 1 << 14  # bytes at the beginning of a file that are read
_COUNTS = ("last_epoch", "_step_count")


def check_one_step(folders: Sequence[Path], world_size: int) -> None:
    """Compare the steps of the ranks' schedulers, with one read for each rank.

    Args:
        folders: the checkpoint's folders, of which each has the files of some ranks.
        world_size: the number of ranks.

    Raises:
        CkptconvError: two ranks' schedulers made different numbers of steps.
    """
    paths = {
        int(match[2]): folder / name
        for folder in folders
        for name in names_in(folder)
        if (match := _STATE.match(name)) and int(match[1]) == world_size
    }
    ranks = sorted(paths)
    states = dict(zip(ranks, in_order(_scheduler, [paths[rank] for rank in ranks]), strict=True))
    seen: dict[bytes, int] = {}
    for rank, state in states.items():
        seen.setdefault(state, rank)
    if len(seen) < 2:
        return
    counts = {rank: _counts(paths[rank]) for rank in seen.values()}  # one rank of each kind
    first, *others = counts
    for other in others:
        _compare(other, counts[other], first, counts[first], paths[other])


def _scheduler(path: Path) -> bytes:
    """The bytes that hold the scheduler's state; equal where the states are equal."""
    try:
        with opened(path) as file:
            head = file.read(0, _MOST)
    except CkptconvError:  # it is not part of the model
        return b""
    begin = head.find(_BEGIN)
    return head[begin : head.find(_END, begin)] if begin >= 0 else b""


def _counts(path: Path) -> Mapping[str, object]:
    """The scheduler's numbers of steps; none where the file cannot be read, since it is not part of the model."""
    try:
        state = open_torch_zip(str(path)).root
    except CkptconvError:
        return {}
    scheduler = state.get("lr_scheduler") if isinstance(state, dict) else None
    return scheduler if isinstance(scheduler, dict) else {}


def _compare(
    rank: int, counts: Mapping[str, object], first: int, others: Mapping[str, object], path: Path
) -> None:
    for key in _COUNTS:
        one, two = counts.get(key), others.get(key)
        if type(one) is int and type(two) is int and one != two:
            raise CkptconvError(
                "the rank files are of different steps",
                where=path,
                found=f"rank {rank}'s learning rate scheduler has {key} {one}",
                wanted=f"{two}, as on rank {first}",
                hint="copy all files of one step again; if only this file is of another step, move it away",
            )
