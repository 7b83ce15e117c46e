"""The public interface: what `import ckptconv` offers, and every example of docs/api.md."""

from __future__ import annotations

import inspect
import re
import subprocess
import sys
from collections.abc import Callable
from importlib.resources import files
from pathlib import Path

import pytest
from support.helpers import REPO, own_copy

import ckptconv

Made = Callable[[str], Path]
FUNCTIONS = ("inspect", "merge", "open", "push", "verify")


def test_the_examples_of_the_documentation_run(
    made: Made, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "checkpoints").mkdir()
    own_copy(made("fsdp2_w4"), tmp_path / "checkpoints" / "run")
    monkeypatch.chdir(tmp_path)
    blocks = re.findall(r"```python\n(.*?)```", (REPO / "docs" / "api.md").read_text(encoding="utf-8"), re.S)
    assert len(blocks) == 9
    names: dict[str, object] = {}
    for block in blocks:
        exec(compile(block, "docs/api.md", "exec"), names)
    assert (tmp_path / "model" / "config.json").is_file()


def test_the_documentation_names_every_kind_of_refusal() -> None:
    text = (REPO / "docs" / "api.md").read_text(encoding="utf-8")
    assert set(re.findall(r"^\| `([A-Z_]+)` \|", text, re.M)) == set(ckptconv.Kind.__members__)


def test_dir_lists_the_public_names_before_their_first_use() -> None:
    code = "import ckptconv, sys; print(*dir(ckptconv)); assert 'numpy' not in sys.modules"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.split() == sorted(ckptconv.__all__)


@pytest.mark.parametrize("name", [name for name in ckptconv.__all__ if not name.startswith("__")])
def test_every_public_name_is_there_and_documented(name: str) -> None:
    assert inspect.getdoc(getattr(ckptconv, name))


@pytest.mark.parametrize("name", FUNCTIONS)
def test_every_parameter_of_a_public_function_is_documented(name: str) -> None:
    function = getattr(ckptconv, name)
    text = inspect.getdoc(function) or ""
    parameters = set(inspect.signature(function).parameters)
    assert all(f"\n{part}:\n" in text for part in ("Args", "Returns", "Raises", "Example"))
    missing = {word for word in parameters if not re.search(rf"\b{word}\b", text)}
    assert missing == set()


def test_an_unknown_name_is_an_attribute_error() -> None:
    with pytest.raises(AttributeError, match="has no attribute 'convert'"):
        ckptconv.convert  # noqa: B018


def test_the_package_says_that_it_is_typed() -> None:
    assert files("ckptconv").joinpath("py.typed").is_file()
    assert "py.typed" in (REPO / "pyproject.toml").read_text(encoding="utf-8")


def test_results_show_themselves(made: Made, tmp_path: Path) -> None:
    run = made("fsdp2_w4")
    results = [
        ckptconv.inspect(run),
        ckptconv.merge(run, tmp_path / "out", dry_run=True),
        ckptconv.merge(run, tmp_path / "out", dtype="keep"),
        ckptconv.verify(tmp_path / "out", against=run),
    ]
    for result in results:
        assert len(repr(result)) < 300
        assert "\n" not in repr(result)
        page = result._repr_html_()
        assert page is not None
        assert page.startswith("<pre")
    assert "step 7" in repr(results[0])
    assert "would write" in repr(results[1])
    assert "lm_head.weight" in str(results[0]._repr_html_())
    assert re.search(r": ok, (\d+) of \1 tensors equal>$", repr(results[3]))
