"""Code in pickles and configs: it is never run."""

from __future__ import annotations

import os
import pickle
import subprocess
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from support.helpers import (
    ROLE,
    assert_one_error,
    cli,
    edit_config,
    own_copy,
    rank_file,
    save_ws1,
)

Made = Callable[[str], Path]


class Runs:
    """Unpickling it calls a function."""

    def __init__(self, function: Any, *args: object) -> None:
        self.call = (function, args)

    def __reduce__(self) -> Any:
        return self.call


def evil(tmp_path: Path, form: str) -> tuple[Path, Path]:
    """A run whose pickle creates a file when it is run; and that file."""
    import torch

    sign = tmp_path / "it-ran"
    run = save_ws1({"w": torch.ones(3)}, {"model_type": "odd"}, tmp_path / "run")
    line = f"open({str(sign)!r}, 'w')"
    payload = {
        "system": Runs(os.system, f"touch {sign}"),
        "eval": Runs(eval, line),
        "exec": Runs(exec, line),
        "getattr": Runs(getattr, Path(sign), "touch"),
        "subprocess": Runs(subprocess.run, ["touch", str(sign)]),
    }[form]
    torch.save({"w": torch.ones(3), "x": payload}, rank_file(run, 0), pickle_protocol=2)
    return run, sign


@pytest.mark.parametrize("form", ["system", "eval", "exec", "getattr", "subprocess"])
def test_a_pickle_that_tries_to_run_code_does_not(tmp_path: Path, place: Path, form: str) -> None:
    run, sign = evil(tmp_path, form)
    for words in (("inspect", run), ("merge", run, place / "out"), ("verify", run)):
        ran = cli(*words)
        assert ran.code == 2
        assert len(ran.errors) == 1
        assert "Traceback" not in ran.err
        assert not sign.exists()
    assert [path.name for path in place.iterdir()] == ["neighbour"]


def test_a_pickle_that_is_nothing_but_an_attack(made: Made, tmp_path: Path, place: Path) -> None:
    """In the place of the state dict itself, spelled by hand with protocol 0's opcodes."""
    run = own_copy(made("ws1_fsdp1"), tmp_path / "run")
    sign = tmp_path / "it-ran"
    opcodes = b"cposix\nsystem\n(S'touch " + str(sign).encode() + b"'\ntR."
    with zipfile.ZipFile(rank_file(run, 0), "w") as archive:
        archive.writestr("archive/data.pkl", opcodes)
    assert_one_error(cli("merge", run, place / "out"), r".")
    assert not sign.exists()
    pickle.loads(opcodes)
    assert sign.exists(), "the attack would have worked"


def test_code_that_a_config_names_is_copied_and_not_run(made: Made, tmp_path: Path, place: Path) -> None:
    run = own_copy(made("fsdp2_w4"), tmp_path / "run")
    folder, sign = run / ROLE / "huggingface", tmp_path / "it-ran"
    code = f"open({str(sign)!r}, 'w')\n"
    for name in (
        "configuration_odd.py",
        "modeling_odd.py",
        "sitecustomize.py",
        "transformers.py",
        "torch.py",
    ):
        (folder / name).write_text(code)
    edit_config(
        run, model_type="odd", auto_map={"AutoConfig": "configuration_odd.O", "AutoModel": "modeling_odd.O"}
    )
    assert cli("merge", run, place / "out").code == 0
    assert not sign.exists()
    assert (place / "out" / "modeling_odd.py").read_text() == code
