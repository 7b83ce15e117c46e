"""What a checkpoint says of itself is shown and not obeyed: no escape sequence of it reaches a terminal."""

from __future__ import annotations

import io
import json
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from rich.console import Console
from rich.table import Table
from rich.text import Text
from support.helpers import ROLE, cli, edit_config, own_copy, rank_file, save_ws1

from ckptconv.errors import CkptconvError
from ckptconv.show.sink import Sink, printable

Made = Callable[[str], Path]
EVIL = "a\x1b[2J\x1b]0;title\x07\x9b31m\r\x08\u202eb\u2028c\x00\ud800"
OBEYED = set(EVIL) - set("a[2J]0;title31mbc") | {"\x7f", "\x85"}


def assert_calm(text: str) -> None:
    assert not OBEYED & set(text), ascii(text)


NAMES = [
    "w\x1b[2J",
    "w\nerror: all is well",
    "w\r✓ done",
    "w\x9b31m",
    "w\u202eabc",
    "w\x00",
    "w\x7f",
    "w" * 2_000,
]


@pytest.mark.parametrize("name", NAMES, ids=ascii)
@pytest.mark.parametrize("command", ["inspect", "merge", "verify"])
def test_a_tensor_with_such_a_name_is_refused_and_not_printed(
    name: str, command: str, tmp_path: Path, place: Path
) -> None:
    run = save_ws1({name: torch.ones(3)}, {"model_type": "odd"}, tmp_path / "run")
    words = (run, place / "out") if command == "merge" else (run,)
    ran = cli(command, *words)
    assert ran.code == 2
    assert len(ran.errors) == 1
    assert_calm(ran.out + ran.err)
    assert "name" in ran.errors[0]


@pytest.mark.parametrize("key", ["model_type", "architectures", "dtype", "num_hidden_layers", "hidden_size"])
@pytest.mark.parametrize("variant", ["ws1_fsdp1", "qwen3_moe_w4"])
def test_a_config_of_escapes_is_shown_and_not_obeyed(
    key: str, variant: str, made: Made, tmp_path: Path, place: Path
) -> None:
    run = own_copy(made(variant), tmp_path / "run")
    edit_config(run, **{key: [EVIL] if key == "architectures" else EVIL})
    for words in (
        ("inspect", run),
        ("merge", run, place / "out", "--dry-run"),
        ("merge", run, place / "out"),
    ):
        for more in ((), ("--json",), ("--quiet",)):
            ran = cli(*words, *more)
            assert_calm(ran.out + ran.err)
            assert "unexpected error" not in ran.err


def test_files_of_such_names_are_not_obeyed(made: Made, tmp_path: Path, place: Path) -> None:
    run = own_copy(made("fsdp2_w4"), tmp_path / "run")
    evil = EVIL.replace("\x00", "").replace("\ud800", "\udcff")  # \udcff: a name that is no UTF-8
    (run / ROLE / "huggingface" / f"{evil}.json").write_text("{}")
    (run / f"global_step_7/{evil}").mkdir()
    rank_file(run, 2).rename(rank_file(run, 2).with_name(f"{evil}.pt"))
    (tmp_path / "junk").mkdir()
    (tmp_path / "junk" / evil).write_text("x")
    for words in (("inspect", run), ("merge", run, place / "out"), ("inspect", tmp_path / "junk")):
        for more in ((), ("--json",)):
            ran = cli(*words, *more)
            assert_calm(ran.out + ran.err)
            assert "unexpected error" not in ran.err


def test_the_one_place_that_prints_obeys_nothing(capsys: pytest.CaptureFixture[str]) -> None:
    table = Table(EVIL)
    table.add_row(Text(EVIL))
    sink = Sink()
    sink.phase("Reading", EVIL)
    sink.note(EVIL)
    sink.result(table, {}, "")
    sink.error(CkptconvError(EVIL, where=EVIL, found=EVIL, wanted=EVIL, hint=EVIL))
    Sink(quiet=True).result(table, {}, EVIL)
    Sink(as_json=True).result(table, {"x": EVIL}, EVIL)
    said = capsys.readouterr()
    assert_calm(said.out + said.err)
    assert "\\x1b[2J" in said.out


def test_a_line_of_a_message_does_not_look_like_another(capsys: pytest.CaptureFixture[str]) -> None:
    Sink().error(CkptconvError("one\nerror: two", found="x\n✓ merged"))
    said = capsys.readouterr().err
    assert [line for line in said.splitlines() if line.startswith("error:")] == ["error: one"]
    assert not any(line.startswith("✓") for line in said.splitlines())


def test_colours_are_still_drawn() -> None:
    """What rich itself writes are escapes too."""
    sink = Sink()
    sink.out = type(sink.out)(file=io.StringIO(), force_terminal=True, color_system="standard")
    sink.result(Text("red", "red"), {}, "")
    plain = Console(file=io.StringIO(), force_terminal=True, color_system="standard")
    plain.print(Text("red", "red"))
    assert sink.out.file.getvalue() == plain.file.getvalue()  # type: ignore[attr-defined]
    assert printable("Größe ≤ 3×4 → ✓ 漢字\n\tx") == "Größe ≤ 3×4 → ✓ 漢字\n\tx"


def test_json_is_plain_ascii(made: Made, tmp_path: Path) -> None:
    run = own_copy(made("ws1_fsdp1"), tmp_path / "run")
    edit_config(run, model_type=EVIL)
    ran = cli("inspect", run, "--json")
    assert ran.out.isascii()
    assert json.loads(ran.out)["config"]["model_type"] == EVIL
