"""The short form of `python -m tests.fuzz`, in a process of its own: its hooks and limits cannot be taken back."""

from __future__ import annotations

import os
import re
import subprocess
import sys
import time
from pathlib import Path
from random import Random

import pytest

from ckptconv.errors import CkptconvError
from fuzz import mutate
from fuzz.guard import Guard

REPO = Path(__file__).resolve().parent.parent.parent
INPUTS = 4_000


def test_thousands_of_inputs_end_in_success_or_one_error(tmp_path: Path) -> None:
    words = [
        sys.executable,
        "-m",
        "tests.fuzz",
        "--inputs",
        str(INPUTS),
        "--seed",
        "7",
        "--keep",
        str(tmp_path),
    ]
    done = subprocess.run(words, capture_output=True, text=True, timeout=300, cwd=REPO)
    assert done.returncode == 0, done.stdout[-6000:] + done.stderr[-3000:]
    (summary,) = re.findall(
        r"([\d,]+) inputs in .*: ([\d,]+) read, ([\d,]+) refused, 0 findings", done.stdout
    )
    inputs, read, refused = (int(number.replace(",", "")) for number in summary)
    assert inputs == read + refused
    assert abs(inputs - INPUTS) < 20
    assert min(read, refused) > INPUTS / 50, "inputs that are all alike prove nothing"


def test_an_input_can_be_made_again(tmp_path: Path) -> None:
    seed = b"\x80\x02}q\x00X\x01\x00\x00\x00aq\x01K\x01s."
    for how in (mutate.anyhow, mutate.pickled):
        assert [how(seed, Random(n)) for n in range(50)] == [how(seed, Random(n)) for n in range(50)]


SINS = {
    "a file outside": lambda folder: Path("/etc/hostname").read_bytes(),
    "a file that is written": lambda folder: (folder / "x").write_text("x"),
    "a folder outside": lambda folder: os.listdir("/"),
    "a file that goes": lambda folder: os.remove(folder / "there"),
    "a command": lambda folder: os.system("true"),
    "a process": lambda folder: subprocess.run(["true"]),
    "code": lambda folder: exec("1"),
    "an import": lambda folder: __import__("this"),
    "a connection": lambda folder: __import__("socket").socket(),
    "a crash": lambda folder: 1 / 0,
    "an error that is hidden": lambda folder: hidden(Path("/etc/hostname").read_bytes),
}


def hidden(call: object) -> None:
    try:
        call()  # type: ignore[operator]
    except BaseException as error:
        raise CkptconvError("x") from error


@pytest.mark.parametrize("case", SINS)
def test_the_guard_sees_what_no_reader_may_do(case: str, tmp_path: Path) -> None:
    """In a process of its own, because a hook stays."""
    import socket  # noqa: F401  # imported before it is forbidden

    (tmp_path / "there").write_text("x")
    pid = os.fork()
    if pid == 0:
        guard = Guard(tmp_path)
        guard.watch()
        guard.run("x", b"", lambda: SINS[case](tmp_path))
        guard.run("y", b"", lambda: (tmp_path / "there").read_bytes())
        os._exit(40 + len(guard.findings))
    assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 41


def test_the_guard_sees_what_takes_too_long_or_too_much(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("fuzz.guard.SECONDS", 0.2)
    monkeypatch.setattr("fuzz.guard.GROWTH", 1 << 20)
    guard = Guard(tmp_path)
    guard.run("x", b"", lambda: time.sleep(5))
    assert [finding.kind for finding in guard.findings.values()] == ["Hang"]
    monkeypatch.setattr("fuzz.guard._peak", iter((0, 2 << 20, 2 << 20, 0)).__next__)
    guard.run("y", b"", lambda: None)
    assert [finding.kind for finding in guard.findings.values()][1:] == ["memory"]
