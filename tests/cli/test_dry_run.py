"""The command line: the plan without writing, and folders on several disks."""

from __future__ import annotations

import json
import re
import shutil
from collections.abc import Callable
from pathlib import Path

from support.helpers import (
    ROLE,
    assert_equal,
    cast,
    cli,
    edit_json,
    own_copy,
    process,
    rank_file,
    state,
    tensors,
)

Made = Callable[[str], Path]


def test_a_dry_run_shows_all_that_would_be_done_and_does_nothing(made: Made, tmp_path: Path) -> None:
    run = own_copy(made("fsdp2_tied_w4"), tmp_path / "run")
    (run / ROLE / "optim_world_size_4_rank_0.pt").write_bytes(b"o" * 12_345)
    before = state(tmp_path)
    ran = cli("merge", run, tmp_path / "out", "--dry-run", "--max-shard-size", "20KB", columns=120)
    assert ran.code == 0
    assert state(tmp_path) == before
    cli("merge", run, tmp_path / "out", "--max-shard-size", "20KB")
    for file in (tmp_path / "out").glob("*.safetensors"):
        assert re.search(
            rf"^{file.name} +{len(tensors(file))} +{file.stat().st_size:,}$", ran.out, re.MULTILINE
        )
    assert re.search(r"^float32 +bfloat16 +26 +[\d,]+$", ran.out, re.MULTILINE)
    assert re.search(
        r"^lm_head\.weight +10,908 +tied: equal to model\.embed_tokens\.weight *$", ran.out, re.MULTILINE
    )
    assert re.search(r"^optimizer +12,345 +not part of the model *$", ran.out, re.MULTILINE)
    assert re.search(r"needs [\d.]+ kB of disk and [\d.]+ MB of memory with \d+ workers?", ran.flat)
    assert "stored bytes accounted for" in ran.flat


def test_a_dry_run_as_json_says_the_same_as_the_run_itself(made: Made, tmp_path: Path) -> None:
    plan = json.loads(cli("merge", made("lora_w4"), tmp_path / "out", "--dry-run", "--json").out)
    assert list(tmp_path.iterdir()) == []
    done = json.loads(cli("merge", made("lora_w4"), tmp_path / "out", "--json").out)
    differ = {key for key in plan if plan[key] != done[key]}
    assert differ <= {"dry_run", "seconds", "bytes_read", "peak_memory", "assets", "resumed"}
    assert plan["dry_run"]
    assert not done["dry_run"]


def test_a_dry_run_finds_what_the_run_would_find(made: Made, tmp_path: Path) -> None:
    run = own_copy(made("fsdp2_w4"), tmp_path / "run")
    edit_json(run / ROLE / "huggingface" / "config.json", vocab_size=999)
    assert cli("merge", run, tmp_path / "out", "--dry-run").errors == [
        "error: config.json does not match these tensors"
    ]


def test_also_may_be_given_several_times(made: Made, tmp_path: Path) -> None:
    runs = []
    for rank in range(4):
        (tmp_path / f"node{rank}" / ROLE).mkdir(parents=True)
        shutil.copy(rank_file(made("fsdp2_w4"), rank), tmp_path / f"node{rank}" / ROLE)
        runs.append(tmp_path / f"node{rank}")
    shutil.copytree(made("fsdp2_w4") / ROLE / "huggingface", runs[3] / ROLE / "huggingface")
    also = [word for run in runs[1:] for word in ("--also", run)]
    assert cli("merge", runs[0], tmp_path / "out", *also).code == 0
    assert_equal(tensors(tmp_path / "out"), cast(tensors(made("fsdp2_w4") / "hub")))


def test_debug_shows_the_traceback(tmp_path: Path) -> None:
    ran = process("inspect", tmp_path, CKPTCONV_DEBUG="1")
    assert ran.code == 1
    assert "CkptconvError" in ran.err


def test_a_traceback_shows_no_values(tmp_path: Path) -> None:
    """A token could be among them."""
    ran = process("inspect", tmp_path, "--backend", "fsdp", CKPTCONV_DEBUG="1", COLUMNS="200")
    assert not re.search(r"│ +backend = ", ran.err)
