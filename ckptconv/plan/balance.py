"""The last look at a plan: every output is whole, and every stored byte is used or dropped."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from math import prod

from ckptconv.compute import views_of
from ckptconv.errors import CkptconvError
from ckptconv.plan import ledger
from ckptconv.plan.records import Dropped, Output
from ckptconv.tensors.tiling import check_tiling
from ckptconv.tensors.view import View


def balance(
    stored: list[View], outputs: Mapping[str, Output], used: Iterable[View], dropped: Iterable[Dropped]
) -> int:
    """Raise unless outputs are tiled exactly once, and used and dropped are what is stored. Returns the bytes."""
    untouched = {id(view) for view in stored}  # these were checked when they were made
    for output in outputs.values():
        for view in views_of(output.source):
            if id(view) not in untouched:
                check_tiling(view.shape, view.chunks)
        if prod(output.shape) != output.source.numel:
            raise CkptconvError(f"{output.name} would have another number of elements than its source")
    return ledger.check_balance(stored, used, [item.view for item in dropped if item.view is not None])
