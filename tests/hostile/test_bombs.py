"""Pickles that run code or change the process elsewhere do nothing here."""

from __future__ import annotations

import copyreg
import os
import pickle
import sys
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest
from support.torch_files import (
    assert_unharmed,
    call,
    name,
    storage,
    text,
    torch_file,
)

from ckptconv.errors import CkptconvError
from ckptconv.formats.torch_zip import open_torch_zip
from ckptconv.formats.unpickle import safe_load


class Bomb:
    """What a pickle can do: a call of any function with any arguments."""

    def __init__(self, path: str) -> None:
        self.path = path

    def __reduce__(self) -> tuple[Any, ...]:
        return os.mkdir, (self.path,)


def partial(path: str) -> bytes:
    """functools.partial(print), whose state then says: os.mkdir(path)."""
    state = b"(" + name("os", "mkdir") + text(path) + b"\x85}NtR".replace(b"R", b"b")
    return call(name("functools", "partial"), name("builtins", "print")) + state + b")R"


IMPORT_OS = call(name("builtins", "__import__"), text("os"))
BOMBS: dict[str, Callable[[str], bytes]] = {
    **{f"reduce, protocol {n}": lambda path, n=n: pickle.dumps(Bomb(path), n)[:-1] for n in range(6)},
    "os.system": lambda path: call(name("os", "system"), text(f"mkdir {path}")),
    "subprocess": lambda path: call(name("subprocess", "check_call"), b"](" + text("mkdir") + text(path) + b"e"),
    "a nested name": lambda path: b"\x80\x04" + text("os") + text("path.os.mkdir") + b"\x93" + text(path) + b"\x85R",
    "eval": lambda path: call(name("builtins", "eval"), text(f"__import__('os').mkdir({path!r})")),
    "eval of Python 2": lambda path: call(name("__builtin__", "eval"), text(f"__import__('os').mkdir({path!r})")),
    "exec": lambda path: call(name("builtins", "exec"), text(f"import os; os.mkdir({path!r})")),
    "a chain of getattr": lambda path: call(
        call(name("builtins", "getattr"), IMPORT_OS, text("mkdir")), text(path)
    ),
    "an attrgetter": lambda path: call(
        call(call(name("operator", "attrgetter"), text("mkdir")), IMPORT_OS), text(path)
    ),
    "an instance": lambda path: b"(" + text(path) + b"ios\nmkdir\n",
    "an object": lambda path: b"(" + name("os", "mkdir") + text(path) + b"o",
    "a partial's state": partial,
    "map": lambda path: call(
        name("builtins", "list"), call(name("builtins", "map"), name("os", "mkdir"), text(path) + b"\x85")
    ),
}  # fmt: skip


@pytest.mark.parametrize("case", BOMBS)
def test_a_pickle_that_would_run_code_runs_nothing(case: str, tmp_path: Path) -> None:
    canary = tmp_path / "canary"
    bomb = BOMBS[case](str(canary))
    pickle.loads(bomb + b".")
    assert canary.is_dir(), "the attack itself is broken"
    canary.rmdir()
    for pickled in (bomb, b"}" + text("x") + bomb + b"s", storage()[:-2] + bomb + b"tQ"):
        before = set(sys.modules)
        with suppress(CkptconvError):
            open_torch_zip(str(torch_file(tmp_path / "x.pt", pickled + b".")))
        assert not canary.exists()
        assert set(sys.modules) == before
    assert_unharmed(tmp_path)


@pytest.mark.parametrize(
    "attack",
    [
        name("os", "environ") + text("CKPTCONV_CANARY") + text("1") + b"s",
        name("sys", "path") + text("CKPTCONV_CANARY") + b"a",
        name("sys", "modules") + text("CKPTCONV_CANARY") + b"Ns",
        name("builtins", "__dict__") + text("CKPTCONV_CANARY") + b"Ns",
    ],
    ids=["environment", "import path", "modules", "builtins"],
)
def test_a_pickle_that_would_change_this_process_changes_nothing(attack: bytes, tmp_path: Path) -> None:
    with suppress(CkptconvError):
        open_torch_zip(str(torch_file(tmp_path / "x.pt", attack + b".")))
    assert "CKPTCONV_CANARY" not in os.environ
    assert "CKPTCONV_CANARY" not in sys.path
    assert "CKPTCONV_CANARY" not in sys.modules
    assert_unharmed(tmp_path)


@pytest.fixture
def extension() -> Iterator[bytes]:
    """os.mkdir as copyreg's extension 240, for as long as a test runs."""
    copyreg.add_extension("os", "mkdir", 240)
    yield b"\x82\xf0"
    copyreg.remove_extension("os", "mkdir", 240)
    copyreg.clear_extension_cache()


def test_an_extension_is_inert(extension: bytes, tmp_path: Path) -> None:
    bomb = b"\x80\x02" + call(extension, text(str(tmp_path / "canary"))) + b"."
    assert open_torch_zip(str(torch_file(tmp_path / "x.pt", bomb))).root.kind == "os.mkdir"
    assert not (tmp_path / "canary").exists()


def test_an_extension_that_the_process_has_used_is_inert(extension: bytes, tmp_path: Path) -> None:
    assert pickle.loads(b"\x80\x02" + extension + b".") is os.mkdir
    bomb = b"\x80\x02" + call(extension, text(str(tmp_path / "canary"))) + b"."
    with suppress(CkptconvError):
        open_torch_zip(str(torch_file(tmp_path / "x.pt", bomb)))
    assert not (tmp_path / "canary").exists()


def test_a_stand_in_does_not_leak_into_other_unpicklers(extension: bytes) -> None:
    safe_load(b"\x80\x02" + extension + b".", "x")
    assert pickle.loads(b"\x80\x02" + extension + b".") is os.mkdir
