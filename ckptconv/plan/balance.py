"""The final check of a plan: every output is complete, and every stored byte is used or dropped."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from math import prod

from ckptconv.errors import CkptconvError, Kind
from ckptconv.plan import ledger
from ckptconv.plan.records import Dropped, Output
from ckptconv.tensors.tiling import check_tiling
from ckptconv.tensors.view import View


def balance(
    stored: list[View], outputs: Mapping[str, Output], used: Iterable[View], dropped: Iterable[Dropped]
) -> int:
    """Check that outputs are tiled exactly once, and that the used and dropped elements are the stored ones.

    Args:
        stored: all stored tensors.
        outputs: the tensors to write.
        used: the stored elements that the outputs are made of.
        dropped: what no output holds.

    Returns:
        The bytes that balance.

    Raises:
        CkptconvError: the plan does not balance, which is a bug in ckptconv.
    """
    untouched = {id(view) for view in stored}  # their tiling was checked when they were made
    for output in outputs.values():
        for view in output.source.views:
            if id(view) not in untouched:
                check_tiling(view.shape, view.chunks)
        if prod(output.shape) != output.source.numel:
            raise CkptconvError(
                f"{output.name} would have another number of elements than its source", kind=Kind.BUG
            )
    return ledger.check_balance(stored, used, [item.view for item in dropped if item.view is not None])
