"""Pains of the other converters: output that is wrong in silence.

| elsewhere | pains |
|---|---|
| tests/backends/test_megatron.py | experts of EP > 1 not gathered; vocab padding left in, or cut below the tokenizer; |
| | router bias truncated to bf16; MTP layers lost; Megatron VLMs; v1/v2 folders; torch_dist without the args |
| DCP, DeepSpeed | layout drift of their own; classes in pickles that moved (Megatron's args) |
| tests/commands/push/test_push.py | uploads that cannot resume |
| benchmarks/ | slow, single-threaded consolidation; host out of memory, at the size of real models |
"""

from __future__ import annotations

import json
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from support.helpers import (
    ROLE,
    Tensors,
    assert_equal,
    cast,
    edit_json,
    largest_difference,
    own_copy,
    process,
    rank_file,
    tensors,
)

from ckptconv.backends import open_checkpoint
from ckptconv.commands.merge.run import merge
from ckptconv.errors import CkptconvError

Made = Callable[[str], Path]
Merged = Callable[..., Tensors]


ROUTER_BIAS = "e_score_correction_bias"


def test_shards_dropped_while_the_index_looks_whole(made: Made, tmp_path: Path, merged: Merged) -> None:
    """Shards dropped while the index looks whole."""
    found = merged(made("fsdp2_w4"), max_shard_size="10KB")
    index = json.loads((tmp_path / "out" / "model.safetensors.index.json").read_text())
    assert set(index["weight_map"].values()) == {
        path.name for path in (tmp_path / "out").glob("*.safetensors")
    }
    assert index["metadata"]["total_size"] == sum(len(tensor.data) for tensor in found.values())
    assert_equal(found, tensors(made("fsdp2_w4") / "hub"))


def test_a_merged_folder_is_not_the_base_model_with_lora_ignored(made: Made, merged: Merged) -> None:
    """ "merged" folder is the base model, LoRA ignored."""
    found = merged(made("lora_w4"))
    assert largest_difference(found, tensors(made("lora_w4") / "lora_merged.safetensors")) <= 1e-6
    assert largest_difference(found, tensors(made("lora_w4") / "base")) > 0.1


def test_lora_alpha_is_never_written_as_0(made: Made, tmp_path: Path) -> None:
    """LoRA alpha written as 0."""
    merge(made("lora_w4"), tmp_path / "out", lora="adapter")
    assert json.loads((tmp_path / "out" / "adapter_config.json").read_text())["lora_alpha"] == 7
    run = own_copy(made("lora_w4"), tmp_path / "run")
    edit_json(run / ROLE / "lora_train_meta.json", lora_alpha=0)
    with pytest.raises(CkptconvError, match="alpha"):
        merge(run, tmp_path / "zero", lora="adapter")


@pytest.mark.parametrize(
    "variant", ["qwen3_moe_w4", "mixtral_w4", "arch_deepseek_v3_w2", "arch_minimax_m2_w2"]
)
def test_expert_names_are_the_hubs_and_the_output_is_not_far_too_small(
    made: Made, variant: str, merged: Merged
) -> None:
    """wrong expert names, output far too small."""
    found, truth = merged(made(variant)), tensors(made(variant) / "truth.safetensors")
    assert_equal(found, tensors(made(variant) / "hub"))
    assert sum(len(t.data) for t in found.values()) == sum(len(t.data) for t in truth.values())


def test_replicated_buffers_are_not_concatenated_world_size_times(made: Made, merged: Merged) -> None:
    """replicated buffers concatenated world_size times, 0-d tensors crash."""
    found, truth = merged(made("buffers_w2")), tensors(made("buffers_w2") / "truth.safetensors")
    assert (found["scale"].shape, found["temperature"].shape, found["mask"].shape) == ((5,), (), (2, 7))
    assert_equal(found, truth)


def test_0_d_tensors_do_not_crash(made: Made, merged: Merged) -> None:
    """0-d tensors crash."""
    found = merged(made("buffers_w2"))
    scalars = {name: tensor for name, tensor in found.items() if tensor.shape == ()}
    truth = tensors(made("buffers_w2") / "truth.safetensors")
    assert set(scalars) >= {"temperature", "norm.num_batches_tracked"}
    assert_equal(scalars, {name: truth[name] for name in scalars})


