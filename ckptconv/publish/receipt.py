"""ckptconv.json: where every tensor of a model folder came from, its hash, and what was left out."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from ckptconv import __version__
from ckptconv.backends.registry import step_named
from ckptconv.copy.hashing import HASH
from ckptconv.plan import Output, Plan
from ckptconv.publish.private import without_paths
from ckptconv.tensors.boxes import Slice
from ckptconv.tensors.file_state import fingerprint
from ckptconv.tensors.holders import Holders

RECEIPT = "ckptconv.json"


def receipt(plan: Plan, hashes: dict[str, str]) -> dict[str, Any]:
    """The content of ckptconv.json. It holds no path of this machine.

    Args:
        plan: the plan that was run.
        hashes: tensor -> hash of its bytes.
    """
    source = plan.checkpoint
    rank_of = source.rank_of
    cuts: dict[tuple[Slice, ...], int] = {}
    tensors = {
        key: {
            "dtype": output.dtype,
            "shape": list(output.shape),
            "hash": hashes.get(key, ""),
            "from": list(output.origins),
            "stored": output.source.dtype,
            "ranks": sorted({rank_of[f] for view in output.source.views for f in view.files if f in rank_of}),
            **_cut(output, rank_of, cuts),
        }
        for key, output in plan.outputs.items()
    }
    return {
        "ckptconv": __version__,
        "hash": HASH,
        "source": {
            "backend": source.backend,
            "layout": source.layout,
            "folder": within_run(source.root.resolve()),
            "step": source.step,
            "role": source.role,
            "world_size": source.world_size,
            "mesh": [str(mesh) for mesh in source.meshes],
            "fingerprint": fingerprint(source.stamps),
        },
        "base_model": (plan.config or {}).get("_name_or_path") or None,
        "dtype": {"policy": plan.dtype_summary, "casts": [list(cast) for cast in plan.casts]},
        "config": plan.config_summary,
        "bytes": plan.nbytes,
        "files": {file.name: file.nbytes for file in plan.files},
        "dropped": [
            {"name": d.name, "bytes": d.nbytes, "reason": without_paths(d.reason)} for d in plan.dropped
        ],
        "skipped": [{"name": s.what, "bytes": s.nbytes, "reason": s.reason} for s in source.skipped],
        "notes": [without_paths(note) for note in plan.notes],
        "cuts": [[[part.rank, part.offsets, part.sizes] for part in parts] for parts in cuts],
        "tensors": tensors,
    }


def within_run(root: Path) -> str | None:
    """The folders of a checkpoint from its step on, such as `global_step_400/actor`; None without a step.

    The folders above may tell the name of a user or of a project.
    """
    parts = root.parts[-3:]
    step = next((number for number, part in enumerate(parts) if step_named(part) is not None), None)
    return None if step is None else "/".join(parts[step:])


def _cut(output: Output, rank_of: dict[str, int], cuts: dict[tuple[Slice, ...], int]) -> dict[str, int]:
    """Which rank stored which box of it, as a number in `cuts`: most tensors are cut like many others."""
    parts = Holders.of_view(output.source.views[0], output.shape, rank_of).parts()
    return {"cut": cuts.setdefault(parts, len(cuts))} if len(parts) > 1 else {}
