"""docs/adding-a-backend.md: the example is complete, and converts a checkpoint."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import save_file
from support.helpers import FIXTURES, REPO
from typer.main import get_command

import ckptconv
from ckptconv import merge
from ckptconv.backends.base import Backend, backends
from ckptconv.backends.registry import LAYOUTS, NAMES
from ckptconv.cli import app

PAGE = (REPO / "docs" / "adding-a-backend.md").read_text(encoding="utf-8")
ACTOR = FIXTURES / "verl_fsdp1_w2" / "run" / "global_step_1" / "actor"


def blocks() -> dict[str, str]:
    """The code on the page, by the file that its first line names."""
    found = re.findall(r"^```python\n# (\S+)\n(.*?)^```$", PAGE, re.MULTILINE | re.DOTALL)
    return dict(found)


@pytest.fixture(scope="module")
def package(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A copy of ckptconv to which the page was applied."""
    top = tmp_path_factory.mktemp("copy")
    source = Path(ckptconv.__file__).parent
    shutil.copytree(source, top / "ckptconv", ignore=shutil.ignore_patterns("__pycache__"))
    code = blocks()
    registry = "ckptconv/backends/registry.py"
    text = (top / registry).read_text(encoding="utf-8")
    above = '    ("huggingface", "layout"),\n'
    assert text.count(above) == 1
    (top / registry).write_text(text.replace(above, code.pop(registry) + above), encoding="utf-8")
    assert len(code) == 2
    for name, content in code.items():
        (top / name).parent.mkdir(exist_ok=True)
        (top / name).write_text(content, encoding="utf-8")
    return top


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return merge(ACTOR, tmp_path_factory.mktemp("model") / "model").target


@pytest.fixture
def run(model: Path, tmp_path: Path) -> Path:
    """Two saves of the model's rows by two ranks, unevenly; vectors are whole on both. The critic has other values."""
    from safetensors.torch import load_file

    values = {name: value.float().numpy() for name, value in load_file(model / "model.safetensors").items()}
    for step in (9, 10):
        for role, factor in (("learner", step), ("judge", -1)):
            folder = tmp_path / "run" / f"save-{step}" / role
            folder.mkdir(parents=True)
            shutil.copy(model / "config.json", folder)
            (folder / "rowtrain.yaml").write_text("user: someone")
            for rank in range(2):
                cut, parts = {}, {}
                for name, value in values.items():
                    at = len(value) // 3
                    rows = value if value.ndim == 1 else value[:at] if rank == 0 else value[at:]
                    parts[name] = np.ascontiguousarray(rows * factor)
                    if value.ndim > 1:
                        cut[name] = rank * at
                save_file(parts, folder / f"rows-{rank}-of-2.safetensors", {"first_row": json.dumps(cut)})
    (tmp_path / "run" / "NEWEST").write_text("10")
    return tmp_path / "run"


def ran(package: Path, *args: object) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "ckptconv", *map(str, args)],
        env=os.environ | {"PYTHONPATH": str(package)},
        cwd=package,
        capture_output=True,
        text=True,
    )


def test_the_example_converts_a_run(package: Path, model: Path, run: Path, tmp_path: Path) -> None:
    done = ran(package, "merge", run, tmp_path / "out", "--dtype", "keep", "--backend", "rowtrain")
    assert done.returncode == 0, done.stderr
    from safetensors.torch import load_file

    expected = {name: value.float() * 10 for name, value in load_file(model / "model.safetensors").items()}
    found = load_file(tmp_path / "out" / "model.safetensors")
    assert found.keys() == expected.keys()
    assert all(found[name].equal(value) for name, value in expected.items())
    assert "judge" in done.stderr  # the role next to it is reported
    names = {path.name for path in (tmp_path / "out").iterdir()}
    assert names == {"model.safetensors", "config.json", "ckptconv.json"}


def test_the_examples_conventions_are_read_everywhere(package: Path, run: Path, tmp_path: Path) -> None:
    shown = json.loads(ran(package, "inspect", run, "--step", "9", "--json").stdout)
    assert (shown["backend"], shown["step"], shown["role"]) == ("rowtrain", 9, "learner")
    for path in run.rglob("*"):
        os.utime(path, (1e9, 1e9))
    steps = ran(package, "merge", run, tmp_path / "out", "--all-steps", "-q")
    assert steps.stdout.split() == [str(tmp_path / "out" / name) for name in ("save-9", "save-10")]


def test_the_example_refuses_what_is_not_whole(package: Path, run: Path, tmp_path: Path) -> None:
    (run / "save-10" / "learner" / "rows-1-of-2.safetensors").unlink()
    done = ran(package, "merge", run, tmp_path / "out")
    assert done.returncode == 2
    assert "rank 1 of 2 is missing from the checkpoint" in done.stderr


# --- the registry


@pytest.mark.parametrize("backend", backends(), ids=[f"{package}.{module}" for package, module in LAYOUTS])
def test_every_backend_follows_the_protocol(backend: Backend, tmp_path: Path) -> None:
    assert isinstance(backend.NAME, str)
    assert isinstance(backend.SIGN, str)
    assert isinstance(backend.IS_SHARDED, bool)
    assert backend.is_mine(tmp_path) is False
    assert callable(backend.read)
    assert callable(backend.saved_by)


def test_the_type_checker_accepts_every_backend_and_no_other_module(tmp_path: Path) -> None:
    """`registry` loads modules by name, so mypy sees them as backends only here."""
    from mypy import api

    modules = [*LAYOUTS, ("fsdp", "mesh")]
    lines = [
        f"from ckptconv.backends.{package} import {module} as b{n}"
        for n, (package, module) in enumerate(modules)
    ]
    uses = [f"_{n}: Backend = b{n}" for n in range(len(modules))]
    file = tmp_path / "conforms.py"
    file.write_text("\n".join(["from ckptconv.backends.base import Backend", *lines, *uses]) + "\n")
    root = Path(ckptconv.__file__).parents[1]
    out, err, code = api.run([str(file), "--config-file", str(root / "pyproject.toml")])
    wrong = [line for line in out.splitlines() if ": error:" in line]
    assert [line.split(":")[1] for line in wrong] == [str(1 + 2 * len(modules))], out + err
    assert code == 1


@pytest.mark.parametrize("command", ["inspect", "merge", "verify"])
def test_help_lists_the_names_of_the_registry(command: str) -> None:
    options = get_command(app).commands[command].params  # type: ignore[attr-defined]
    (text,) = (option.help for option in options if "--backend" in option.opts)
    assert text.split(": ")[1].rstrip(".").split(", ") == list(NAMES)
