"""ckptconv.json: where every tensor of a model folder came from, its hash, and what was left out."""

from __future__ import annotations

import json
from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Any

import xxhash

from ckptconv import __version__
from ckptconv.backends.registry import step_named
from ckptconv.copy.hashing import HASH, HASH_BLOCK, Stretch, combine, hash_stretches
from ckptconv.plan import Output, Plan
from ckptconv.publish.assets import is_asset
from ckptconv.publish.private import without_paths
from ckptconv.tensors.boxes import Slice
from ckptconv.tensors.file_state import fingerprint
from ckptconv.tensors.holders import Holders
from ckptconv.tensors.look import files_below, is_file, resolved, size_of

RECEIPT = "ckptconv.json"
SMALL_FILES = "small_files"  # the receipt's key for the hashes of the files next to the weights
_TENSORS = "tensors"
_EDITED = ("README.md", RECEIPT)  # the model card is written by people


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
            "folder": within_run(resolved(source.root)),
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
        _TENSORS: tensors,
    }


def as_text(record: Mapping[str, Any]) -> str:
    """The text of a receipt: one line for each tensor, since a model may have 100,000.

    json.dumps with an indent does not use its encoder in C.
    """
    tensors = record.get(_TENSORS)
    lines = tensors.items() if isinstance(tensors, dict) else ()
    text = json.dumps({**record, _TENSORS: {}} if lines else record, indent=1) + "\n"
    table = ",\n".join(f"  {json.dumps(name)}: {json.dumps(facts)}" for name, facts in lines)
    return text.replace(f'\n "{_TENSORS}": {{}}', f'\n "{_TENSORS}": {{\n{table}\n }}', 1) if lines else text


def small_hashes(folder: Path, weights: Collection[str]) -> dict[str, str]:
    """The hash of each file that belongs to a model next to its weights: configs, tokenizer, processor, templates, code.

    Args:
        folder: the model folder.
        weights: the names of the files that hold tensors.
    """
    names = sorted(file.removeprefix(f"{folder}/") for file in files_below(folder))
    chosen = {name: folder / name for name in names if is_asset(name) and is_file(folder / name)}
    for name in (*weights, *_EDITED):
        chosen.pop(name, None)
    return hash_stretches({name: Stretch(path, 0, size_of(path)) for name, path in chosen.items()}, workers=1)


def hash_of(data: bytes) -> str:
    """The hash of a small file's content."""
    blocks = [data[at : at + HASH_BLOCK] for at in range(0, max(len(data), 1), HASH_BLOCK)]
    return combine([xxhash.xxh3_128_digest(block) for block in blocks])


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