def with_equal_storages(file: Path) -> None:
    """Write a rank file again with ones in every storage of weights; the small ones (a mesh's ranks) stay."""
    with zipfile.ZipFile(file) as old:
        parts = {info.filename: old.read(info) for info in old.infolist()}
    with zipfile.ZipFile(file, "w") as new:
        for name, data in parts.items():
            weights = "/data/" in name and len(data) >= 256
            new.writestr(name, np.ones(len(data) // 4, "<f4").tobytes() if weights else data)


def test_equal_valued_shards_are_not_taken_for_replicas(made: Made, tmp_path: Path, merged: Merged) -> None:
    """equal-valued shards taken for replicas."""
    run = own_copy(made("fsdp2_tp_even_w4"), tmp_path / "run")
    for rank in range(4):
        with_equal_storages(rank_file(run, rank))
    found, truth = merged(run), tensors(made("fsdp2_tp_even_w4") / "truth.safetensors")
    assert {name: t.shape for name, t in found.items()} == {name: t.shape for name, t in truth.items()}
    assert found["lm_head.weight"].data == np.ones((104, 28), "<f4").tobytes()


@pytest.mark.parametrize("variant", ["fsdp2_w4", "fsdp1_dtensor_w4", "fsdp2_tp_uneven_w4", "smalldims_w4"])
def test_uneven_shards_keep_every_row(made: Made, variant: str, merged: Merged) -> None:
    """uneven shards (3600 vs 3584 at 24 ranks)."""
    found, truth = merged(made(variant)), tensors(made(variant) / "truth.safetensors")
    assert any(tensor.shape and tensor.shape[0] % 4 for tensor in truth.values())
    assert_equal(found, truth)


def test_3584_rows_over_24_ranks(tmp_path: Path) -> None:
    """uneven shards (3600 vs 3584 at 24 ranks): ceil(3584 / 24) = 150, so that the last rank has 134."""
    from ckptconv.backends.fsdp.sharding import Placement, local_box

    boxes = [local_box((3584, 5), (24,), (rank,), (Placement("Shard", 0),), ()) for rank in range(24)]
    assert [box.sizes[0] for box in boxes] == [150] * 23 + [134]
    assert [box.offsets[0] for box in boxes] == list(range(0, 3584, 150))


def test_a_tied_head_is_not_written_twice(made: Made, merged: Merged) -> None:
    """tied head written twice."""
    found = merged(made("fsdp2_tied_w4"))
    assert "lm_head.weight" not in found
    assert_equal(found, tensors(made("fsdp2_tied_w4") / "hub"))


def test_a_tied_head_that_differs_is_not_dropped(made: Made, tmp_path: Path, merged: Merged) -> None:
    """(tied head) dropped although it differs."""
    found = merged(made("fsdp2_untied_but_config_tied_w4"))
    truth = tensors(made("fsdp2_untied_but_config_tied_w4") / "truth.safetensors")
    assert found["lm_head.weight"] == truth["lm_head.weight"]
    assert json.loads((tmp_path / "out" / "config.json").read_text())["tie_word_embeddings"] is False


@pytest.mark.parametrize("variant", ["qwen3_moe_w4", "arch_gpt_oss_w2", "arch_qwen3_5_moe_w2"])
def test_a_transpose_is_not_hidden_by_a_square_matrix(made: Made, variant: str, merged: Merged) -> None:
    """a transpose hidden by a square matrix: every expert's matrices have two different sides."""
    found = merged(made(variant))
    experts = {name: t for name, t in found.items() if ".experts." in name and len(t.shape) >= 2}
    assert experts
    assert all(t.shape[-1] != t.shape[-2] for t in experts.values())
    assert_equal(found, tensors(made(variant) / "hub"))


def test_lora_is_not_fused_in_bf16(made: Made, merged: Merged) -> None:
    """LoRA fused in bf16: compared with the same sum in fp32, rounded once, and with bf16 all the way."""
    import torch

    found = merged(made("lora_bf16_w2"))
    truth = tensors(made("lora_bf16_w2") / "truth.safetensors")
    stem = "base_model.model.model.layers.0.mlp.up_proj"

    def load(name: str) -> Any:
        tensor = truth[f"{stem}.{name}.weight"]
        return torch.frombuffer(bytearray(tensor.data), dtype=torch.bfloat16).reshape(tensor.shape)

    base, a, b = load("base_layer"), load("lora_A.default"), load("lora_B.default")
    once = (base.float() + 7 / 5 * (b.float() @ a.float())).bfloat16()
    often = base + (b @ a) * (7 / 5)
    ours = torch.frombuffer(bytearray(found["model.layers.0.mlp.up_proj.weight"].data), dtype=torch.bfloat16)
    assert (ours != once.reshape(-1)).sum() <= 2  # fp32 sums in another order, on a rounding edge
    assert (often.reshape(-1) != once.reshape(-1)).sum() > 50


def test_dtype_is_not_forced_one_way(made: Made, tmp_path: Path) -> None:
    """dtype forced one way."""
    truth = tensors(made("fsdp2_bf16_w4") / "hub")
    merge(made("fsdp2_bf16_w4"), tmp_path / "keep", dtype="keep")
    merge(made("fsdp2_bf16_w4"), tmp_path / "auto")
    merge(made("fsdp2_bf16_w4"), tmp_path / "wide", dtype="float32")
    assert_equal(tensors(tmp_path / "keep"), truth)
    assert_equal(tensors(tmp_path / "auto"), cast(truth))
    assert {t.dtype for t in tensors(tmp_path / "wide").values()} == {"F32"}


@pytest.mark.parametrize("variant", ["arch_deepseek_v3_w2", "arch_glm4_moe_w2", "arch_minimax_m2_w2"])
def test_a_router_bias_is_not_truncated_to_bf16(made: Made, tmp_path: Path, variant: str) -> None:
    """router bias truncated to bf16."""
    merge(made(variant), tmp_path / "out")
    router = {n: t for n, t in tensors(made(variant) / "hub").items() if ROUTER_BIAS in n}
    assert {tensor.dtype for tensor in router.values()} == {"F32"}
    written = tensors(tmp_path / "out")
    assert_equal({name: written[name] for name in router}, router)


def test_generation_config_is_not_replaced_so_generation_ends(
    made: Made, tmp_path: Path, merged: Merged
) -> None:
    """generation_config replaced, so generation never ends."""
    merged(made("fsdp2_w4"))
    theirs = made("fsdp2_w4") / ROLE / "huggingface" / "generation_config.json"
    assert json.loads(theirs.read_text())["eos_token_id"] == [2, 4]
    assert (tmp_path / "out" / "generation_config.json").read_bytes() == theirs.read_bytes()


def test_a_reward_head_is_not_lost(made: Made, tmp_path: Path, merged: Merged) -> None:
    """value/reward head lost: what verl's own loader opens has the trained head."""
    from transformers import AutoModelForTokenClassification

    truth = tensors(made("critic_w2") / "truth.safetensors")
    assert merged(made("critic_w2"))["score.weight"] == truth["score.weight"]
    model = AutoModelForTokenClassification.from_pretrained(tmp_path / "out")
    assert model.score.weight.detach().numpy().tobytes() == truth["score.weight"].data


def test_a_value_head_of_trl_is_not_lost(made: Made, merged: Merged) -> None:
    """value/reward head lost."""
    found, truth = merged(made("trl_vhead_bare_w2")), tensors(made("trl_vhead_bare_w2") / "truth.safetensors")
    assert found["v_head.summary.weight"] == truth["v_head.summary.weight"]
    assert_equal(found, tensors(made("trl_vhead_bare_w2") / "hub"))


def test_a_value_head_as_verl_stores_it_leaves_a_model_that_loads(
    made: Made, tmp_path: Path, merged: Merged
) -> None:
    """value/reward head lost: the other way round, the model under it."""
    from transformers import AutoModelForCausalLM

    merged(made("trl_vhead_w2"))
    _, info = AutoModelForCausalLM.from_pretrained(tmp_path / "out", output_loading_info=True)
    assert not info["missing_keys"]


def test_the_mesh_is_not_taken_from_a_first_key_that_is_a_plain_buffer(made: Made, merged: Merged) -> None:
    """mesh taken from the first key, which was a plain buffer, so only rank 0 was merged."""
    stored = open_checkpoint(made("buffers_w2")).tensors
    assert stored[next(iter(stored))].placement == ""
    assert merged(made("buffers_w2"))["proj.weight"].shape == (13, 11)
    assert_equal(
        merged(made("buffers_w2"), overwrite=True), tensors(made("buffers_w2") / "truth.safetensors")
    )


def test_an_hsdp_replica_is_not_assumed_to_be_ranks_0_to_n_1(
    made: Made, tmp_path: Path, merged: Merged
) -> None:
    """HSDP replica assumed to be ranks 0..n-1: the mesh is [[3, 1], [0, 2]], and ranks 0 and 1 hold the same half."""
    assert_equal(merged(made("hsdp_oddnames_w4")), tensors(made("hsdp_oddnames_w4") / "hub"))
    run = own_copy(made("hsdp_oddnames_w4"), tmp_path / "run")
    shard = {rank: rank_file(run, rank) for rank in range(4)}
    enough, said = [], set()
    for pair in ((0, 1), (0, 2), (0, 3), (1, 2), (1, 3), (2, 3)):
        for rank in set(range(4)) - set(pair):
            shard[rank].rename(tmp_path / str(rank))
        try:
            assert_equal(merged(run, overwrite=True), tensors(made("hsdp_oddnames_w4") / "hub"))
            enough.append(pair)
        except CkptconvError as error:
            said.add(error.what)
        for rank in set(range(4)) - set(pair):
            (tmp_path / str(rank)).rename(shard[rank])
    assert enough == [(0, 2), (0, 3), (1, 2), (1, 3)]
    assert said == {
        "ranks 0-1 of 4 are missing from the checkpoint",
        "ranks 2-3 of 4 are missing from the checkpoint",
    }


def test_conversion_errors_are_not_swallowed_with_exit_0(made: Made, tmp_path: Path) -> None:
    """conversion errors swallowed, exit 0."""
    run = own_copy(made("fsdp2_w4"), tmp_path / "run")
    rank_file(run, 3).unlink()
    ran = process("merge", run, tmp_path / "out")
    assert ran.code != 0
    assert ran.out == ""
    assert not (tmp_path / "out").exists()
