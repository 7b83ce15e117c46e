"""Divides a model into parts, and computes how much of each part a rank stores."""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Iterable

from ckptconv.commands.inspect.records import RankMap, Slice
from ckptconv.tensors.checkpoint import Checkpoint
from ckptconv.tensors.names import MODULE, WRAPPERS

_BLOCK = re.compile(r"^(?P<stack>.*?)(?:^|\.)(?:layers?|h|blocks?|decoder)\.(?P<number>\d+)(?:\.|$)")
_MTP = re.compile(r"(?:^|\.)mtp(?:_layers)?\.(?:layers\.)?(?P<number>\d+)?")
# The prefixes of a model's own layers. Any other prefix is a separate stack: a tower, an encoder, MTP layers.
_AROUND = {
    "app", "base_model", "backbone", "decoder", "gpt_neox", "language_model", "llm", "lm", "model", "policy",
    "pretrained_model", "text_model", "transformer", MODULE, *WRAPPERS,
}  # fmt: skip
_TOWER = re.compile(r"^(vision|visual|vit|image|img|video|audio|speech)")
_BESIDE_A_TOWER = re.compile(r"projector|merger|connector|aligner|adapter")
_EMBEDDING = re.compile(r"embed|(^|\.)w[tp]e\.")
_HEAD = re.compile(r"lm_head|score|classifier|v_head|output_layer|(^|\.)norm\.|final|ln_f|^output\.")


def part_of(name: str) -> str:
    """The part of the model that a tensor belongs to: "embedding", a layer's number, "head" or "other".

    Layers of another stack have its name before the number ("visual 3"). The stack's tensors outside of its layers have
    only the name ("visual").
    """
    if match := _MTP.search(name):
        return f"mtp {match['number']}" if match["number"] else "mtp"
    if match := _BLOCK.search(name):
        stack = _own(match["stack"].split("."))
        return f"{stack} {match['number']}" if stack else match["number"]
    first = _own(name.split(".")[:-1])
    if _TOWER.match(first) or _BESIDE_A_TOWER.search(first):
        return first
    if _EMBEDDING.search(name):
        return "embedding"
    return "head" if _HEAD.search(name) else "other"


def _own(segments: list[str]) -> str:
    """The first segment that is not a wrapper."""
    return next((segment for segment in segments if segment and segment not in _AROUND), "")


def in_order(parts: Iterable[str]) -> list[str]:
    """Sort parts as a model runs them: towers, the embedding, its layers, further stacks, the head."""

    def place(part: str) -> tuple[int, str, int]:
        stack, _, number = part.rpartition(" ")
        if part.isdigit():
            return 2, "", int(part)
        if part in ("embedding", "other", "head"):
            return {"embedding": 1, "other": 4, "head": 5}[part], "", 0
        name, at = (stack, int(number)) if stack and number.isdigit() else (part, -1)
        return (0 if _TOWER.match(name) or _BESIDE_A_TOWER.search(name) else 3), name, at

    return sorted(parts, key=place)


def shares(
    checkpoint: Checkpoint, slices: dict[str, tuple[Slice, ...]]
) -> tuple[tuple[str, ...], tuple[RankMap, ...]]:
    """Compute what each rank stores.

    Args:
        checkpoint: the checkpoint.
        slices: tensor -> its slices.

    Returns:
        The parts of the model in order, and a map for each rank.
    """
    held: dict[int, dict[str, int]] = {file.rank: defaultdict(int) for file in checkpoint.files}
    files: dict[int, list[str]] = defaultdict(list)
    for file in checkpoint.files:
        files[file.rank].append(file.path)
    coordinates = {file.rank: dict(file.coordinate) for file in checkpoint.files}
    copies: dict[int, int] = defaultdict(int)
    totals: dict[str, int] = defaultdict(int)
    for name, tensor in checkpoint.tensors.items():
        part = part_of(name)
        totals[part] += tensor.view.nbytes
        item = tensor.view.nbytes // max(tensor.view.numel, 1)
        for piece in slices[name]:
            nbytes = item
            for size in piece.sizes:
                nbytes *= size
            held[piece.rank][part] += nbytes
            if piece.copy:
                copies[piece.rank] += nbytes
    order = in_order(totals)
    ranks = tuple(
        RankMap(
            rank,
            tuple(files[rank]),
            sum(parts.values()) - copies[rank],
            copies[rank],
            tuple(parts[part] / totals[part] if totals[part] else 0.0 for part in order),
            coordinates[rank],
        )
        for rank, parts in held.items()
    )
    return tuple(order), ranks
