"""The names of tensors: their order, and the segments that wrappers of a module put into them."""

from __future__ import annotations

import re

_DIGITS = re.compile(r"(\d+)")
_NUMBER = re.compile(r"\.(\d+)(?=\.)")
# From torch.compile (torch/_dynamo/eval_frame.py, OptimizedModule), FSDP1 (torch/distributed/fsdp/_common_utils.py),
# activation checkpointing (torch/distributed/algorithms/_checkpoint/checkpoint_wrapper.py) and Lightning Fabric
# (lightning/fabric/wrappers.py).
WRAPPERS = ("_orig_mod", "_fsdp_wrapped_module", "_checkpoint_wrapped_module", "_forward_module")
# DistributedDataParallel and DeepSpeed's engine name the wrapped model so. It wraps only at the start of a name.
MODULE = "module"
_WRAPPER = re.compile(rf"(?:^|(?<=\.))(?:{'|'.join(WRAPPERS)})\.")


def natural(name: str) -> list[tuple[int, int, str]]:
    """A sort key by which layers.2 comes before layers.10."""
    return [(1, int(text), "") if text.isdigit() else (0, 0, text) for text in _DIGITS.split(name) if text]


def without_wrappers(name: str) -> str:
    """The name without the segments in `WRAPPERS`: "model._orig_mod.norm.weight" -> "model.norm.weight"."""
    return _WRAPPER.sub("", name)


def numbered_parts(name: str) -> tuple[str, list[str]]:
    """Return a name without its numbers, which names of one kind share, and the numbers.

    "model.layers.7.mlp.experts.12.down_proj.weight" -> ("model.layers.*.mlp.experts.*.down_proj.weight", ["7", "12"]).
    """
    parts = _NUMBER.split(name)
    return ".*".join(parts[::2]), parts[1::2]


def number_spans(name: str) -> list[tuple[int, int]]:
    """Return where each number of `numbered_parts` begins and ends in the name."""
    return [found.span(1) for found in _NUMBER.finditer(name)]
