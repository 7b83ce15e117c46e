"""Plain values of the command line are converted without pydantic; typer words the errors."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Annotated, Any

import pytest
import typer
from support.helpers import cli
from typer.core import TyperCommand
from typer.testing import CliRunner

from ckptconv.cli.values import convert_plainly


class _Plain(TyperCommand):
    def get_params(self, ctx: Any) -> list[Any]:
        return convert_plainly(super().get_params(ctx))


def run(plain: bool, *words: str) -> tuple[int, str]:
    app = typer.Typer()

    @app.command(cls=_Plain if plain else TyperCommand)
    def command(
        path: Path,
        count: Annotated[int, typer.Option(min=1)] = 3,
        most: Annotated[int, typer.Option(max=9)] = 3,
        scale: float = 1.5,
        name: str | None = None,
        more: Annotated[list[Path] | None, typer.Option()] = None,
        here: Annotated[Path | None, typer.Option(exists=True)] = None,
        flag: bool = False,
    ) -> None:
        print(repr((path, count, most, scale, name, more, here, flag)))

    result = CliRunner().invoke(app, list(words))
    return result.exit_code, result.output


@pytest.mark.parametrize(
    "words",
    [
        ("a/b",),
        ("a/b", "--count", "7", "--most", "4", "--scale", "2", "--name", "12", "--flag"),
        ("a/b", "--more", "c", "--more", "d"),
        ("a/b", "--count", "0"),
        ("a/b", "--count", "many"),
        ("a/b", "--count", "1.5"),
        ("a/b", "--most", "10"),
        ("a/b", "--scale", "wide"),
        ("a/b", "--scale", "nan"),
        ("a/b", "--here", "/no/such/file"),
        (),
    ],
)
def test_values_become_what_typer_makes_of_them(words: tuple[str, ...]) -> None:
    assert run(True, *words) == run(False, *words)


def test_a_wrong_number_is_a_usage_error(tmp_path: Path) -> None:
    ran = cli("merge", str(tmp_path), str(tmp_path / "out"), "--workers", "none")
    assert ran.code == 2
    assert "--workers" in ran.err


def test_a_command_with_plain_values_imports_no_pydantic(tmp_path: Path) -> None:
    code = (
        "import json, sys\nfrom ckptconv.__main__ import main\n"
        "try:\n    main()\nexcept SystemExit:\n    pass\nprint(json.dumps(sorted(sys.modules)))"
    )
    done = subprocess.run(
        [sys.executable, "-c", code, "inspect", str(tmp_path)], capture_output=True, text=True
    )
    names = json.loads(done.stdout.splitlines()[-1])
    assert "ckptconv.commands.inspect.run" in names
    assert "pydantic" not in names
