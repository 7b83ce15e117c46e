"""Real DeepSpeed checkpoints (tests/make/deepspeed) come out as the runtime held them, bit for bit."""

from __future__ import annotations

import json
import re
import shutil
from pathlib import Path

import pytest
from support.helpers import (
    FIXTURES,
    Tensors,
    assert_equal,
    cast,
    cli,
    opened,
    parse,
    state,
    tensors,
    unpacked,
)

from ckptconv import CkptconvError, inspect, merge
from ckptconv.backends import open_checkpoint
from ckptconv.plan import Options

CASES = sorted(path.name.removesuffix(".tar.xz") for path in FIXTURES.glob("deepspeed_*.tar.xz"))
PARALLEL = re.compile(
    r"_(tp\d|pipe\d|pipeline|moe|autoep|lightning|neox|megatron_ds)_"
)  # tests/backends/test_deepspeed_parallel.py
READ = [case for case in CASES if not PARALLEL.search(case)]
WRAPPED = [case for case in READ if "_wrapped_" in case]


def truth(case: str) -> Tensors:
    return parse((unpacked(case) / "truth.safetensors").read_bytes())


def stored(case: str) -> Tensors:
    """What the files hold of the truth: all of it, but for weights that were left out of the save."""
    whole = truth(case)
    if "exclude" in case:
        return {
            n: t for n, t in whole.items() if not n.startswith(("model.embed_tokens.", "model.layers.0."))
        }
    return {n: t for n, t in whole.items() if ".lora_" in n} if "lora_only" in case else whole


@pytest.mark.parametrize("case", [case for case in READ if case not in WRAPPED])
def test_every_tensor_is_what_the_runtime_held(case: str) -> None:
    assert_equal(opened(unpacked(case) / "run"), stored(case))


@pytest.mark.parametrize("case", READ)
def test_inspect_accounts_for_every_rank(case: str) -> None:
    found = inspect(unpacked(case) / "run")
    about = json.loads((unpacked(case) / "about.json").read_text())
    assert found.backend == "deepspeed"
    assert found.step == (0 if "accelerate" in case else 7)  # accelerate counts its saves
    assert found.world_size == about["world"]
    expected = 1 if "universal" in case or "_z0_" in case else about["world"]
    assert sum(rank.nbytes > 0 for rank in found.ranks) == expected or "z3" in case


def test_zero_to_fp32_agrees_where_it_reads_the_files() -> None:
    """What DeepSpeed's own script said of each when it was made: equal, or known to fail."""
    said = {case: json.loads((unpacked(case) / "about.json").read_text())["zero_to_fp32"] for case in READ}
    assert [case for case, text in said.items() if "differs" in text] == []
    frozen = [
        "deepspeed_universal_z1_w2",
        "deepspeed_z1_bf16_w3",
        "deepspeed_z1_bf16_w3_cuda",
    ]  # it leaves frozen weights out at stage 1
    assert [case for case, text in said.items() if "lacks ['frozen" in text] == frozen


def test_masters_are_read_and_not_the_modules_copy() -> None:
    found = opened(unpacked("deepspeed_z2_bf16_w1") / "run")
    assert {t.dtype for name, t in found.items() if "frozen" not in name and name != "count"} == {"F32"}
    assert found["frozen.weight"].dtype == "BF16"


def test_moments_are_counted_and_not_read() -> None:
    checkpoint = open_checkpoint(unpacked("deepspeed_z2_bf16_w1") / "run")
    skipped = {item.what: item.nbytes for item in checkpoint.skipped}
    trained = sum(
        t.view.numel for name, t in checkpoint.tensors.items() if t.placement and name != "head.weight"
    )
    assert 8 * trained <= skipped["optimizer states"] <= 8 * trained + 200
    assert skipped["the module's copy of the weights"] >= 2 * trained


def test_tied_names_are_one_range_of_the_file() -> None:
    for case in ("deepspeed_z2_fp16_w3", "deepspeed_z3_bf16_w4", "deepspeed_z0_bf16_w2"):
        found = open_checkpoint(unpacked(case) / "run").tensors
        assert found["head.weight"].view == found["embed.weight"].view, case


@pytest.mark.parametrize(
    "case", ["deepspeed_trainer_z2_w2", "deepspeed_trainer_z3_w3", "deepspeed_accelerate_z2_w2"]
)
def test_a_trainers_folder_becomes_a_model(case: str, tmp_path: Path) -> None:
    merge(unpacked(case) / "run", tmp_path / "out")
    wanted = cast(truth(case))
    if "z3" in case:
        del wanted["lm_head.weight"]  # tied, and the config says so
    assert_equal(tensors(tmp_path / "out"), wanted)
    names = {path.name for path in (tmp_path / "out").iterdir()}
    assert names == {"config.json", "model.safetensors", "ckptconv.json"}


def test_lora_with_its_frozen_base_is_merged(tmp_path: Path) -> None:
    """W + B @ A * alpha / r, from the truth, in fp32."""
    import numpy as np

    for case in ("deepspeed_lora_z2_w2", "deepspeed_lora_z3_w2"):
        held = truth(case)
        merge(
            unpacked(case) / "run",
            tmp_path / case,
            config=unpacked(case) / "hf",
            options=Options(dtype="float32"),
        )
        found = tensors(tmp_path / case)
        stem = "base_model.model.model.layers.1.self_attn.q_proj"

        def array(name: str, held: Tensors = held) -> np.ndarray:  # type: ignore[type-arg]
            tensor = held[name]
            if tensor.dtype == "BF16":
                bits = np.frombuffer(tensor.data, "<u2").astype("<u4") << 16
                return bits.view("<f4").reshape(tensor.shape)
            return np.frombuffer(tensor.data, "<f4").reshape(tensor.shape)

        update = array(f"{stem}.lora_B.default.weight") @ array(f"{stem}.lora_A.default.weight") * 1.5
        wanted = array(f"{stem}.base_layer.weight") + update
        fused = found["model.layers.1.self_attn.q_proj.weight"]
        assert np.allclose(np.frombuffer(fused.data, "<f4").reshape(fused.shape), wanted, rtol=1e-6)
        assert not [name for name in found if "lora" in name]


