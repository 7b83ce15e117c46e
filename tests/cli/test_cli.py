"""The command line: verl's lines, exit codes, what goes to stdout, widths, help. The conversion is tested elsewhere."""

from __future__ import annotations

import importlib.util
import json
import os
import re
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import typer
from helpers import (
    ROLE,
    assert_equal,
    cast,
    cli,
    command,
    edit_json,
    environment,
    own_copy,
    process,
    rank_file,
    state,
    tensors,
)

from ckptconv.version import __version__

Made = Callable[[str], Path]
HAS_VERIFY = importlib.util.find_spec("ckptconv.commands.verify") is not None
needs_verify = pytest.mark.skipif(not HAS_VERIFY, reason="verify is not there yet")
ESCAPE = "\x1b["


# --- verl's own lines, word by word


@pytest.mark.parametrize("line", [f"--backend fsdp --local{dash}dir D --target{dash}dir O" for dash in "_-"])
def test_verls_merge_line_works_in_both_spellings(made: Made, tmp_path: Path, line: str) -> None:
    paths = {"D": str(made("fsdp2_w4") / ROLE), "O": str(tmp_path / "out")}
    ran = cli("merge", *(paths.get(word, word) for word in line.split()))
    assert ran.code == 0
    assert_equal(tensors(tmp_path / "out"), cast(tensors(made("fsdp2_w4") / "hub")))


@pytest.mark.parametrize(
    "flag",
    ["--tie-word-embedding", "--tie_word_embedding", "--trust-remote-code", "--use_cpu_initialization"],
)
def test_verls_other_flags_are_accepted_and_change_nothing(made: Made, tmp_path: Path, flag: str) -> None:
    ran = cli("merge", flag, "--local_dir", made("fsdp2_w4"), "--target_dir", tmp_path / "out")
    assert ran.code == 0
    assert_equal(tensors(tmp_path / "out"), cast(tensors(made("fsdp2_w4") / "hub")))


def test_verls_line_without_a_target_writes_to_tmp_in_the_working_folder(made: Made, tmp_path: Path) -> None:
    """verl's default."""
    ran = process("merge", "--backend", "fsdp", "--local_dir", made("fsdp2_w4"), cwd=tmp_path)
    assert ran.code == 0
    assert [path.name for path in tmp_path.iterdir()] == ["tmp"]
    assert tensors(tmp_path / "tmp")


@pytest.mark.parametrize("flag", ["--is-value-model", "--is_value_model"])
def test_is_value_model_wants_a_value_head(made: Made, tmp_path: Path, flag: str) -> None:
    assert cli("merge", flag, made("critic_w2"), tmp_path / "critic").code == 0
    ran = cli("merge", flag, made("fsdp2_w4"), tmp_path / "actor")
    assert (ran.code, ran.errors) == (2, ["error: --is-value-model, but no value head is stored"])
    assert not (tmp_path / "actor").exists()


@needs_verify
@pytest.mark.parametrize("reference", ["--test_hf_dir", "--test-hf-dir"])
def test_verls_test_line_is_verify(made: Made, tmp_path: Path, reference: str) -> None:
    pytest.importorskip("ckptconv.commands.verify")
    words = ("test", "--backend", "fsdp", "--local_dir", made("fsdp2_w4"), reference)
    assert cli(*words, made("fsdp2_w4") / "hub").code == 0
    assert cli(*words, made("lora_w4") / "hub").code == 1


def test_test_is_hidden(made: Made) -> None:
    assert not re.search(r"^\W*test\b", cli("--help").out, re.MULTILINE)
    assert cli("test", "--help").code == 0


