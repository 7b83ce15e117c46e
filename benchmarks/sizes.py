"""The shapes of the models that are timed: real Qwen2 shapes with an untied head, random weights."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True, slots=True)
class Size:
    """One Qwen2 shape."""

    name: str
    hidden: int
    layers: int
    intermediate: int
    heads: int
    kv_heads: int
    vocab: int
    rounds: int

    @property
    def parameters(self) -> int:
        """How many numbers the model has, with biases on q, k and v as Qwen2 has them."""
        kv = self.hidden // self.heads * self.kv_heads
        attention = 2 * self.hidden**2 + self.hidden + 2 * kv * (self.hidden + 1)
        layer = attention + 3 * self.hidden * self.intermediate + 2 * self.hidden
        return self.layers * layer + self.hidden + 2 * self.vocab * self.hidden

    @property
    def is_large(self) -> bool:
        """More than fits into memory: ranks are written one after another, and no peer can take part."""
        return self.parameters > 4e9

    @property
    def settings(self) -> dict[str, object]:
        """The shape as Qwen2Config takes it."""
        return {
            "hidden_size": self.hidden,
            "num_hidden_layers": self.layers,
            "intermediate_size": self.intermediate,
            "num_attention_heads": self.heads,
            "num_key_value_heads": self.kv_heads,
            "vocab_size": self.vocab,
            "tie_word_embeddings": False,
            "architectures": ["Qwen2ForCausalLM"],
        }


SIZES = {
    size.name: size
    for size in (
        Size("tiny", 64, 4, 160, 4, 2, 1024, rounds=1),
        Size("0.5b", 896, 24, 4864, 14, 2, 151936, rounds=3),
        Size("3b", 2048, 36, 11008, 16, 2, 151936, rounds=2),
        Size("7b", 3584, 28, 18944, 28, 4, 152064, rounds=1),
    )
}
WORLD = 4


@dataclass(frozen=True, slots=True)
class Checkpoint:
    """Where a size's checkpoints lie: rank files as verl names them, a DCP folder as accelerate does, and
    DeepSpeed's ZeRO-2 folder where its Python is there."""

    root: Path

    @property
    def actor(self) -> Path:
        return self.root / "run" / "global_step_1" / "actor"

    @property
    def dcp(self) -> Path:
        return self.root / "dcp" / "pytorch_model_fsdp_0"

    @property
    def zero(self) -> Path:
        return self.root / "zero" / "checkpoint-1"

    @property
    def mark(self) -> Path:
        """Written last: the checkpoints are whole."""
        return self.root / "made.json"

    def rank_files(self) -> list[Path]:
        return sorted(self.actor.glob("model_world_size_*_rank_*.pt"))

    def dcp_files(self) -> list[Path]:
        return sorted(self.dcp.glob("*.distcp"))

    def zero_files(self) -> list[Path]:
        return sorted(self.zero.glob("global_step1/*.pt"))
