"""inspect: describes what a checkpoint holds and which rank stores what, from metadata only."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from ckptconv.commands.inspect.evidence import evidence_of, step_of
from ckptconv.commands.inspect.heads import heads_of, lora_of
from ckptconv.commands.inspect.match import matches_of
from ckptconv.commands.inspect.next import next_and_fit
from ckptconv.commands.inspect.parts import shares
from ckptconv.commands.inspect.records import Inspection
from ckptconv.commands.inspect.rows import ordered, rows_of, slices_of
from ckptconv.commands.inspect.tree import tree_of
from ckptconv.commands.planning import own_config
from ckptconv.hub.source import in_place, open_local_or_hub
from ckptconv.models.facts import named_architectures
from ckptconv.tensors.checkpoint import Checkpoint, without_submeshes
from ckptconv.tensors.source_spec import Step, Where, spec_of


def inspect(
    source: Where,
    *,
    backend: str | None = None,
    step: Step | None = None,
    also: Sequence[str | Path] = (),
    revision: str | None = None,
    tensor: str | None = None,
    tree: bool = False,
    sort: str | None = None,
    reverse: bool = False,
) -> Inspection:
    """Look at a checkpoint. Reads metadata only, also of a repository on the Hub.

    Args:
        source: a run, step, role or model folder, a file of weights, a repository ("org/name"), or a SourceSpec.
        backend, step, also, revision: see `SourceSpec`.
        tensor: a glob, or part of a name; the tensors that it matches are in `matches`.
        tree: whether `tree` holds the modules.
        sort: the order of the tensors: "name", "size", "shape" or "dtype". As stored when omitted.
        reverse: the other way round.

    Returns:
        What is stored and who stores it, and what `merge` would write.

    Raises:
        CkptconvError: where there is no whole checkpoint. It is an `Incomplete` where a rank's file is missing.

    Example:
        >>> found = ckptconv.inspect("checkpoints/run")
        >>> found.layout, found.step, found.parameters
        ('verl FSDP shards', 400, 494032768)
    """
    spec = spec_of(source, backend, step, also, revision)
    ordered((), sort, reverse)  # refuses an unknown word before work begins
    spec = in_place(spec)
    checkpoint = open_local_or_hub(spec)
    return describe(
        checkpoint, spec.path, tensor=tensor, tree=tree, sort=sort, reverse=reverse, asked_step=spec.step
    )


def _cautions(checkpoint: Checkpoint, config: Mapping[str, Any]) -> list[str]:
    """Return what is known of the table that a merge would use: no real checkpoint has confirmed it."""
    if checkpoint.naming != "megatron":
        return []
    from ckptconv.models.megatron import caution  # the tables of all families: other checkpoints need none

    text = caution(config)
    return [text] if text else []


def describe(
    checkpoint: Checkpoint,
    path: Path,
    *,
    tensor: str | None = None,
    tree: bool = False,
    sort: str | None = None,
    reverse: bool = False,
    asked_step: Step | None = None,
) -> Inspection:
    """Describe a checkpoint that is open already; see `inspect`.

    Args:
        checkpoint: the open checkpoint.
        path: its path, as the user named it.
        tensor: as in `inspect`, like the other keywords.
        asked_step: the step that the user asked for.
    """
    matches = matches_of(checkpoint, tensor) if tensor is not None else None
    config = own_config(checkpoint)
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
    next_, fit = next_and_fit(checkpoint, path, config, asked_step)
    return Inspection(
        path=path,
        layout=checkpoint.layout,
        backend=checkpoint.backend,
        is_sharded=checkpoint.is_sharded,
        root=checkpoint.root,
        step=checkpoint.step if checkpoint.step is not None else step_of(evidence),
        role=checkpoint.role,
        architecture=named[0] if named else None,
        config=config,
        meshes=tuple(map(str, without_submeshes(checkpoint.meshes))),
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
        notes=(*checkpoint.notes, *_cautions(checkpoint, config)),
        complete=fit.complete,
        why_not=fit.why_not,
        optimizer_bytes=sum(
            item.nbytes for item in checkpoint.skipped if "optimizer" in f"{item.what} {item.reason}"
        ),
        saved_by=evidence,
        heads=heads_of(checkpoint, config),
        matches=None if matches is None else ordered(matches, sort, reverse),
        tree=tree_of(checkpoint, sort, reverse) if tree else None,
        next=next_,
    )