@pytest.mark.parametrize(
    ("words", "says"),
    [
        (("merge",), "the checkpoint folder is missing"),
        (("merge", "D"), "the model folder to write is missing"),
        (("merge", "D", "O", "--local_dir", "D"), "the checkpoint folder is given twice"),
        (("merge", "D", "O", "--target_dir", "O"), "the model folder to write is given twice"),
        (("merge", "D", "O", "--lora", "yes"), "--lora yes is not known"),
        (("merge", "D", "O", "--layout", "flat"), "--layout flat is not known"),
        (("merge", "D", "O", "--dtype", "fp8"), "--dtype fp8 is not known"),
        (("merge", "D", "O", "--max-memory", "much"), "not a size: much"),
        (("merge", "D", "O", "--max-memory", "1MB"), "the memory bound is too small"),
        (("merge", "D", "O", "--max-shard-size", "5 potatoes"), "not a size: 5 potatoes"),
        (("merge", "D", "O", "--backend", "orbax"), "there is no backend 'orbax'"),
        (("merge", "D", "O", "--step", "3"), "step 3 is not"),
        (("merge", "nowhere", "O"), "no such folder"),
        (("inspect", "nowhere"), "no such folder"),
    ],
)
def test_wrong_words_are_one_error_and_exit_code_2(
    made: Made, tmp_path: Path, words: tuple[str, ...], says: str
) -> None:
    paths = {"D": str(made("fsdp2_w4")), "O": str(tmp_path / "out"), "nowhere": str(tmp_path / "nowhere")}
    ran = cli(*(paths.get(word, word) for word in words))
    assert ran.code == 2
    assert ran.out == ""
    assert [line[7 : 7 + len(says)] for line in ran.errors] == [says]
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    "words", [("merge", "--bogus"), ("merge", "a", "b", "c"), ("bogus",), ("merge", "a", "b", "--step", "x")]
)
def test_words_that_typer_refuses_end_with_2_and_write_to_stderr(words: tuple[str, ...]) -> None:
    ran = cli(*words)
    assert (ran.code, ran.out) == (2, "")
    assert "Error" in ran.err


# --- exit codes


def test_exit_code_0_is_done(made: Made, tmp_path: Path) -> None:
    assert cli("inspect", made("fsdp2_w4")).code == 0
    assert cli("merge", made("fsdp2_w4"), tmp_path / "out").code == 0


@pytest.mark.xfail(
    strict=True, reason="a missing rank ends with 2; CLI.md and the help of inspect say 1: incomplete"
)
def test_exit_code_1_of_inspect_is_incomplete(made: Made, tmp_path: Path) -> None:
    run = own_copy(made("fsdp2_w4"), tmp_path)
    rank_file(run, 2).unlink()
    assert cli("inspect", run).code == 1


@needs_verify
def test_exit_code_1_of_verify_is_no(made: Made, tmp_path: Path) -> None:
    cli("merge", made("fsdp2_w4"), tmp_path / "out", "--dtype", "keep")
    assert cli("verify", tmp_path / "out", "--against", made("fsdp2_w4")).code == 0
    assert cli("verify", tmp_path / "out", "--against", made("lora_w4") / "hub").code == 1


def test_exit_code_2_is_could_not_answer(tmp_path: Path) -> None:
    assert cli("inspect", tmp_path / "nowhere").code == 2


