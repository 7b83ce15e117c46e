"""The stored tensors as the steps of planning see them: with bare names, and LoRA factors separate from the weights."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any, NamedTuple

from ckptconv.models import lora
from ckptconv.models.unwrap import unwrap
from ckptconv.plan.records import Dropped, Left
from ckptconv.tensors.checkpoint import Checkpoint
from ckptconv.tensors.view import View


class Stored(NamedTuple):
    """A checkpoint's tensors without the prefixes of wrappers, and with the LoRA factors separated.

    Args:
        checkpoint: what a backend read.
        parts: the weights and the factors, by bare name.
        origin: bare name -> the name in the checkpoint.
    """

    checkpoint: Checkpoint
    parts: lora.Separated
    origin: Mapping[str, str]

    @property
    def lora(self) -> Mapping[str, Any]:
        """The LoRA settings of the checkpoint; empty if there are none."""
        return self.checkpoint.lora.settings

    @property
    def views(self) -> tuple[View, ...]:
        """Every stored tensor, without replicas."""
        return tuple(tensor.view for tensor in self.checkpoint.tensors.values())

    @property
    def unread(self) -> tuple[Dropped, ...]:
        """The bytes that no plan reads: replicas, and weights that `modules_to_save` replaced."""
        tensors = self.checkpoint.tensors.values()
        count = sum(len(tensor.replicas) for tensor in tensors)
        nbytes = sum(tensor.replica_bytes for tensor in tensors)
        replicas = [Dropped(f"{count} copies", nbytes, "replicas on other ranks")] if count else []
        reason = "an older copy of a weight that was trained whole (modules_to_save)"
        left = [(name, view, reason) for name, view in self.parts.replaced]
        left += [(name, view, f"equal to {one[0]}") for one, (name, view) in self.parts.twice]
        return (*replicas, *self.dropped(left))

    def name(self, bare: str) -> str:
        """The name in the checkpoint for a bare name."""
        bare = self.parts.origin.get(bare, bare)
        return self.origin.get(bare, bare)

    def dropped(self, left: Iterable[Left]) -> tuple[Dropped, ...]:
        """Records for what a step left out, under the names in the checkpoint."""
        return tuple(Dropped(self.name(name), view.nbytes, reason, view) for name, view, reason in left)


def take_stock(checkpoint: Checkpoint) -> Stored:
    """Remove the prefixes of wrappers from the names, and separate LoRA factors from the weights.

    Raises:
        CkptconvError: two names become one, or an adapter is not LoRA.
    """
    bare, origin = unwrap({name: tensor.view for name, tensor in checkpoint.tensors.items()})
    return Stored(
        checkpoint, lora.separate(bare, checkpoint.lora.settings, checkpoint.lora.is_folder), origin
    )
