"""inspect: what a checkpoint holds and who stores what, from metadata alone."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from pathlib import Path

from ckptconv.commands.inspect.evidence import evidence_of, step_of
from ckptconv.commands.inspect.heads import heads_of, lora_of
from ckptconv.commands.inspect.match import matches_of
from ckptconv.commands.inspect.next import next_of
from ckptconv.commands.inspect.parts import shares
from ckptconv.commands.inspect.records import Inspection
from ckptconv.commands.inspect.rows import ordered, rows_of, slices_of
from ckptconv.commands.inspect.tree import tree_of
from ckptconv.hub.checkpoint import open_local_or_hub
from ckptconv.models.facts import named_architectures
from ckptconv.publish import assets
from ckptconv.tensors.checkpoint import Checkpoint


def inspect(
    path: str | Path,
    *,
    backend: str | None = None,
    step: int | None = None,
    also: Sequence[str | Path] = (),
    revision: str | None = None,
    tensor: str | None = None,
    tree: bool = False,
    sort: str | None = None,
    reverse: bool = False,
) -> Inspection:
    """Look at a checkpoint (run, step or role folder, a model folder or a Hub repository). Reads metadata only.

    revision: of a repository. tensor: a pattern; the tensors that it matches are in `matches`. tree: `tree` holds the
    modules. sort: "name", "size", "shape" or "dtype"; reverse: the other way round.
    Raises CkptconvError for what is no whole checkpoint; a missing rank is one (exit code 1).
    """
    ordered((), sort, reverse)  # a wrong word is said before work begins
    checkpoint = open_local_or_hub(path, revision, backend=backend, step=step, also=also)
    return describe(
        checkpoint, Path(path), tensor=tensor, tree=tree, sort=sort, reverse=reverse, asked_step=step
    )


def describe(
    checkpoint: Checkpoint,
    path: Path,
    *,
    tensor: str | None = None,
    tree: bool = False,
    sort: str | None = None,
    reverse: bool = False,
    asked_step: int | None = None,
) -> Inspection:
    """The same for a checkpoint that is open. path: as the user named it."""
    matches = matches_of(checkpoint, tensor) if tensor is not None else None
    config = assets.read_config(checkpoint.assets) if checkpoint.assets else {}
    tensors = checkpoint.tensors
    dtypes: dict[str, list[int]] = defaultdict(lambda: [0, 0])
    for stored in tensors.values():
        dtypes[stored.view.dtype][0] += 1
        dtypes[stored.view.dtype][1] += stored.view.nbytes
    rank_of = checkpoint.rank_of
    slices = {name: slices_of(stored, rank_of) for name, stored in tensors.items()}
    parts, ranks = shares(checkpoint, slices)
    named = named_architectures(config)
    evidence = evidence_of(checkpoint, config)
    return Inspection(
        path=path,
        layout=checkpoint.layout,
        backend=checkpoint.backend,
        root=checkpoint.root,
        step=checkpoint.step if checkpoint.step is not None else step_of(evidence),
        role=checkpoint.role,
        architecture=named[0] if named else None,
        config=config,
        meshes=tuple(map(str, checkpoint.meshes)),
        world_size=checkpoint.world_size,
        tensors=len(tensors),
        parameters=sum(stored.view.numel for stored in tensors.values()),
        nbytes=sum(stored.view.nbytes for stored in tensors.values()),
        replica_bytes=sum(stored.replica_bytes for stored in tensors.values()),
        dtypes=tuple((name, n, size) for name, (n, size) in sorted(dtypes.items(), key=lambda i: -i[1][1])),
        skipped=tuple((item.what, item.nbytes, item.reason) for item in checkpoint.skipped),
        parts=parts,
        ranks=ranks,
        rows=ordered(rows_of(checkpoint, slices), sort, reverse),
        lora=lora_of(checkpoint),
        notes=checkpoint.notes,
        optimizer_bytes=sum(
            item.nbytes for item in checkpoint.skipped if "optimizer" in f"{item.what} {item.reason}"
        ),
        saved_by=evidence,
        heads=heads_of(checkpoint, config),
        matches=None if matches is None else ordered(matches, sort, reverse),
        tree=tree_of(checkpoint, sort, reverse) if tree else None,
        next=next_of(checkpoint, path, config, asked_step),
    )