STOPPED = """
import os, signal, sys
from ckptconv.commands.merge import merge  # noqa: F401 - the package's `merge` is the function
module = sys.modules["ckptconv.commands.merge"]
from ckptconv.__main__ import main
def stop(*_):
    signal.raise_signal(getattr(signal, os.environ["STOP"]))
module._check_room = stop
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
    first, planning, note, writing = ran.err.splitlines()
    assert (
        first == "Reading   verl FSDP2 shards, one file a rank, mesh fsdp 4, step 7, actor: Qwen2ForCausalLM"
    )
    assert planning.startswith("Planning  55 stored → 27 model tensors, ")
    assert note.startswith("! LoRA on 14 modules is merged")
    assert writing.startswith("Writing   ")


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
    assert json.loads(ran.out) == {"error": {"what": "the folder is empty", "in": str(tmp_path), "code": 2}}


def test_brackets_in_paths_and_names_are_not_eaten(made: Made, tmp_path: Path) -> None:
    """rich takes [red] for markup."""
    target = tmp_path / "out[bold][0-35]"
    ran = cli("merge", made("fsdp2_w4"), target, columns=200)
    assert str(target) in ran.out
    assert str(tmp_path / "none[red]x") in cli("inspect", tmp_path / "none[red]x").err


@pytest.mark.xfail(strict=True, reason="a path longer than the console is broken over two lines")
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
    assert max(map(len, ran.out.splitlines())) <= columns
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
    assert done.stdout.startswith(" format  verl FSDP2 shards")
    assert done.stderr == ""


# --- help and version


COMMANDS = ("inspect", "merge", "verify", "push")


def parameters(name: str) -> list[object]:
    from ckptconv.cli import app

    return list(typer.main.get_command(app).commands[name].params)  # type: ignore[attr-defined]


@pytest.mark.parametrize("name", COMMANDS)
def test_help_names_and_explains_every_flag(name: str) -> None:
    ran = cli(name, "--help", columns=200)
    assert ran.code == 0
    for parameter in parameters(name):
        if getattr(parameter, "hidden", False):
            table = [line for line in ran.out.splitlines() if line.startswith("│")]
            assert not any(f"{option} " in line for option in parameter.opts for line in table)  # type: ignore[attr-defined]
            continue
        shown = parameter.opts if parameter.param_type_name == "option" else [parameter.metavar]  # type: ignore[attr-defined]
        for option in (*shown, *getattr(parameter, "secondary_opts", ())):
            assert option in ran.out, option
        assert parameter.help, f"{parameter.name} has no help"  # type: ignore[attr-defined]
        assert " ".join(parameter.help.split()[:3]) in ran.flat  # type: ignore[attr-defined]


@pytest.mark.parametrize("name", ["", *COMMANDS])
@pytest.mark.parametrize("columns", [60, 200])
def test_help_fits_its_width(name: str, columns: int) -> None:
    ran = cli(*([name] if name else []), "--help", columns=columns)
    assert max(map(len, ran.out.splitlines())) <= columns


@pytest.mark.xfail(strict=True, reason="only merge has a line to copy in its help")
@pytest.mark.parametrize("name", ["inspect", "verify", "push"])
def test_help_has_an_example_to_copy(name: str) -> None:
    assert f"ckptconv {name} " in cli(name, "--help", columns=200).out.split("Usage", 1)[1].split("\n", 1)[1]


def test_merges_help_has_verls_line() -> None:
    assert "merge --backend fsdp --local_dir D --target_dir O" in cli("merge", "--help", columns=200).out


def test_the_first_help_shows_each_command_in_use() -> None:
    ran = cli("--help", columns=110)
    for line in (
        "ckptconv inspect checkpoints/run",
        "ckptconv merge   checkpoints/run MODEL",
        "ckptconv verify  MODEL",
    ):
        assert line in ran.out


def test_h_is_help() -> None:
    assert cli("merge", "-h", columns=100).out == cli("merge", "--help", columns=100).out


def test_version_says_its_own_and_those_that_it_works_with() -> None:
    lines = cli("--version").out.splitlines()
    assert lines[0] == f"ckptconv {__version__}"
    assert {line.split()[0] for line in lines[1:]} >= {"torch", "transformers", "safetensors", "numpy"}


def test_the_module_runs_as_the_command_does() -> None:
    ran = process("--version")
    assert ran.code == 0
    assert ran.out.startswith(f"ckptconv {__version__}\n")


# --- the plan, without writing


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
    assert re.search(r"needs [\d.]+ kB of disk and [\d.]+ MB of buffers on \d+ workers?", ran.flat)
    assert "the ledger balances" in ran.flat


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
        "error: the config does not belong to these tensors"
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
