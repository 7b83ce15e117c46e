"""The families in MaxText's names: Llama, Qwen2, Qwen3 and Qwen3-MoE.

Kernels are (in, out), those of attention (in, heads, head_dim) and (heads, head_dim, out). Llama's queries are stored
divided by the square root of head_dim, and rows that rotate together are neighbours; Qwen's are as on the Hub. Source:
AI-Hypercomputer/maxtext e591f30c, src/maxtext/checkpoint_conversion/utils/param_mapping.py
(LLAMA31_* and QWEN_MAXTEXT_TO_HF_PARAM_MAPPING and _HOOK_FN).
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from math import prod, sqrt
from typing import TypeVar

from ckptconv.errors import CkptconvError
from ckptconv.models.family import Changed, Config, Family, Rule, Same, number_of_experts, vocabulary
from ckptconv.models.nested import text_of
from ckptconv.models.pattern import Pattern
from ckptconv.models.pieces import Piece, Pieces, exactly, swap
from ckptconv.models.rules import Layout, Swap, Unstack
from ckptconv.tensors.view import Shape, permute, unflatten

T = TypeVar("T")  # a View, a numpy array or a torch tensor
L, M = "decoder.layers.{layer}.", "model.layers.{layer}."


@dataclass(frozen=True)
class Kernel:
    """A kernel (in…, out…) becomes a weight (out, in).

    Args:
        ins: the sizes of its input dims.
        outs: the sizes of its output dims, () for a bias without input dims.
        pairs: entries of the last output dim that rotate together are neighbours, and become halves.
    """

    ins: Shape
    outs: Shape
    pairs: bool = False

    def split(self, pieces: Pieces[T]) -> Pieces[T]:
        (piece,) = exactly(pieces, 1)
        if piece.shape != self.ins + self.outs:
            raise CkptconvError(f"a kernel of {list(piece.shape)} is not {list(self.ins + self.outs)}")
        first, dims = len(self.ins), len(piece.shape)
        turned = permute(piece.plain, [*range(first, dims), *range(first)])
        if self.pairs:
            last = len(self.outs) - 1
            turned = swap(unflatten(turned, last, (self.outs[last] // 2, 2)), last, last + 1)
        return [Piece(turned, tuple(prod(sizes) for sizes in (self.outs, self.ins) if sizes))]

    def join(self, pieces: Pieces[T]) -> Pieces[T]:
        (piece,) = exactly(pieces, 1)
        value = unflatten(piece.plain, 0, self.outs)
        dims = len(self.outs)
        if self.pairs:
            size = self.outs[-1]
            value = swap(unflatten(value, dims - 1, (2, size // 2)), dims - 1, dims)
            return [Piece(self._ins_first(value, dims + 1), self.ins + self.outs)]
        return [Piece(self._ins_first(value, dims), self.ins + self.outs)]

    def _ins_first(self, value: T, dims: int) -> T:
        """The value with its input dim unflattened and first; dims: the number of its output dims."""
        if not self.ins:
            return value
        whole = unflatten(value, dims, self.ins)
        count = dims + len(self.ins)
        return permute(whole, [*range(dims, count), *range(dims)])


def _sizes(config: Config, key: str) -> tuple[int, Shape]:
    """The hidden size, and (heads, head_dim) for the config's key of the number of heads."""
    text = text_of(config)
    hidden, queries = int(text["hidden_size"]), int(text["num_attention_heads"])
    return hidden, (int(text.get(key) or queries), int(text.get("head_dim") or hidden // queries))


def heads(part: str, key: str, pairs: bool = False) -> tuple[Rule, ...]:
    """Queries, keys or values, with their biases where the model has them."""

    def kernel(config: Config) -> tuple[Layout, ...]:
        hidden, sizes = _sizes(config, key)
        return (Kernel((hidden,), sizes, pairs),)

    def bias(config: Config) -> tuple[Layout, ...]:
        return (Kernel((), _sizes(config, key)[1]),)

    name = {"q": "query", "k": "key", "v": "value"}[part]
    trained, hub = f"{L}self_attention.{name}.", f"{M}self_attn.{part}_proj."
    return (
        Rule(Pattern(trained + "kernel"), Pattern(hub + "weight"), kernel),
        Rule(Pattern(trained + "bias"), Pattern(hub + "bias"), bias),
    )


def _output(config: Config) -> tuple[Layout, ...]:
    hidden, sizes = _sizes(config, "num_attention_heads")
    return (Kernel(sizes, (hidden,)),)


def _head(config: Config) -> tuple[Layout, ...]:
    return (Kernel((int(text_of(config)["hidden_size"]),), (vocabulary(config),)),)


def common(pairs: bool) -> tuple[Rule, ...]:
    """What all these classes have. pairs: see `Kernel`."""
    queries = heads("q", "num_attention_heads", pairs)
    return (
        Rule(Pattern("token_embedder.embedding"), Pattern("model.embed_tokens.weight"), rows=vocabulary),
        Same("decoder.decoder_norm.scale", "model.norm.weight"),
        Rule(Pattern("decoder.logits_dense.kernel"), Pattern("lm_head.weight"), _head),
        Same(L + "pre_self_attention_layer_norm.scale", M + "input_layernorm.weight"),
        Same(L + "post_self_attention_layer_norm.scale", M + "post_attention_layernorm.weight"),
        *(tuple(replace(rule, factor=_root) for rule in queries) if pairs else queries),
        *heads("k", "num_key_value_heads", pairs),
        *heads("v", "num_key_value_heads"),
        Rule(Pattern(L + "self_attention.out.kernel"), Pattern(M + "self_attn.o_proj.weight"), _output),
    )


def _root(config: Config) -> float:
    return sqrt(_sizes(config, "num_attention_heads")[1][1])


DENSE = (
    Changed(L + "mlp.wi_0.kernel", M + "mlp.gate_proj.weight", Swap(0, 1)),
    Changed(L + "mlp.wi_1.kernel", M + "mlp.up_proj.weight", Swap(0, 1)),
    Changed(L + "mlp.wo.kernel", M + "mlp.down_proj.weight", Swap(0, 1)),
)
QK_NORM = (
    Same(L + "self_attention.query_norm.scale", M + "self_attn.q_norm.weight"),
    Same(L + "self_attention.key_norm.scale", M + "self_attn.k_norm.weight"),
)
LLAMA = Family("Llama", common(pairs=True) + DENSE)
QWEN2 = Family("Qwen2", common(pairs=False) + DENSE)
QWEN3 = Family("Qwen3", common(pairs=False) + QK_NORM + DENSE)


def _experts(trained: str, hub: str, count: int) -> Rule:
    """A stack (expert, in, out) of `count` experts, one tensor (out, in) per expert on the Hub."""
    listed = ",".join(map(str, range(count)))
    names = hub.replace("{expert}", f"{{{listed}}}" if count > 1 else listed)
    return Changed(trained, names, Swap(1, 2), Unstack())


def qwen3_moe(config: Config) -> Family:
    """Qwen3-MoE with the config's number of experts."""
    count = number_of_experts(config, "num_experts")
    one = M + "mlp.experts.{expert}."
    experts = (
        Changed(L + "moe_block.gate.kernel", M + "mlp.gate.weight", Swap(0, 1)),
        _experts(L + "moe_block.wi_0", one + "gate_proj.weight", count),
        _experts(L + "moe_block.wi_1", one + "up_proj.weight", count),
        _experts(L + "moe_block.wo", one + "down_proj.weight", count),
    )
    return Family("Qwen3-MoE", common(pairs=False) + QK_NORM + experts)


# config.json's model_type -> the family for such a config
FAMILIES: dict[str, Callable[[Config], Family]] = {
    "llama": lambda config: LLAMA,
    "qwen2": lambda config: QWEN2,
    "qwen3": lambda config: QWEN3,
    "qwen3_moe": qwen3_moe,
}
