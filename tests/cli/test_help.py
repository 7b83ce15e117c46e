"""The command line: help and version."""

from __future__ import annotations

from pathlib import Path

import pytest
import typer
from support.helpers import (
    FIXTURES,
    cli,
    process,
)

from ckptconv import __version__

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


@pytest.mark.parametrize("name", ["", *COMMANDS, "test"])
def test_help_shows_no_python_types_for_flags(name: str) -> None:
    assert "<bool>" not in cli(*filter(None, [name]), "--help", columns=120).out


def test_tests_help_shows_verls_flags() -> None:
    shown = cli("test", "--help", columns=160).out
    assert all(flag in shown for flag in ("--local_dir", "--test_hf_dir", "--tie-word-embedding"))
    assert "--local_dir" not in cli("verify", "--help", columns=160).out.split("Options", 1)[1]


def test_v_is_version() -> None:
    assert cli("-V").out == cli("--version").out


@pytest.mark.parametrize(
    ("words", "hint"),
    [
        (("merge", "D", "O", "--force"), "did you mean --overwrite?"),
        (("merge", "D", "--output", "O"), "OUT is the second argument"),
        (("merge", "D", "--output_dir", "O"), "OUT is the second argument"),
        (
            ("merge", "--checkpoint", "D"),
            "the checkpoint is the first argument, without a flag: ckptconv merge DIR",
        ),
        (("merge", "D", "O", "--bf16"), "did you mean --dtype bfloat16?"),
        (("merge", "D", "O", "--max-shard-siz", "1GB"), "did you mean --max-shard-size?"),
        (("merge", "D", "O", "--overwritee"), "did you mean --overwrite?"),
        (("merge", "D", "O", "--safe_serialization"), "omit it: ckptconv always writes safetensors"),
        (("verify", "D", "--reference", "R"), "did you mean --against?"),
        (("inspect", "D", "--xyz"), "ckptconv inspect --help"),
        (("push", "D", "a/b", "--force"), "ckptconv push --help"),
    ],
)
def test_a_flag_of_another_tool_is_answered_with_ours(words: tuple[str, ...], hint: str) -> None:
    ran = cli(*words, columns=200)
    assert ran.code == 2
    assert hint in ran.err
    assert ran.err.startswith(f"error: {words[0]} has no option -")


def test_every_suggested_flag_exists() -> None:
    from ckptconv.cli import typos

    known = {
        flag for name in COMMANDS for each in parameters(name) for flag in (*each.opts, *each.secondary_opts)
    }  # type: ignore[attr-defined]
    assert {meant.split()[0] for meant, _ in typos._MEANT.values() if meant} <= known


def test_underscores_in_flags_are_dashes(tmp_path: Path) -> None:
    run = FIXTURES / "verl_fsdp2_w4" / "run"
    assert cli("merge", run, tmp_path / "out", "--max_shard_size=20KB", "--max_memory", "1G").code == 0
    assert len(list((tmp_path / "out").glob("*.safetensors"))) > 1


@pytest.mark.parametrize("size", ["40k", "40K", "40KB", "40kb", "0.04MB", "40 KB", "39.0625KiB"])
def test_a_size_is_written_as_people_type_it(size: str) -> None:
    from ckptconv.plan.shards import in_bytes

    assert in_bytes(size) == 40_000


def test_verbose_names_the_source_of_every_tensor(tmp_path: Path) -> None:
    run = FIXTURES / "verl_fsdp2_w4" / "run"
    ran = cli("merge", run, tmp_path / "out", "-v", columns=60)
    line = "  model.norm.weight  bfloat16 23  <- model.norm.weight (float32, ranks 0-3)"
    assert line in ran.err.splitlines()
    assert ran.err.count("<-") == 27
