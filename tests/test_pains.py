"""What hurts users of the other converters, one test a pain, named after it; each compares bytes, not the lack of a crash.

| waits for                  | pains                                                                                    |
|----------------------------|------------------------------------------------------------------------------------------|
| Megatron                   | experts of EP > 1 not gathered; vocab padding left in, or cut below the tokenizer;       |
|                            | router bias truncated to bf16; MTP layers lost; Megatron VLMs; v1/v2 folders;            |
|                            | torch_dist without the trainer's args                                                    |
| DCP, DeepSpeed             | layout drift of their own; classes in pickles that moved (Megatron's args)               |
| tests/test_push.py         | uploads that cannot resume                                                               |
| benchmarks/                | slow, single-threaded consolidation; host out of memory, at the size of real models      |
"""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from helpers import (
    FIXTURES,
    LORA,
    ROLE,
    VARIANTS,
    Tensors,
    assert_equal,
    cast,
    cli,
    edit_config,
    edit_json,
    environment,
    largest_difference,
    own_copy,
    process,
    rank_file,
    save_ws1,
    state,
    tensors,
)

from ckptconv.backends import open_checkpoint
from ckptconv.commands.merge import Events, merge
from ckptconv.errors import CkptconvError

Made = Callable[[str], Path]
ROUTER_BIAS = "e_score_correction_bias"


@pytest.fixture
def merged(tmp_path: Path) -> Callable[..., Tensors]:
    """`merged(run, ...)`: the tensors of the folder that a merge without a dtype policy writes."""

    def run(source: Path, **options: Any) -> Tensors:
        merge(source, tmp_path / "out", **({"dtype": "keep"} | options))
        return tensors(tmp_path / "out")

    return run


Merged = Callable[..., Tensors]


# --- silently wrong output


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
    from ckptconv.backends.sharding import Placement, local_box

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


MINIMAX = pytest.param(
    "arch_minimax_m2_w2",
    marks=pytest.mark.xfail(
        strict=True, reason="its class lists no fp32 modules, so keeps_fp32 does not know"
    ),
)


@pytest.mark.parametrize("variant", ["arch_deepseek_v3_w2", "arch_glm4_moe_w2", MINIMAX])
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


# --- cannot convert


def test_rank_files_scattered_over_nodes(made: Made, tmp_path: Path) -> None:
    """Rank files scattered over nodes (the most repeated complaint)."""
    nodes = []
    for rank in range(4):
        nodes.append(tmp_path / f"node{rank}")
        (nodes[-1] / ROLE).mkdir(parents=True)
        shutil.copy(rank_file(made("fsdp2_w4"), rank), nodes[-1] / ROLE)
    shutil.copytree(made("fsdp2_w4") / ROLE / "huggingface", nodes[0] / ROLE / "huggingface")
    merge(nodes[0], tmp_path / "out", also=nodes[1:], dtype="keep")
    assert_equal(tensors(tmp_path / "out"), tensors(made("fsdp2_w4") / "hub"))


RSS = """
import sys
from ckptconv.commands.merge import merge
done = merge(sys.argv[1], sys.argv[2], max_memory=64 << 20)
assert not {"torch", "transformers", "verl"} & set(sys.modules), sorted(sys.modules)
(peak,) = (line for line in open("/proc/self/status") if line.startswith("VmHWM")) if sys.platform == "linux" else ("0 0",)
print(int(peak.split()[1]) * 1024)
"""


