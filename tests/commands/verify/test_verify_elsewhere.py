"""verify --logits --python: the same prompt in another environment; here that is this one's Python, started anew."""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from support.helpers import cli

import ckptconv
from ckptconv.errors import CkptconvError

Made = Callable[[str], Path]


def test_the_same_model_gives_the_same_logits_there(made: Made, tmp_path: Path) -> None:
    ckptconv.merge(made("fsdp2_w4"), tmp_path / "out", dtype="keep")
    layer = ckptconv.verify(tmp_path / "out", logits=True, python=sys.executable).layer("elsewhere")
    assert layer is not None
    assert layer.ok, layer
    assert layer.found.startswith("transformers 5.")
    assert "likeliest tokens agree" in layer.found


def test_another_reading_of_the_config_is_found(made: Made, tmp_path: Path) -> None:
    """An environment whose transformers reads another rotary base, as transformers 4 does."""
    ckptconv.merge(made("fsdp2_w4"), tmp_path / "out", dtype="keep")
    other = tmp_path / "python"
    edit = f'sed -i \'s/"rope_theta": [0-9.]*/"rope_theta": 3.0/\' {tmp_path}/out/config.json'
    other.write_text(f'#!/bin/sh\n{edit}\nexec {sys.executable} "$@"\n')
    other.chmod(0o755)
    found = ckptconv.verify(tmp_path / "out", logits=True, python=other)
    layer = found.layer("elsewhere")
    assert layer is not None
    assert layer.ok is False
    assert any(problem.name == "logits" for problem in layer.problems)
    assert not found.ok


def test_a_class_that_the_other_environment_does_not_have(made: Made, tmp_path: Path) -> None:
    ckptconv.merge(made("fsdp2_w4"), tmp_path / "out", dtype="keep")
    other = tmp_path / "python"
    other.write_text(
        f"#!/bin/sh\nsed -i 's/Qwen2ForCausalLM/NotYetForCausalLM/' {tmp_path}/out/config.json\n"
        f"exec {sys.executable} -c \"import json; print(json.dumps(dict(version=4, error='no class')))\"\n"
    )
    other.chmod(0o755)
    layer = ckptconv.verify(tmp_path / "out", logits=True, python=other).layer("elsewhere")
    assert layer is not None
    assert (layer.ok, layer.found) == (False, "transformers 4 cannot run it")


def test_a_trainers_checkpoint_is_merged_first(made: Made) -> None:
    layer = ckptconv.verify(made("fsdp2_w4"), logits=True, python=sys.executable).layer("elsewhere")
    assert layer is not None
    assert layer.ok is None
    assert "merge it first" in layer.found


@pytest.mark.parametrize("python", ["/no/such/python", "/bin/false"])
def test_a_python_that_cannot_run_a_model_is_an_error(made: Made, tmp_path: Path, python: str) -> None:
    ckptconv.merge(made("fsdp2_w4"), tmp_path / "out")
    with pytest.raises(CkptconvError, match="the other environment cannot run a model"):
        ckptconv.verify(tmp_path / "out", logits=True, python=python)


def test_python_without_logits_is_refused(made: Made) -> None:
    ran = cli("verify", made("fsdp2_w4"), "--python", sys.executable)
    assert ran.code == 2
    assert "--logits is not given" in ran.flat
