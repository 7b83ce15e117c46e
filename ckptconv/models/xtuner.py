"""XTuner's names -> those of the modules of transformers: its model classes have no `model.`, and fuse experts otherwise.

`layers.N.gate` is the router, `layers.N.experts.fused_w1w3.weight` is (experts × 2 × inner, hidden), each expert's gate
above its up projection, and `fused_w2.weight` is (experts × hidden, inner). Source: InternLM/xtuner,
xtuner/v1/model/dense/qwen3.py and xtuner/v1/model/moe/qwen3.py, `to_hf_key_list`.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

from ckptconv.errors import CkptconvError, Kind
from ckptconv.models.skeleton import skeleton_of
from ckptconv.tensors.view import View, unflatten

_BASE = ("embed_tokens.", "layers.", "norm.", "rotary_emb.")
_MLP = re.compile(r"^(layers\.\d+\.)(experts|gate)\.")
_FUSED = {"experts.fused_w1w3.weight": "experts.gate_up_proj", "experts.fused_w2.weight": "experts.down_proj"}


def are_here(config: Mapping[str, Any]) -> bool:
    """Return True if the class that config.json names has its base model under `model.`, as XTuner's names do not."""
    skeleton = skeleton_of(config)
    members = (member.pattern for group in skeleton.groups for member in group.members) if skeleton else ()
    return "model.embed_tokens.weight" in members


def as_modules(
    tensors: Mapping[str, View], config: Mapping[str, Any]
) -> dict[str, tuple[View, tuple[str, ...]]]:
    """Return the module's name -> (tensor, the trained name).

    Args:
        tensors: XTuner's name -> view, the experts fused over all ranks.
        config: the model's config.json.

    Raises:
        CkptconvError: experts are stored, and config.json does not say how many.
    """
    made: dict[str, tuple[View, tuple[str, ...]]] = {}
    for stored, view in tensors.items():
        name = _MLP.sub(r"\1mlp.\2.", stored)
        end = next((end for end in _FUSED if name.endswith(f".{end}")), None)
        if end is not None:
            name, view = name.removesuffix(end) + _FUSED[end], _by_expert(stored, view, config)
        made[f"model.{name}" if stored.startswith(_BASE) else name] = (view, (stored,))
    return made


def _by_expert(name: str, view: View, config: Mapping[str, Any]) -> View:
    count = next(
        (n for key in ("num_experts", "num_local_experts", "n_routed_experts") if (n := config.get(key))), 0
    )
    if type(count) is not int or count < 1 or not view.shape or view.shape[0] % count:
        raise CkptconvError(
            f"config.json does not say into how many experts {name} is cut",
            found=f"{list(view.shape)}, num_experts {count}",
            hint="pass the right model: --config DIR or --config org/name",
            kind=Kind.DOES_NOT_FIT,
        )
    return unflatten(view, 0, (count, view.shape[0] // count))
