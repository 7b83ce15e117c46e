"""What goes in is what was written, and what comes out is what was read: hashes, receipts, times, NaN."""

from __future__ import annotations

import json
import os
import re
import shutil
import zipfile
from collections.abc import Callable
from math import prod
from pathlib import Path

import numpy as np
import pytest
from support.helpers import assert_equal, cli, own_copy, tensors, unpacked
from support.stopped import kill_at

from ckptconv.backends import open_checkpoint
from ckptconv.commands.merge.run import merge
from ckptconv.commands.progress import Progress
from ckptconv.commands.push.folder import check_folder
from ckptconv.errors import CkptconvError
from ckptconv.models.rules import Grouped

Made = Callable[[str], Path]
Q = "model.layers.1.self_attn.q_proj.weight"
SHARDS = {"dtype": "keep", "max_shard_size": "10KB"}


def flip(path: Path, at: int) -> None:
    data = bytearray(path.read_bytes())
    data[at] ^= 1
    path.write_bytes(data)


def rewrite_pickle(path: Path, old: bytes, new: Callable[[re.Match[bytes]], bytes]) -> None:
    """Change data.pkl of a file that torch.save wrote, and its CRC with it."""
    with zipfile.ZipFile(path) as archive:
        entries = [(info.filename, archive.read(info)) for info in archive.infolist()]
    with zipfile.ZipFile(path, "w") as archive:
        for name, data in entries:
            if name.endswith("/data.pkl"):
                data, count = re.subn(old, new, data, flags=re.DOTALL)
                assert count == 1
            archive.writestr(name, data)


def finished_shard(work: Path) -> Path:
    """A shard of a killed run that it had finished."""
    return min(
        path
        for path in (work / "model").glob("*.safetensors")
        if (work / "model.done" / f"{path.name}.json").is_file()
    )


def test_a_finished_shard_that_lost_its_bytes_is_written_again_and_named(made: Made, tmp_path: Path) -> None:
    """As a machine that stopped leaves it: the name and the size are on the disk, a page of the data is not."""
    run = made("fsdp2_w4")
    shard = finished_shard(kill_at(run, tmp_path / "out", 20))
    flip(shard, shard.stat().st_size - 3)
    done = merge(run, tmp_path / "out", **SHARDS)
    assert done.resumed
    assert shard.name not in done.resumed
    assert_equal(tensors(tmp_path / "out"), tensors(run / "hub"))
    (note,) = done.notes
    assert note.startswith(f"{shard.name} of the run that was killed")


def test_a_finished_shard_with_another_header_is_written_again(made: Made, tmp_path: Path) -> None:
    """The tensors' bytes are the same, so that only the header tells: a name in it is another one."""
    run = made("fsdp2_w4")
    shard = finished_shard(kill_at(run, tmp_path / "out", 20))
    data = shard.read_bytes()
    assert data.count(b".weight") or data.count(b".bias")
    shard.write_bytes(data.replace(b".weight", b".wEight").replace(b".bias", b".bIas"))
    done = merge(run, tmp_path / "out", **SHARDS)
    assert shard.name not in done.resumed
    assert_equal(tensors(tmp_path / "out"), tensors(run / "hub"))


def test_what_is_taken_over_unharmed_is_not_mentioned(made: Made, tmp_path: Path) -> None:
    kill_at(made("fsdp2_w4"), tmp_path / "out", 20)
    done = merge(made("fsdp2_w4"), tmp_path / "out", **SHARDS)
    assert done.resumed
    assert done.notes == ()


def test_a_source_whose_receipt_contradicts_its_bytes_is_not_merged(made: Made, tmp_path: Path) -> None:
    model = tmp_path / "model"
    merge(made("fsdp2_w4"), model)
    merge(model, tmp_path / "good")
    weights = model / "model.safetensors"
    flip(weights, weights.stat().st_size - 1)
    with pytest.raises(CkptconvError, match=r"ckptconv\.json contradicts the files next to it") as error:
        merge(model, tmp_path / "out")
    assert "bytes are not those of the receipt's hash" in str(error.value.found)
    assert not (tmp_path / "out").exists()
    (model / "ckptconv.json").unlink()  # what the hint says
    merge(model, tmp_path / "out")


