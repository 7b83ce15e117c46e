"""verify builds model classes alone, within bounds, and says which packages it lacks."""

from __future__ import annotations

import shutil
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from support.helpers import FIXTURES, assert_one_error, cli, edit_json

from ckptconv import verify

Made = Callable[[str], Path]
RUN = FIXTURES / "verl_fsdp2_w4" / "run"


@pytest.fixture
def model(made: Made, tmp_path: Path) -> Path:
    return Path(shutil.copytree(made("fsdp2_w4") / "hub", tmp_path / "model"))


@pytest.mark.parametrize(
    "name", ["Trainer", "pipeline", "AutoModel", "Qwen2Config", "__name__", "os.system", "logging"]
)
def test_what_is_not_a_model_class_is_never_built(
    model: Path, name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    from ckptconv.commands.verify import expected

    def build(*_: object) -> None:
        raise AssertionError("it was built")

    monkeypatch.setattr(expected, "_on_meta", build)
    edit_json(model / "config.json", architectures=[name])
    found = verify(model).layer("loads")
    assert found is not None
    assert (found.ok, found.problems[0].what) == (False, f"transformers has no class {name}")


@pytest.mark.parametrize(
    "values", [{"num_hidden_layers": 10**9}, {"num_experts": 10**7, "num_local_experts": 10**7}]
)
def test_absurd_numbers_of_modules_are_a_problem_and_build_nothing(
    model: Path, values: dict[str, int]
) -> None:
    edit_json(model / "config.json", **values)
    found = verify(model).layer("loads")
    assert found is not None
    assert found.ok is False
    assert next(iter(values)) in found.problems[0].what


def test_a_model_whose_tensors_are_wrong_is_not_run(model: Path) -> None:
    edit_json(model / "config.json", intermediate_size=41)
    found = verify(model, logits=True)
    behaviour = found.layer("behaviour")
    assert behaviour is not None
    assert (behaviour.ok, "not run" in behaviour.found) == (None, True)
    assert not found.ok


@pytest.mark.parametrize(
    ("words", "what"),
    [
        (("verify", "--against", RUN, "--logits"), "verify --logits needs torch and transformers"),
        (
            ("push", "me/model", "--dry-run"),
            "push, which compares the folder with its class, needs torch and",
        ),
    ],
)
def test_missing_packages_are_one_sentence(
    model: Path, monkeypatch: pytest.MonkeyPatch, words: tuple[object, ...], what: str
) -> None:
    for name in ("torch", "transformers"):
        monkeypatch.setitem(sys.modules, name, None)
    ran = cli(words[0], model, *words[1:])
    assert_one_error(ran, what, names=("pip install torch transformers",))


def test_verify_without_them_compares_with_the_list_of_the_class(
    model: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("torch", "transformers"):
        monkeypatch.setitem(sys.modules, name, None)
    ran = cli("verify", model)
    assert (ran.code, "Loading" in ran.err) == (0, False), ran
    wanted = "skipped: verify without --against needs torch and transformers: pip install torch transformers"
    assert wanted in ran.flat
    assert "the tensors are those of the class in config.json" in ran.flat


def test_merge_and_verify_against_need_neither(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("torch", "transformers", "accelerate"):
        monkeypatch.setitem(sys.modules, name, None)
    assert cli("inspect", RUN).code == 0
    assert cli("merge", RUN, tmp_path / "out", "--verify").code == 0
    assert cli("verify", tmp_path / "out", "--against", RUN).code == 0
