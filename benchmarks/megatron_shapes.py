"""Which tensors a DeepSeek-V3-shaped model has in Megatron's names, and how TP, PP and EP cut and place them.

GLM-5 is DeepSeek-V3 with an indexer, Kimi-K2.5 is Kimi-K2 inside a model that sees, with a tower of 27 blocks. The sizes are
those of the published models, which transformers' config classes have as their defaults.

Read off Megatron-Core 0.16.1's own checkpoints (tests/fixtures/megatron/deepseek_v3_*): models with dense
and sparse layers number them; a gated projection's halves are two chunks a TP rank, an expert's weight one or two.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from math import prod
from typing import Any


@dataclass(frozen=True, slots=True)
class Shape:
    """The sizes of a model with multi-head latent attention; the first `dense` layers have no experts."""

    name: str
    model_type: str
    heads: int
    experts: int
    dense: int
    vocab: int
    mtp: int
    layers: int = 61
    hidden: int = 7168
    intermediate: int = 18432
    expert: int = 2048
    q_rank: int = 1536
    kv_rank: int = 512
    nope: int = 128
    rope: int = 64
    value: int = 128
    indexer: tuple[int, int] = (0, 0)  # heads, and the size of one
    tower: int = 0  # blocks of the vision tower

    def config(self) -> dict[str, Any]:
        """config.json, with what says how the tensors are arranged."""
        text = self._text_config()
        if not self.tower:
            return text
        inner = text | {"model_type": "kimi_k2"}
        return {
            "architectures": ["KimiK25ForConditionalGeneration"],
            "model_type": self.model_type,
            "dtype": "bfloat16",
        } | {"text_config": inner, "tie_word_embeddings": False}

    def _text_config(self) -> dict[str, Any]:
        return {
            "architectures": ["GlmMoeDsaForCausalLM" if self.indexer[0] else "DeepseekV3ForCausalLM"],
            "model_type": self.model_type,
            "hidden_size": self.hidden,
            "intermediate_size": self.intermediate,
            "moe_intermediate_size": self.expert,
            "num_hidden_layers": self.layers,
            "first_k_dense_replace": self.dense,
            "moe_layer_freq": 1,
            "num_attention_heads": self.heads,
            "num_key_value_heads": self.heads,
            "n_routed_experts": self.experts,
            "n_shared_experts": 1,
            "num_nextn_predict_layers": self.mtp,
            "q_lora_rank": self.q_rank,
            "kv_lora_rank": self.kv_rank,
            "qk_nope_head_dim": self.nope,
            "qk_rope_head_dim": self.rope,
            "v_head_dim": self.value,
            "vocab_size": self.vocab,
            "tie_word_embeddings": False,
            "dtype": "bfloat16",
            **(
                {"index_n_heads": self.indexer[0], "index_head_dim": self.indexer[1]}
                if self.indexer[0]
                else {}
            ),
        }


SHAPES = {
    shape.name: shape
    for shape in (
        Shape("tiny", "deepseek_v3", 16, 64, 1, 1024, 1, 4, 64, 160, 32, 24, 16, 8, 4, 8),
        Shape("deepseek-v3", "deepseek_v3", heads=128, experts=256, dense=3, vocab=129280, mtp=1),
        Shape("kimi-k2", "kimi_k2", heads=64, experts=384, dense=1, vocab=163840, mtp=0),
        Shape("kimi-k2.5", "kimi_k25", heads=64, experts=384, dense=1, vocab=163840, mtp=0, tower=27),
        Shape(
            "glm-5",
            "glm_moe_dsa",
            64,
            256,
            3,
            154880,
            1,
            78,
            6144,
            12288,
            2048,
            2048,
            512,
            192,
            64,
            256,
            (32, 128),
        ),
    )
}


@dataclass(frozen=True, slots=True)
class Mesh:
    """tp, pp, ep; experts are not cut over TP, so a stage has ep ranks: tp times as many data-parallel ones."""

    tp: int = 8
    pp: int = 16
    ep: int = 64

    @property
    def world(self) -> int:
        return self.pp * self.ep


@dataclass(frozen=True, slots=True)
class Cut:
    """A stored tensor: where its chunks begin, their one size, and who writes each: a TP or an EP rank of a stage.

    shape is None for Transformer Engine's extra states, which are bytes.
    """

    name: str
    stage: int
    by: str  # "tp" or "ep"
    shape: tuple[int, ...] | None = None
    dtype: str = "bfloat16"
    size: tuple[int, ...] = ()
    chunks: tuple[tuple[tuple[int, ...], int], ...] = (((), 0),)  # (offsets, rank)


def tensors(shape: Shape, mesh: Mesh) -> Iterator[Cut]:
    """All tensors in Megatron's order, with the chunks that the mesh makes."""
    last = mesh.pp - 1
    for stage in range(mesh.pp):
        for rank in range(mesh.tp):
            yield Cut(
                f"rng_state/shard_{stage}.{rank}_{mesh.pp}.{mesh.tp}", stage, "tp", chunks=(((), rank),)
            )
    per_stage = -(-shape.layers // mesh.pp)
    for block in range(shape.tower):
        yield from _block(f"vision_tower.encoder.blocks.{block}")
    for cut in _language_model(shape, mesh, per_stage, last):
        yield replace(cut, name=f"language_model.{cut.name}") if shape.tower else cut


def _block(name: str) -> Iterator[Cut]:
    """A block of Kimi-K2.5's tower, whole on every rank of the first stage."""
    hidden, inner = 1152, 4304
    shapes = {"norm0": (hidden,), "norm1": (hidden,), "wqkv": (3 * hidden, hidden), "wo": (hidden, hidden)}
    for part, shape in (shapes | {"mlp.fc0": (inner, hidden), "mlp.fc1": (hidden, inner)}).items():
        yield _whole(f"{name}.{part}.weight", 0, *shape)
        yield _whole(f"{name}.{part}.bias", 0, shape[0])


def _language_model(shape: Shape, mesh: Mesh, per_stage: int, last: int) -> Iterator[Cut]:
    yield _split("embedding.word_embeddings.weight", 0, (shape.vocab, shape.hidden), 0, mesh)
    for layer in range(shape.layers):
        moe = layer >= shape.dense
        yield from _layer(f"decoder.layers.{layer}", layer // per_stage, moe, shape, mesh)
    yield _whole("decoder.final_layernorm.weight", last, shape.hidden)
    for layer in range(shape.mtp):
        name = f"mtp.layers.{layer}"
        for norm in ("enorm", "hnorm", "final_layernorm"):
            yield _whole(f"{name}.{norm}.weight", last, shape.hidden)
        yield _split(f"{name}.eh_proj.weight", last, (shape.hidden, 2 * shape.hidden), 0, mesh)
        yield from _layer(f"{name}.transformer_layer", last, True, shape, mesh)
    yield _split("output_layer.weight", last, (shape.vocab, shape.hidden), 0, mesh)


def _layer(name: str, stage: int, moe: bool, s: Shape, mesh: Mesh) -> Iterator[Cut]:
    attention = f"{name}.self_attention"
    yield _whole(f"{name}.input_layernorm.weight", stage, s.hidden)
    yield _split(f"{attention}.linear_proj.weight", stage, (s.hidden, s.heads * s.value), 1, mesh)
    yield _whole(f"{attention}.linear_q_down_proj.weight", stage, s.q_rank, s.hidden)
    yield _split(
        f"{attention}.linear_q_up_proj.weight", stage, (s.heads * (s.nope + s.rope), s.q_rank), 0, mesh
    )
    yield _whole(f"{attention}.linear_q_up_proj.layer_norm_weight", stage, s.q_rank)
    yield _whole(f"{attention}.linear_kv_down_proj.weight", stage, s.kv_rank + s.rope, s.hidden)
    yield _split(
        f"{attention}.linear_kv_up_proj.weight", stage, (s.heads * (s.nope + s.value), s.kv_rank), 0, mesh
    )
    yield _whole(f"{attention}.linear_kv_up_proj.layer_norm_weight", stage, s.kv_rank)
    if s.indexer[0]:
        heads, size = s.indexer
        indexer = f"{attention}.core_attention.indexer"
        yield _whole(f"{indexer}.linear_wq_b.weight", stage, heads * size, s.q_rank)
        yield _whole(f"{indexer}.linear_wk.weight", stage, size, s.hidden)
        yield _whole(f"{indexer}.k_norm.weight", stage, size)
        yield _whole(f"{indexer}.k_norm.bias", stage, size)
        yield _whole(f"{indexer}.linear_weights_proj.weight", stage, heads, s.hidden)
    for linear in ("proj", "q_down_proj", "q_up_proj", "kv_down_proj", "kv_up_proj"):
        yield Cut(f"{attention}.linear_{linear}._extra_state/shard_0_1", stage, "tp")
    if not moe:
        yield _whole(f"{name}.mlp.linear_fc1.layer_norm_weight", stage, s.hidden)
        yield from _mlp(f"{name}.mlp", stage, s.hidden, s.intermediate, mesh)
        return
    yield _whole(f"{name}.pre_mlp_layernorm.weight", stage, s.hidden)
    yield _whole(f"{name}.mlp.router.weight", stage, s.experts, s.hidden)
    yield Cut(
        f"{name}.mlp.router.expert_bias", stage, "tp", (s.experts,), "float32", (s.experts,), (((0,), 0),)
    )
    yield from _mlp(f"{name}.mlp.shared_experts", stage, s.hidden, s.expert, mesh)
    experts, each = f"{name}.mlp.experts.experts", s.experts // mesh.ep
    for fc, rows, columns, parts in (("1", 2 * s.expert, s.hidden, 2), ("2", s.hidden, s.expert, 1)):
        size = (1, rows // parts, columns)
        chunks = tuple(
            ((expert, part * size[1], 0), expert // each)
            for expert in range(s.experts)
            for part in range(parts)
        )
        whole = (s.experts, rows, columns)
        yield Cut(f"{experts}.linear_fc{fc}.weight", stage, "ep", whole, "bfloat16", size, chunks)
        for expert in range(s.experts):
            state = f"{experts}.linear_fc{fc}._extra_state/shard_{expert}_{s.experts}"
            yield Cut(state, stage, "ep", chunks=(((), expert // each),))


def _mlp(name: str, stage: int, hidden: int, inner: int, mesh: Mesh) -> Iterator[Cut]:
    step = inner // mesh.tp
    chunks = tuple(((half * inner + rank * step, 0), rank) for rank in range(mesh.tp) for half in range(2))
    fc1 = f"{name}.linear_fc1.weight"
    yield Cut(fc1, stage, "tp", (2 * inner, hidden), "bfloat16", (step, hidden), chunks)
    yield _split(f"{name}.linear_fc2.weight", stage, (hidden, inner), 1, mesh)
    for fc in "12":
        yield Cut(f"{name}.linear_fc{fc}._extra_state/shard_0_1", stage, "tp")


def _whole(name: str, stage: int, *shape: int) -> Cut:
    return Cut(name, stage, "tp", shape, "bfloat16", shape, (((0,) * len(shape), 0),))


def _split(name: str, stage: int, shape: tuple[int, int], dim: int, mesh: Mesh) -> Cut:
    step = shape[dim] // mesh.tp
    size = (step, shape[1]) if dim == 0 else (shape[0], step)
    chunks = tuple((((rank * step, 0) if dim == 0 else (0, rank * step)), rank) for rank in range(mesh.tp))
    return Cut(name, stage, "tp", shape, "bfloat16", size, chunks)


def nbytes(cut: Cut) -> int:
    """Bytes of the whole tensor; 0 for an extra state."""
    return prod(cut.shape) * (4 if cut.dtype == "float32" else 2) if cut.shape else 0
