"""The command line: exit codes, what goes to stdout, widths. The conversion is tested elsewhere."""

from __future__ import annotations

import json
import os
import re
import shlex
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from support.helpers import (
    ROLE,
    cli,
    command,
    environment,
    own_copy,
    process,
    rank_file,
    tensors,
)

Made = Callable[[str], Path]
ESCAPE = "\x1b["


# --- exit codes


def test_exit_code_0_is_done(made: Made, tmp_path: Path) -> None:
    assert cli("inspect", made("fsdp2_w4")).code == 0
    assert cli("merge", made("fsdp2_w4"), tmp_path / "out").code == 0


def test_exit_code_1_of_inspect_is_incomplete(made: Made, tmp_path: Path) -> None:
    run = own_copy(made("fsdp2_w4"), tmp_path)
    rank_file(run, 2).unlink()
    assert cli("inspect", run).code == 1


def test_exit_code_1_of_verify_is_no(made: Made, tmp_path: Path) -> None:
    cli("merge", made("fsdp2_w4"), tmp_path / "out", "--dtype", "keep")
    assert cli("verify", tmp_path / "out", "--against", made("fsdp2_w4")).code == 0
    assert cli("verify", tmp_path / "out", "--against", made("lora_w4") / "hub").code == 1


def test_exit_code_2_is_could_not_answer(tmp_path: Path) -> None:
    assert cli("inspect", tmp_path / "nowhere").code == 2


STOPPED = """
import os, signal, sys
from ckptconv.commands.merge.run import merge  # noqa: F401 - the package's `merge` is the function
module = sys.modules["ckptconv.commands.merge.run"]
from ckptconv.__main__ import main
def stop(*_):
    signal.raise_signal(getattr(signal, os.environ["STOP"]))
module.check_room = stop
main()
"""


@pytest.mark.parametrize("stop", ["SIGINT", "SIGTERM"])
def test_exit_code_130_is_stopped(made: Made, tmp_path: Path, stop: str) -> None:
    words = [sys.executable, "-c", STOPPED, "merge", str(made("fsdp2_w4")), str(tmp_path / "out")]
    done = subprocess.run(words, env=environment(STOP=stop), capture_output=True, text=True, timeout=60)
    assert (done.returncode, done.stdout) == (130, "")
    assert "Traceback" not in done.stderr
    assert list(tmp_path.iterdir()) == []


# --- stdout is the result, stderr the rest


def test_merge_writes_its_result_to_stdout_and_its_phases_to_stderr(made: Made, tmp_path: Path) -> None:
    ran = cli("merge", made("lora_w4"), tmp_path / "out", columns=200)
    assert ran.out.startswith(f"✓ {tmp_path / 'out'} ")
    assert "in 1 file" in ran.out
    assert len(ran.out.splitlines()) == 1
    first, planning, dtype, config, note, writing, after = ran.err.splitlines()
    assert first == "Reading   verl FSDP2, one file per rank · mesh fsdp 4 · step 7 · actor: Qwen2ForCausalLM"
    assert planning.startswith("Planning  55 tensors → 27 tensors, ")
    assert dtype.startswith("Dtype     float32 → bfloat16 ")
    assert config.startswith("Config    torch_dtype, ")
    assert note.startswith("! LoRA weights of 14 modules are merged")
    assert writing.startswith("Writing   ")
    assert after == f"Next      ckptconv verify {tmp_path / 'out'} --against {made('lora_w4') / ROLE}"
    assert cli(*shlex.split(after)[2:]).code == 0, "it works when it is pasted"


def test_merge_quiet_prints_the_path_and_nothing_else(made: Made, tmp_path: Path) -> None:
    ran = cli("merge", made("lora_w4"), tmp_path / "out", "-q")
    assert (ran.code, ran.out, ran.err) == (0, f"{tmp_path / 'out'}\n", "")


def test_merge_quiet_still_says_an_error(tmp_path: Path) -> None:
    ran = cli("merge", tmp_path, tmp_path / "out", "-q")
    assert (ran.code, ran.out) == (2, "")
    assert ran.errors == ["error: the folder is empty"]


def test_merge_json_is_one_document_that_holds_the_receipt(made: Made, tmp_path: Path) -> None:
    ran = cli("merge", made("lora_w4"), tmp_path / "out", "--json", columns=60)
    found = json.loads(ran.out)
    receipt = json.loads((tmp_path / "out" / "ckptconv.json").read_text())
    assert found["target"] == str(tmp_path / "out")
    for key in ("bytes", "files", "dropped", "source", "dtype", "notes"):
        assert found[key] == receipt[key], key
    assert set(found["tensors"]) == set(tensors(tmp_path / "out"))
    assert "tokenizer.json" in found["assets"]


def test_inspect_json_is_one_document(made: Made) -> None:
    found = json.loads(cli("inspect", made("hsdp_w4"), "--json", columns=60).out)
    assert (found["tensors"], found["step"], found["role"], found["world_size"]) == (27, 7, "actor", 4)
    assert (found["complete"], found["meshes"]) == (True, ["ddp 2 × fsdp 2"])
    assert found["replica_bytes"] == found["nbytes"] > 0