def test_lora_alone_becomes_an_adapter(tmp_path: Path) -> None:
    merge(unpacked("deepspeed_lora_only_z2_w2") / "run", tmp_path / "out", options=Options(lora="adapter"))
    assert (tmp_path / "out" / "adapter_model.safetensors").is_file()
    assert json.loads((tmp_path / "out" / "adapter_config.json").read_text())["lora_alpha"] == 3


def test_a_run_of_several_steps_follows_latest(tmp_path: Path) -> None:
    run = tmp_path / "run"
    for step in (3, 7, 20):
        shutil.copytree(unpacked("deepspeed_z2_bf16_w1") / "run" / "global_step7", run / f"global_step{step}")
    (run / "latest").write_text("global_step7")
    assert open_checkpoint(run).root == run / "global_step7"
    assert open_checkpoint(run, step=20).root == run / "global_step20"
    assert open_checkpoint(run / "global_step3").step == 3
    (run / "latest").write_text("global_step9")
    with pytest.raises(CkptconvError, match="calls step 9 its latest"):
        open_checkpoint(run)
    with pytest.raises(CkptconvError, match="no step 5 in this run"):
        open_checkpoint(run, step=5)


def test_a_trainers_run_takes_the_last_checkpoint(tmp_path: Path) -> None:
    source = unpacked("deepspeed_trainer_z2_w2") / "run" / "checkpoint-7"
    for step in (4, 7):
        shutil.copytree(source, tmp_path / "run" / f"checkpoint-{step}")
    checkpoint = open_checkpoint(tmp_path / "run")
    assert checkpoint.root == tmp_path / "run" / "checkpoint-7"
    assert (checkpoint.step, checkpoint.assets) == (7, checkpoint.root)
    assert open_checkpoint(tmp_path / "run", step=4).step == 4


def test_the_script_that_lies_beside_is_never_run(tmp_path: Path) -> None:
    run = shutil.copytree(unpacked("deepspeed_trainer_z2_w2") / "run", tmp_path / "run")
    before = state(run)
    assert cli("inspect", run).code == 0
    assert cli("merge", run, tmp_path / "out").code == 0
    assert state(run) == before
    assert not list((tmp_path / "out").glob("*.py"))


def in_one_file(found: Tensors, folder: Path) -> Path:
    """A safetensors file: the header's length, the header, the data."""
    header, at = {}, 0
    for name, tensor in found.items():
        end = at + len(tensor.data)
        header[name] = {"dtype": tensor.dtype, "shape": list(tensor.shape), "data_offsets": [at, end]}
        at = end
    text = json.dumps(header).encode()
    file = folder / "tensors.safetensors"
    file.write_bytes(len(text).to_bytes(8, "little") + text + b"".join(t.data for t in found.values()))
    return file


@pytest.mark.parametrize("case", [case for case in READ if "exclude" in case])
def test_frozen_parameters_that_were_not_saved_come_from_the_base(case: str, tmp_path: Path) -> None:
    """`exclude_frozen_parameters` leaves out what did not change."""
    whole, base = cast(truth(case)), tmp_path / "base"
    step = next((unpacked(case) / "run").iterdir())
    with pytest.raises(CkptconvError, match=r"--base"):
        merge(unpacked(case) / "run", tmp_path / "out")
    base.mkdir()
    shutil.copy(step / "config.json", base)
    shutil.copy(in_one_file(whole, tmp_path), base / "model.safetensors")
    merge(unpacked(case) / "run", tmp_path / "out", base=base)
    assert_equal(tensors(tmp_path / "out"), whole)


@pytest.mark.parametrize("case", WRAPPED)
def test_a_wrapped_model_has_its_own_names(case: str, tmp_path: Path) -> None:
    merge(unpacked(case) / "run", tmp_path / "out")
    wrapper = re.compile(r"^(_orig_mod|module|_forward_module)\.")
    assert_equal(tensors(tmp_path / "out"), {wrapper.sub("", n): t for n, t in cast(truth(case)).items()})


@pytest.mark.parametrize("case", ["deepspeed_lightning_z2_w2", "deepspeed_lightning_z3_w2"])
def test_lightnings_folders_become_a_model(case: str, tmp_path: Path) -> None:
    """The config is in the run's folder, above NAME.ckpt/checkpoint/; the last step is taken."""
    run = unpacked(case) / "run"
    for source in (run, run / "epoch=0-step=2.ckpt", run / "epoch=0-step=2.ckpt" / "checkpoint"):
        out = tmp_path / source.name
        merge(source, out)
        assert_equal(tensors(out), cast(truth(case)))
    assert inspect(run).step == 2


def test_an_earlier_step_of_lightning_is_asked_for_by_its_number() -> None:
    run = unpacked("deepspeed_lightning_z3_w2") / "run"
    assert open_checkpoint(run, step=1).root == run / "epoch=0-step=1.ckpt"