def test_the_host_does_not_run_out_of_memory(tmp_path: Path) -> None:
    """host out of memory: 200 MB of weights, 64 MiB of buffers."""
    import torch

    whole = torch.arange(50_000_000, dtype=torch.float32).reshape(1_000, 50_000)
    run = save_ws1({"one": whole[:500], "two": whole[500:]}, {"model_type": "odd"}, tmp_path / "run")
    words = [sys.executable, "-c", RSS, str(run), str(tmp_path / "out")]
    done = subprocess.run(words, env=environment(), capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    assert int(done.stdout) < 170e6
    assert tensors(tmp_path / "out")["two"].data == whole[500:].bfloat16().view(torch.int16).numpy().tobytes()


@pytest.mark.parametrize("variant", ["fsdp2_w4", "fsdp1_sharded_tensor_w2", "lora_w4"])
def test_neither_a_gpu_nor_the_trainer_nor_torch_is_needed(made: Made, tmp_path: Path, variant: str) -> None:
    """a GPU or the trainer needed."""
    words = [sys.executable, "-c", RSS, str(made(variant)), str(tmp_path / "out")]
    done = subprocess.run(
        words, env=environment(CUDA_VISIBLE_DEVICES=""), capture_output=True, text=True, timeout=60
    )
    assert done.returncode == 0, done.stderr
    merge(made(variant), tmp_path / "here")
    assert_equal(tensors(tmp_path / "out"), tensors(tmp_path / "here"))


def test_layout_drift_fsdp_config_json_missing(made: Made, tmp_path: Path, merged: Merged) -> None:
    """layout drift (fsdp_config.json missing)."""
    run = own_copy(made("fsdp2_tp_uneven_w4"), tmp_path / "run")
    (run / ROLE / "fsdp_config.json").unlink()
    assert_equal(merged(run), tensors(made("fsdp2_tp_uneven_w4") / "hub"))


@pytest.mark.parametrize("variant", ["ws1_fsdp1", "ws1_fsdp2"])
def test_single_gpu_runs_have_plain_tensors(made: Made, variant: str, merged: Merged) -> None:
    """single-GPU runs (plain tensors)."""
    assert_equal(merged(made(variant)), tensors(made(variant) / "hub"))


def test_unknown_mesh_names(made: Made, merged: Merged) -> None:
    """unknown mesh names."""
    assert open_checkpoint(made("hsdp_oddnames_w4")).meshes[0].names == ("replica_group", "dp_shard_cp")
    assert_equal(merged(made("hsdp_oddnames_w4")), tensors(made("hsdp_oddnames_w4") / "hub"))


@pytest.mark.parametrize("variant", ["fsdp2_tp_even_w4", "fsdp2_tp_uneven_w4"])
def test_fsdp_and_tp(made: Made, variant: str, merged: Merged) -> None:
    """FSDP+TP."""
    assert_equal(merged(made(variant)), tensors(made(variant) / "hub"))


@pytest.mark.parametrize("variant", ["fsdp1_sharded_tensor_w2", "fsdp1_flat_noorig_w2"])
def test_sharded_tensor(made: Made, variant: str, merged: Merged) -> None:
    """ShardedTensor."""
    assert_equal(merged(made(variant)), tensors(made(variant) / "hub"))


def test_classes_in_pickles_that_moved(tmp_path: Path) -> None:
    """classes in pickles that moved: torch._tensor of 2.4 is torch.tensor since 2.5."""
    folders = sorted(FIXTURES.glob("torch_*/fsdp1_mesh_w2"))
    if len(folders) < 2:
        pytest.skip("no fixtures of older torch here")
    assert any(b"distributed._tensor" in next(f.glob("*_rank_0.pt")).read_bytes() for f in folders)
    for folder in folders:
        config = tmp_path / folder.parent.name
        config.mkdir()
        (config / "config.json").write_text('{"model_type": "odd"}')
        merge(folder, config / "out", config=config, dtype="keep")
        assert_equal(tensors(config / "out"), tensors(folder.parent / "truth.safetensors"))


def test_classes_in_pickles_that_vanished(tmp_path: Path, merged: Merged) -> None:
    """classes in pickles that (moved or) vanished: beside the weights they are skipped, not imported."""
    import torch

    module = tmp_path / "vanished_module.py"
    module.write_text("class Config:\n    pass\n")
    save = "import sys, torch; sys.path.insert(0, sys.argv[1]); from vanished_module import Config\n"
    save += "x = torch.load(sys.argv[2]); x['w'].tag = Config(); torch.save(x, sys.argv[2])"
    run = save_ws1({"w": torch.arange(6.0)}, {"model_type": "odd"}, tmp_path / "run")
    subprocess.run(
        [sys.executable, "-c", save, str(tmp_path), str(rank_file(run, 0))], check=True, timeout=60
    )
    module.unlink()
    assert b"vanished_module" in rank_file(run, 0).read_bytes()
    assert merged(run)["w"].data == np.arange(6, dtype="<f4").tobytes()


@pytest.mark.parametrize("variant", [v for v in VARIANTS if v.startswith("arch_")])
def test_transformers_5_fused_experts_and_renamed_parts(made: Made, variant: str, merged: Merged) -> None:
    """transformers 5 (fused experts, renamed auto classes)."""
    assert_equal(merged(made(variant)), tensors(made(variant) / "hub"))


def test_architectures_missing(made: Made, tmp_path: Path, merged: Merged) -> None:
    """`architectures` missing."""
    run = own_copy(made("qwen2_5_vl_w4"), tmp_path / "run")
    edit_config(run, architectures=None)
    assert_equal(merged(run), tensors(made("qwen2_5_vl_w4") / "hub"))
    config = json.loads((tmp_path / "out" / "config.json").read_text())
    assert config["architectures"] == ["Qwen2_5_VLForConditionalGeneration"]


def test_lora_only_checkpoints(made: Made, tmp_path: Path) -> None:
    """LoRA-only checkpoints."""
    merge(made("lora_only_w2"), tmp_path / "adapter")
    assert_equal(tensors(tmp_path / "adapter"), tensors(made("lora_only_w2") / "adapter"))
    merge(made("lora_only_w2"), tmp_path / "merged", base=made("lora_only_w2") / "base", dtype="keep")
    peft = tensors(made("lora_only_w2") / "lora_merged.safetensors")
    assert largest_difference(tensors(tmp_path / "merged"), peft) <= 1e-6


# --- operations


def test_the_tokenizer_is_not_re_serialised_so_serving_works(
    made: Made, tmp_path: Path, merged: Merged
) -> None:
    """Tokenizer re-serialised so that serving fails."""
    run = own_copy(made("fsdp2_w4"), tmp_path / "run")
    folder = run / ROLE / "huggingface"
    data = json.loads((folder / "tokenizer_config.json").read_text()) | {
        "extra_special_tokens": ["<x>"],
        "old": 1.50,
    }
    (folder / "tokenizer_config.json").write_text(json.dumps(data, indent=3) + "\n\n")
    merged(run)
    for name in ("tokenizer.json", "tokenizer_config.json", "chat_template.jinja"):
        assert (tmp_path / "out" / name).read_bytes() == (folder / name).read_bytes()


def test_a_crash_leaves_neither_junk_nor_half_a_model(made: Made, tmp_path: Path) -> None:
    """crash leaves junk or nothing."""
    merge(made("fsdp2_w4"), tmp_path / "out")
    before = state(tmp_path)

    def crash(*_: object) -> None:
        raise RuntimeError("crash")

    for variant in ("fsdp2_tied_w4", "lora_w4"):
        with pytest.raises(RuntimeError, match="crash"):
            merge(made(variant), tmp_path / "out", overwrite=True, events=Events(on_bytes=crash))
        assert state(tmp_path) == before


def test_a_full_disk_is_not_found_after_20_minutes(
    made: Made, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """disk full after 20 minutes: it is found before anything is read or written."""
    usage = shutil.disk_usage
    monkeypatch.setattr(shutil, "disk_usage", lambda path: usage(path)._replace(free=1_000))
    read: list[object] = []
    with pytest.raises(CkptconvError, match="not enough room") as error:
        merge(made("fsdp2_w4"), tmp_path / "out", events=Events(on_bytes=lambda *a: read.append(a)))
    assert error.value.found == "1,000 bytes free"
    assert (read, list(tmp_path.iterdir())) == ([], [])


def test_errors_do_not_come_only_after_loading_everything(made: Made, tmp_path: Path) -> None:
    """errors only after loading everything: all storages are overwritten, and still the metadata's error comes first."""
    run = own_copy(made("fsdp2_w4"), tmp_path / "run")
    edit_config(run, vocab_size=999)
    read: list[object] = []
    with pytest.raises(CkptconvError, match="does not belong"):
        merge(run, tmp_path / "out", events=Events(lambda plan: read.append(plan), lambda *a: read.append(a)))
    assert read == []
    assert not (tmp_path / "out").exists()


def test_consolidation_is_not_single_threaded(tmp_path: Path) -> None:
    """slow, single-threaded consolidation: several threads write, and the bytes are the same as with one."""
    import threading

    import torch

    whole = torch.randn(3_000, 4_000, generator=torch.Generator().manual_seed(2))
    run = save_ws1({"one": whole, "two": whole[:999]}, {"model_type": "odd"}, tmp_path / "run")
    seen: set[int] = set()
    merge(
        run, tmp_path / "many", workers=4, events=Events(on_bytes=lambda *_: seen.add(threading.get_ident()))
    )
    merge(run, tmp_path / "one", workers=1)
    assert len(seen) > 1
    assert state(tmp_path / "many") == state(tmp_path / "one")
    assert tensors(tmp_path / "one")["one"].data == whole.bfloat16().view(torch.int16).numpy().tobytes()


def test_index_and_format_pt_metadata_are_not_missing(made: Made, tmp_path: Path, merged: Merged) -> None:
    """missing index or `format: pt` metadata."""
    from safetensors import safe_open

    found = merged(made("fsdp2_w4"), max_shard_size="20KB")
    index = json.loads((tmp_path / "out" / "model.safetensors.index.json").read_text())
    assert set(index["weight_map"]) == set(found)
    for name in set(index["weight_map"].values()):
        with safe_open(tmp_path / "out" / name, "pt") as file:
            assert file.metadata() == {"format": "pt"}


def test_which_base_which_step_did_this_come_from(made: Made, tmp_path: Path) -> None:
    """ "which base, which step did this come from?"."""
    run = own_copy(made("lora_w4"), tmp_path / "my-run")
    edit_config(run, _name_or_path="Qwen/Qwen2-0.5B")
    merge(run, tmp_path / "out")
    receipt = json.loads((tmp_path / "out" / "ckptconv.json").read_text())
    assert receipt["base_model"] == "Qwen/Qwen2-0.5B"
    assert (receipt["source"]["step"], receipt["source"]["role"]) == (7, "actor")
    assert receipt["source"]["folder"] == f"my-run/{ROLE}"
    origin = receipt["tensors"]["model.layers.1.mlp.down_proj.weight"]["from"]
    assert [name.rsplit(".", 2)[-2] for name in origin] == ["base_layer", "default", "default"]


@pytest.mark.parametrize("variant", [v for v in VARIANTS if v not in ("lora_noalpha_w2", *LORA[3:])])
def test_how_do_i_convert_is_one_command_without_flags(made: Made, tmp_path: Path, variant: str) -> None:
    """ "how do I convert?" - it must be one command without flags."""
    ran = cli("merge", made(variant), tmp_path / "out")
    assert ran.code == 0, ran.err
    merge(made(variant), tmp_path / "kept", dtype="keep")
    kept, written = (
        {name: t for name, t in tensors(tmp_path / folder).items() if ROUTER_BIAS not in name}
        for folder in ("kept", "out")
    )
    assert_equal(written, cast(kept))
    assert (tmp_path / "out" / "config.json").is_file()
