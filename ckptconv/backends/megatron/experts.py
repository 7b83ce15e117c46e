"""Decide from config.json whether rank files shard experts over TP; names and shapes alone do not tell."""

from __future__ import annotations

from collections.abc import Hashable, Iterable
from pathlib import Path

from ckptconv.errors import CkptconvError, Kind
from ckptconv.formats.json import read_table


def expert_ranks(
    rows: Iterable[tuple[Hashable, int, int]], folder: Path, assets: Path | None
) -> dict[str, int]:
    """`expert_tensor_parallel_size` for trainers that do not write it; {} where no expert is on two TP ranks.

    Args:
        rows: of every expert's fc1: which expert, TP rank, rows.
        folder: the checkpoint's, for messages.
        assets: the folder with config.json, whose width of an expert decides.

    Raises CkptconvError without a config or where it does not fit: a wrong guess would give experts of another width.
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
