"""The stored tensors of one LoRA layer, and the two matrices whose product is its update."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import NamedTuple

from ckptconv.errors import CkptconvError, Kind
from ckptconv.tensors.view import View, permute, unflatten

# Megatron's grouped experts share one pair. In a stack over experts, each expert would get one row of it.
_SHARED = re.compile(r"\.experts\.linear_fc[12]$")
_EXPERT = re.compile(r"\.experts\.\d+\.linear_fc[12]$")
PREFIX = "base_model.model."  # of every name that PEFT saves
NamedView = tuple[str, View]  # the stored name of a tensor, and its elements


class Factors(NamedTuple):
    """The LoRA pair of one module, and what PEFT may store with it.

    Args:
        module: the module's name.
        a: A, of shape (r, in).
        b: B, of shape (out, r).
        embedding: the pair is stored transposed relative to the weight.
        magnitude: DoRA's magnitude of each row of the weight.
        bias: the bias of B.
        part: the part of a fused weight that the pair updates, such as "q" of QKV; "" for all of it.
        parameters: names of stacked expert parameters (E, out, in), one of which the pair updates. A then has the shape
            (E * r, in), and B (out, r * E).
    """

    module: str
    a: NamedView
    b: NamedView
    embedding: bool = False
    magnitude: NamedView | None = None
    bias: NamedView | None = None
    part: str = ""
    parameters: tuple[str, ...] = ()

    @property
    def rank(self) -> int:
        """The rows of A; E * r for a stack of experts."""
        return self.a[1].shape[0]

    @property
    def trained_module(self) -> str:
        """The name that the module had in training, which the patterns of adapter_config.json are for."""
        return self.a[0].removeprefix(PREFIX).partition(".lora_")[0]

    @property
    def weight(self) -> str:
        """The name of the weight that the pair updates."""
        return f"{self.module}.weight"

    @property
    def stored(self) -> tuple[NamedView, ...]:
        """Every stored tensor of the layer."""
        return tuple(pair for pair in (self.a, self.b, self.magnitude, self.bias) if pair is not None)

    def sides(self, turned: bool) -> tuple[View, View]:
        """left (rows, r) and right (r, columns); the update is scale * left @ right.

        Args:
            turned: the weight is (in, out), as in GPT-2's Conv1D.
        """
        if self.embedding or turned:
            return permute(self.a[1], (1, 0)), permute(self.b[1], (1, 0))
        return self.b[1], self.a[1]

    def stacked(self, rank: int, turned: bool) -> tuple[View, View]:
        """left (E, rows, r) and right (E, r, columns) of a stack of experts.

        The rows of A are ordered by expert, then by rank; the columns of B by rank, then by expert.
        Source: peft/tuners/lora/layer.py, ParamWrapper.get_delta_weight.

        Args:
            rank: r.
            turned: each expert's weight is (in, out).
        """
        experts = self.rank // rank
        a = unflatten(self.a[1], 0, (experts, rank))
        b = unflatten(self.b[1], 1, (rank, experts))
        if turned:
            return permute(a, (0, 2, 1)), permute(b, (2, 1, 0))
        return permute(b, (2, 0, 1)), a


def paired(module: str, part: str, found: Mapping[str, NamedView], parameters: tuple[str, ...]) -> Factors:
    """The factors of one module.

    Args:
        module: the module's name.
        part: the part of a fused weight; "" for all of it.
        found: the stored tensors by side: A, B, eA and eB (embeddings), m (magnitude), bias.
        parameters: the stacked expert parameters of the module.

    Raises:
        CkptconvError: only one of A and B is stored, or their shapes do not fit.
    """
    embedding = "eA" in found or "eB" in found
    a, b = ("eA", "eB") if embedding else ("A", "B")
    if {a, b} != set(found) - {"m", "bias"}:
        raise CkptconvError(
            f"only one of lora_A / lora_B is stored for {module}",
            found=", ".join(name for name, _ in found.values()),
            kind=Kind.INCOMPLETE,
        )
    one, two = found[a][1].shape, found[b][1].shape
    if _SHARED.search(module) or (_EXPERT.search(module) and len(one) == 1):
        raise CkptconvError(
            f"the LoRA pair of {module} is shared by all experts of a rank (grouped GEMM), which is not supported",
            found="the file keeps the pair of one expert parallel rank only",
            hint="export it with Megatron-Bridge",
            kind=Kind.UNSUPPORTED,
        )
    if len(one) != 2 or len(two) != 2 or one[0] != two[1]:
        raise CkptconvError(
            f"the LoRA pair of {module} does not fit together", found=f"A {list(one)}, B {list(two)}"
        )
    return Factors(
        module,
        found[a],
        found[b],
        embedding=embedding,
        magnitude=found.get("m"),
        bias=found.get("bias"),
        part=part,
        parameters=parameters,
    )