def test_inspect_quiet_prints_the_folder_that_was_found(made: Made) -> None:
    ran = cli("inspect", made("fsdp2_w4"), "-q")
    assert (ran.out, ran.err) == (f"{made('fsdp2_w4') / ROLE}\n", "")


@pytest.mark.parametrize("name", ["inspect", "merge"])
def test_an_error_under_json_is_one_document_too(tmp_path: Path, name: str) -> None:
    ran = cli(name, tmp_path, *([tmp_path / "out"] if name == "merge" else []), "--json")
    assert ran.code == 2
    error = {"what": "the folder is empty", "in": str(tmp_path), "code": 2, "kind": "not_a_checkpoint"}
    assert json.loads(ran.out) == {"schema": 1, "error": error}


def test_brackets_in_paths_and_names_are_not_eaten(made: Made, tmp_path: Path) -> None:
    """rich takes [red] for markup."""
    target = tmp_path / "out[bold][0-35]"
    ran = cli("merge", made("fsdp2_w4"), target, columns=200)
    assert str(target) in ran.out
    assert str(tmp_path / "none[red]x") in cli("inspect", tmp_path / "none[red]x").err


def test_a_long_path_in_the_result_stays_in_one_piece(made: Made, tmp_path: Path) -> None:
    target = tmp_path / ("long" * 20)
    assert str(target) in cli("merge", made("fsdp2_w4"), target, columns=80).out


# --- terminals


def test_nothing_is_coloured_where_no_terminal_is(made: Made, tmp_path: Path) -> None:
    for ran in (process("inspect", made("hsdp_w4")), process("merge", made("fsdp2_w4"), tmp_path / "out")):
        assert ESCAPE not in ran.out + ran.err


@pytest.mark.parametrize("setting", [{"NO_COLOR": "1"}, {"TERM": "dumb"}])
def test_no_color_is_kept_even_where_colour_is_forced(made: Made, setting: dict[str, str]) -> None:
    forced = process("inspect", made("hsdp_w4"), FORCE_COLOR="1", TERM="xterm-256color").out
    without = process(
        "inspect", made("hsdp_w4"), **{"FORCE_COLOR": "1", "TERM": "xterm-256color"} | setting
    ).out
    assert f"{ESCAPE}36m" in forced
    assert not re.search(r"\x1b\[[0-9;]*3[0-9]m", without)


def test_glyphs_say_without_colour_which_rank_stores_what(made: Made) -> None:
    out = cli("inspect", made("fsdp2_w4"), columns=120, env={"NO_COLOR": "1"}).out
    assert re.search(r"q_proj\.weight .*▏0▬+▏1▬+▏2▬+▏3▬+", out)


@pytest.mark.parametrize("columns", [60, 80, 200])
@pytest.mark.parametrize(
    "variant", ["fsdp2_w4", "hsdp_w4", "fsdp2_tp_uneven_w4", "arch_qwen3_5_moe_w2", "buffers_w2"]
)
def test_inspect_fits_its_width_and_loses_no_number(made: Made, variant: str, columns: int) -> None:
    ran = cli("inspect", made(variant), columns=columns)
    lines = [
        line for line in ran.out.splitlines() if str(made(variant)) not in line
    ]  # a path in a command stays whole
    assert max(map(len, lines)) <= columns
    assert "…" not in ran.out.split("tensor ")[0]
    stored = len(tensors(made(variant) / "truth.safetensors"))
    assert f"{stored} tensors in" in " ".join(ran.out.split())


@pytest.mark.parametrize("columns", [60, 200])
def test_a_dry_run_fits_its_width_and_loses_no_number(made: Made, tmp_path: Path, columns: int) -> None:
    ran = cli(
        "merge",
        made("fsdp2_tied_w4"),
        tmp_path / "o",
        "--dry-run",
        "--max-shard-size",
        "20KB",
        columns=columns,
    )
    assert max(map(len, ran.out.splitlines())) <= columns
    assert "…" not in ran.out
    assert len(re.findall(r"model-0000\d-of-0000\d\.safetensors", ran.out)) == 2


@pytest.mark.parametrize("name", ["--help", "inspect"])
def test_a_closed_pipe_is_no_error(made: Made, name: str) -> None:
    """`ckptconv inspect ... | head -1`."""
    words = [name] if name == "--help" else [name, str(made("arch_qwen3_5_moe_w2"))]
    reader, writer = os.pipe()
    os.close(reader)
    try:
        done = subprocess.run(
            command(*words), stdout=writer, stderr=subprocess.PIPE, text=True, env=environment()
        )
    finally:
        os.close(writer)
    assert "Traceback" not in done.stderr
    assert "error" not in done.stderr
    assert done.returncode in (0, 1, -signal.SIGPIPE)


@pytest.mark.skipif(not shutil.which("bash"), reason="no bash")
def test_head_gets_its_line(made: Made) -> None:
    words = " ".join(f"'{word}'" for word in command("inspect", made("arch_qwen3_5_moe_w2")))
    done = subprocess.run(
        ["bash", "-c", f"{words} | head -1"], capture_output=True, text=True, env=environment()
    )
    assert done.stdout.startswith(" format  verl FSDP2, one file per rank")
    assert done.stderr == ""
