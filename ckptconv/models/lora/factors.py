"""The stored tensors of one LoRA layer."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass

from ckptconv.errors import CkptconvError, Kind
from ckptconv.tensors.view import View, permute, unflatten

# Megatron's grouped experts; their stack, taken for one of experts, leaves a row of the pair to each of them.
_SHARED = re.compile(r"\.experts\.linear_fc[12]$")
_EXPERT = re.compile(r"\.experts\.\d+\.linear_fc[12]$")
NamedView = tuple[str, View]  # a stored tensor and its bare name


@dataclass(frozen=True, slots=True)
class Factors:
    """A (r, in) and B (out, r) of one module, and what PEFT may keep beside them.

    embedding: they are stored transposed to the weight. magnitude: DoRA's lengths of the weight's rows. bias: of B.
    part: which part of a fused weight they update alone ("q" of a fused QKV), "" for all of it. parameters: names of
    stacked expert parameters (E, out, in), one of which they update: A is then (E * r, in), B (out, r * E).
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
    def weight(self) -> str:
        return f"{self.module}.weight"

    @property
    def stored(self) -> tuple[NamedView, ...]:
        """Every stored tensor of it."""
        return tuple(pair for pair in (self.a, self.b, self.magnitude, self.bias) if pair is not None)

    def sides(self, turned: bool) -> tuple[View, View]:
        """left (rows, r) and right (r, columns), so that the update is scale * left @ right.

        turned: the weight is (in, out), as GPT-2's Conv1D has it.
        """
        if self.embedding or turned:
            return permute(self.a[1], (1, 0)), permute(self.b[1], (1, 0))
        return self.b[1], self.a[1]

    def stacked(self, rank: int, turned: bool) -> tuple[View, View]:
        """left (E, rows, r) and right (E, r, columns) of a stack of experts. turned: the experts are (in, out).

        Source: peft/tuners/lora/layer.py, ParamWrapper.get_delta_weight: A's rows are by expert, B's columns by rank.
        """
        experts = self.rank // rank
        a = unflatten(self.a[1], 0, (experts, rank))
        b = unflatten(self.b[1], 1, (rank, experts))
        if turned:
            return permute(a, (0, 2, 1)), permute(b, (2, 1, 0))
        return permute(b, (2, 0, 1)), a


def paired(module: str, part: str, found: Mapping[str, NamedView], parameters: tuple[str, ...]) -> Factors:
    """The factors from the tensors of one module by side: A, B, eA, eB (embeddings), m (magnitude), bias.

    Raises CkptconvError for a lonely half and for halves that do not fit together.
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
