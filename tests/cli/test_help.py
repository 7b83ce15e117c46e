"""The command line: help and version."""

from __future__ import annotations

import pytest
import typer
from support.helpers import (
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
