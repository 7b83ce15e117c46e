"""Decide from config.json whether rank files shard experts over TP; names and shapes alone cannot show it."""

from __future__ import annotations

from collections.abc import Hashable, Iterable
from pathlib import Path

from ckptconv.errors import CkptconvError, Kind
from ckptconv.formats.json import read_table


def expert_ranks(
    rows: Iterable[tuple[Hashable, int, int]], folder: Path, assets: Path | None
) -> dict[str, int]:
    """Return `expert_tensor_parallel_size` for trainers that do not record it.

    A wrong guess would write experts of another width, so a config that does not match is an error.

    Args:
        rows: (expert, TP rank, number of rows) for the fc1 weight of every expert on every rank.
        folder: the folder of the checkpoint, for error messages.
        assets: the folder with config.json, whose expert width decides; None if there is no such folder.

    Returns:
        The setting by its name, or {} if every expert is on one TP rank only.

    Raises:
        CkptconvError: an expert is on several TP ranks, and config.json is missing or its width matches neither case.
    """
    held: dict[Hashable, dict[int, int]] = {}
    for expert, tp, count in rows:
        held.setdefault(expert, {})[tp] = count
    shared = next((by_rank for by_rank in held.values() if len(by_rank) > 1), None)
    if shared is None:
        return {}
    config = read_table(assets / "config.json") if assets else {}
    width = config.get("moe_intermediate_size") or config.get("intermediate_size")
    found = shared[min(shared)]
    for parts in (1, len(shared)):
        if isinstance(width, int) and found * parts == 2 * width:
            return {"expert_tensor_parallel_size": parts}
    raise CkptconvError(
        "cannot tell whether experts are sharded over tensor parallel ranks",
        where=folder,
        found=f"{found} rows on each of {len(shared)} ranks",
        wanted=f"{2 * width} rows, or that over {len(shared)}" if isinstance(width, int) else "config.json",
        hint="copy the model's config.json into this folder, or save the checkpoint as torch_dist",
        kind=Kind.UNSUPPORTED,
    )
