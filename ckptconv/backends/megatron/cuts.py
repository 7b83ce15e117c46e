"""How Megatron shards a tensor over tensor parallel (TP) ranks. Rank files do not record it, so the tensor's name decides.

The rule is that of Megatron's modules (megatron/core/tensor_parallel/layers.py): column-parallel weights are sharded
along dim 0, row-parallel weights along dim 1; norms, routers and similar tensors are whole on every rank. A name that is
in none of these lists is refused. Adapters are sharded along dim 0, except for the linear_in of a row-parallel weight
(megatron/bridge/peft/utils.py, ParallelLinearAdapter).
"""

from __future__ import annotations

import re
from collections.abc import Iterator

from ckptconv.errors import CkptconvError, Kind
from ckptconv.tensors.checkpoint import StoredTensor
from ckptconv.tensors.view import View, cat, split

_COLUMN = re.compile(
    r"(word_embeddings\.weight|output_layer\.weight|linear_(qkv|fc1|q_proj|q_up_proj|kv_up_proj)\.(weight|bias)"
    r"|eh_proj\.weight|softmax_offset|mixer\.(A_log|D|dt_bias|norm\.weight|(in_proj|conv1d)\.(weight|bias)\.\w+)"
    r"|\.adapter(\.\w+)?\.linear_out\.weight(\.\w+)?|(?<!linear_proj)(?<!linear_fc2)(?<!out_proj)\.adapter(\.\w+)?\.linear_in\.weight)$"
)
_ROW = re.compile(r"(linear_(proj|fc2)|mixer\.out_proj)(\.adapter\.linear_in)?\.weight$")
_WHOLE = re.compile(
    r"norm|router\.|gate_weight$|down_proj\.weight$|latent_proj\.weight$|layer_scalar$|core_attention\.indexer\."
    r"|linear_(proj|fc2)\.bias$|position_embeddings|patch_embed"
)
_GATED = re.compile(r"(?<!projection\.encoder\.)linear_fc1\.(weight|bias|adapter\.linear_out\.weight)$")
# Modules of transformers (vision and audio towers), which are whole on every rank.
_TOWER = re.compile(
    r"^((thinker\.)?(visual|audio_model|audio_tower|vision_tower|multi_modal_projector|mm_projector|mlp1)\."
    r"|model\.visual\.|vision_model\.(?!decoder\.|projection\.))"
)


def over_tp(name: str, held: list[tuple[int, View]], gated: bool = True) -> StoredTensor:
    """Join the parts of the TP ranks. Several ranks of one TP index, which differ in EP, hold replicas.

    Args:
        name: the tensor's canonical name, which decides the dim.
        held: (TP index, part) of each rank.
        gated: whether the decoder's MLP has a gate. If it does, the rows of a rank's linear_fc1 are its part of gate, then
            its part of up.

    Raises:
        CkptconvError: no rank holds the tensor, its name does not tell how it is sharded, or its parts do not fit.
    """
    if not held:
        raise CkptconvError(f"some ranks of a stage have {name}, and others do not")
    parts: dict[int, View] = {}
    copies: list[tuple[int, View]] = []
    for tp, view in held:
        if tp in parts:
            copies.append((tp, view))
        else:
            parts[tp] = view
    views = [parts[tp] for tp in sorted(parts)]
    dim = None if _TOWER.match(name) else 0 if _COLUMN.search(name) else 1 if _ROW.search(name) else None
    if dim is not None and any(len(view.shape) <= dim for view in (*views, *(view for _, view in copies))):
        raise CkptconvError(
            f"{name} has too few dims for the way in which Megatron shards it",
            found=[list(view.shape) for view in views],
        )
    if dim is None and len(views) > 1 and not (_TOWER.match(name) or _WHOLE.search(name)):
        raise CkptconvError(
            f"cannot tell how {name} is sharded over tensor parallel ranks",
            found=f"{len(views)} ranks with {list(views[0].shape)} each",
            hint="save the checkpoint as torch_dist, whose files record it",
            kind=Kind.UNSUPPORTED,
        )
    # A critic's value head has one row, and is whole on every rank.
    scalar_head = name.endswith("output_layer.weight") and views[0].shape[0] == 1
    if dim is None or scalar_head or len(views) == 1:
        zero = (0,) * len(views[0].shape)
        rest = [*views[1:], *(view for _, view in copies)]
        return StoredTensor(views[0], "", tuple((zero, view) for view in rest))
    in_tower = name.startswith("vision_model.")
    if _GATED.search(name) and (gated or in_tower):  # each rank has its part of gate, then its part of up
        halves = [split(view, 0, [view.shape[0] // 2] * 2) for view in views]
        view = cat([half for side in (0, 1) for half in (pair[side] for pair in halves)], 0)
        return StoredTensor(view, "gated Shard(0)", tuple(_gated_copies(copies, parts)))
    size = views[0].shape[dim]
    dims = range(len(views[0].shape))
    placed = tuple((tuple(tp * size if d == dim else 0 for d in dims), view) for tp, view in copies)
    kind = "ungated " if _GATED.search(name) else ""
    return StoredTensor(cat(views, dim), f"{kind}Shard({dim})", placed)


def _gated_copies(
    copies: list[tuple[int, View]], parts: dict[int, View]
) -> Iterator[tuple[tuple[int, ...], View]]:
    """(offsets in the whole tensor, view) of the gate half and of the up half of each replica."""
    for tp, view in copies:
        half = view.shape[0] // 2
        for side, part in enumerate(split(view, 0, [half, half])):
            row = side * half * len(parts) + tp * half
            yield (row, *(0,) * (len(view.shape) - 1)), part