def test_a_base_whose_receipt_contradicts_its_bytes_is_not_used(made: Made, tmp_path: Path) -> None:
    base = tmp_path / "base"
    merge(made("lora_w4") / "base", base, dtype="keep")
    merge(made("lora_only_w2"), tmp_path / "good", base=base, lora="merge")
    receipt = json.loads((base / "ckptconv.json").read_text())
    receipt["tensors"][Q]["hash"] = "0" * 32
    (base / "ckptconv.json").write_text(json.dumps(receipt))
    with pytest.raises(CkptconvError, match=r"ckptconv\.json contradicts the files next to it"):
        merge(made("lora_only_w2"), tmp_path / "out", base=base, lora="merge")


@pytest.mark.parametrize("harm", ["bytes", "file", "receipt"])
def test_a_folder_whose_receipt_contradicts_it_is_not_pushed(made: Made, tmp_path: Path, harm: str) -> None:
    out, receipt = tmp_path / "out", tmp_path / "out" / "ckptconv.json"
    merge(made("fsdp2_w4"), out)
    check_folder(out)
    if harm == "bytes":
        flip(out / "model.safetensors", (out / "model.safetensors").stat().st_size // 2)
    elif harm == "file":
        stated = json.loads(receipt.read_text())
        receipt.write_text(json.dumps(stated | {"files": stated["files"] | {"more.safetensors": 8}}))
    else:
        receipt.write_text("[]")
    with pytest.raises(CkptconvError, match="nothing was uploaded"):
        check_folder(out)


def last_byte(then: Callable[[], None]) -> Callable[[Progress], None]:
    """Calls `then` once all has been written."""

    def on_progress(step: Progress) -> None:
        if step.done == step.total:
            then()

    return on_progress


@pytest.mark.parametrize("which", ["used", "replica", "config.json", "tokenizer.json"])
def test_a_file_that_changes_under_the_last_byte_stops_the_merge(
    made: Made, tmp_path: Path, which: str
) -> None:
    run = own_copy(made("hsdp_w4"), tmp_path / "run")
    checkpoint = open_checkpoint(run)
    used = {file for tensor in checkpoint.tensors.values() for file in tensor.view.files}
    copies = {file.path for file in checkpoint.files} - used
    assert used
    assert copies
    path = {"used": min(used), "replica": min(copies)}.get(which) or str(next(run.rglob(which)))
    change = last_byte(lambda: os.utime(path, (1, 1)))
    with pytest.raises(CkptconvError, match="changed while it was read") as error:
        merge(run, tmp_path / "out", on_progress=change)
    assert error.value.where == path
    assert not (tmp_path / "out").exists()


def make_nan(run: Path, rank: int | None, names: list[str]) -> None:
    """NaN in all that a rank (None: every rank) stores of some tensors."""
    checkpoint = open_checkpoint(run)
    for name in names:
        for chunk in checkpoint.tensors[name].view.chunks:
            if rank is None or checkpoint.rank_of[chunk.file] == rank:
                with open(chunk.file, "r+b") as file:
                    file.seek(chunk.start)
                    file.write(np.full(prod(chunk.sizes), np.nan, np.float32).tobytes())


@pytest.mark.parametrize("dtype", ["bfloat16", "keep", "float16"])
def test_a_whole_ranks_share_of_nan_is_reported_with_the_rank(made: Made, tmp_path: Path, dtype: str) -> None:
    run = own_copy(made("fsdp2_w4"), tmp_path / "run")
    stored = open_checkpoint(run).tensors
    names = [name for name, tensor in stored.items() if len(tensor.view.chunks) == 4]
    make_nan(run, 1, names)
    ran = cli("merge", run, tmp_path / "out", "--dtype", dtype)
    assert ran.code == 0, "a run that diverged is still a run"
    assert "NaN or Inf in " in ran.flat
    assert f"and {len(names) - 3} more: all of it was stored by rank 1" in ran.flat
    receipt = json.loads((tmp_path / "out" / "ckptconv.json").read_text())
    assert any("stored by rank 1" in note for note in receipt["notes"])


def test_a_whole_tensor_of_nan_is_reported_and_one_element_too(made: Made, tmp_path: Path) -> None:
    run = own_copy(made("fsdp2_w4"), tmp_path / "run")
    make_nan(run, None, [Q])
    chunk = open_checkpoint(run).tensors["model.norm.weight"].view.chunks[-1]
    with open(chunk.file, "r+b") as file:
        file.seek(chunk.start)
        file.write(np.float32(-np.inf).tobytes())
    whole, part = merge(run, tmp_path / "out").notes
    assert whole == f"{Q} holds nothing but NaN or Inf"
    assert part.startswith("NaN or Inf in model.norm.weight (1 of 27)")


def test_nan_of_a_shard_that_is_taken_over_is_reported_all_the_same(made: Made, tmp_path: Path) -> None:
    run = own_copy(made("fsdp2_w4"), tmp_path / "run")
    names = sorted(open_checkpoint(run).tensors)
    make_nan(run, None, names)
    kill_at(run, tmp_path / "out", 20)
    done = merge(run, tmp_path / "out", **SHARDS)
    assert done.resumed
    assert f"and {len(names) - 3} more hold nothing but NaN or Inf" in done.notes[0]


def test_a_rule_that_takes_rows_twice_is_refused_by_the_ledger(
    made: Made, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Shapes and names are right, so that nothing but the ledger can tell: the keys are written as values as well."""
    whole = Grouped.split

    def twice(self: Grouped, pieces: list) -> list:
        query, key, value = whole(self, pieces)
        assert key.shape == value.shape
        return [query, key, key]

    case = unpacked("megatron/qwen2_tp2")
    merge(case / "run", tmp_path / "good", config=case / "hf")
    monkeypatch.setattr(Grouped, "split", twice)
    with pytest.raises(CkptconvError, match="the ledger does not balance"):
        merge(case / "run", tmp_path / "out", config=case / "hf")
    assert not (tmp_path / "out").exists()


def test_copies_on_other_ranks_are_compared_with_the_rows_that_they_repeat(tmp_path: Path) -> None:
    """Of TP2 EP4, [gate | up] of each rank and every other shard is stored twice, and is one part of the model's rows."""
    case = unpacked("megatron/deepseek_v3_mlm_legacy")
    copied = [tensor for tensor in open_checkpoint(case / "run").tensors.values() if tensor.replicas]
    assert {"gated Shard(0)", "Shard(0)", "Shard(1)"} <= {tensor.placement for tensor in copied}
    merge(case / "run", tmp_path / "out", config=case / "hf", check_replicas=True)


def test_model_files_of_two_steps_are_not_one_model(tmp_path: Path) -> None:
    case = unpacked("deepspeed_trainer_z3_w3")
    run = Path(shutil.copytree(case / "run", tmp_path / "run"))
    merge(run, tmp_path / "good")
    (file,) = run.rglob("zero_pp_rank_1_mp_rank_00_model_states.pt")
    rewrite_pickle(file, rb"(global_steps(?:q.|r.{4})?K).", lambda found: found[1] + b"\x63")
    with pytest.raises(CkptconvError, match="different steps") as error:
        merge(run, tmp_path / "out")
    assert error.value.found == "99"
    assert error.value.where == str(file)


def test_a_receipt_of_an_adapter_is_checked_in_its_subfolder(made: Made, tmp_path: Path) -> None:
    out = tmp_path / "out"
    merge(made("lora_w4"), out, lora="both")
    check_folder(out)
    weights = out / "lora_adapter" / "adapter_model.safetensors"
    flip(weights, weights.stat().st_size - 1)
    with pytest.raises(CkptconvError, match="nothing was uploaded") as error:
        check_folder(out)
    assert "lora_adapter/" in str(error.value.found)


def test_a_folder_without_a_receipt_is_not_judged_by_one(made: Made, tmp_path: Path) -> None:
    out = Path(shutil.copytree(made("fsdp2_w4") / "hub", tmp_path / "out"))
    check_folder(out)
