"""The record that merge, verify and push report while they run, and the bar that shows it."""

from __future__ import annotations

import io
import threading
from pathlib import Path
from typing import get_args

import pytest
from support.helpers import REPO

from ckptconv.commands.progress import Meter, Phase, Progress
from ckptconv.show import bars
from ckptconv.show import progress as show
from ckptconv.show.sink import Sink, _Stream


def test_a_meter_counts_what_several_threads_do() -> None:
    told: list[Progress] = []
    meter = Meter(told.append, "write", 4000)
    threads = [threading.Thread(target=lambda: [meter.add(1, "a") for _ in range(1000)]) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert [step.done for step in told] == list(range(4001))
    assert told[-1] == Progress("write", 4000, 4000, "a")


def test_the_total_grows_with_what_is_read_beyond_it() -> None:
    told: list[Progress] = []
    Meter(told.append, "read", 10).add(12)
    assert (told[-1].done, told[-1].total) == (12, 12)


def test_the_documentation_and_the_screen_know_every_phase() -> None:
    text = (REPO / "docs" / "api.md").read_text(encoding="utf-8")
    for phase in get_args(Phase):
        assert f"| `{phase}` |" in text
    assert {*show._LINES, *show._BARS} == set(get_args(Phase))


class Terminal(Sink):
    """A terminal that keeps what is drawn."""

    live = True

    def __init__(self) -> None:
        super().__init__()
        self.drawn = io.StringIO()
        self.err = _Stream(file=self.drawn, force_terminal=True, width=100)


def test_a_bar_names_the_file_and_a_line_ends_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TERM", "xterm")
    sink = Terminal()
    with show.ProgressShown(sink) as shown:
        shown(Progress("download", what="org/name: 3 files"))
        shown(Progress("write", 0, 100))
        monkeypatch.setattr(bars, "_REDRAWN", 0.0)
        shown(Progress("write", 50, 100, "model.safetensors"))
        shown(Progress("run", what="with transformers"))
        assert shown._bar is None
        shown(Progress("upload", 100, 100, "uploaded"))
    text = sink.drawn.getvalue()
    assert "org/name: 3 files" in text
    assert "Writing" in text
    assert text.index("with transformers") > text.index("Writing")
    assert "uploaded (100 B of 100 B)" in text


def test_elsewhere_no_bar_is_drawn(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    shown = show.ProgressShown(Sink())
    shown(Progress("write", 0, 100))
    shown(Progress("write", 100, 100, str(tmp_path)))
    assert capsys.readouterr().err == ""


def test_a_log_says_what_is_written_after_the_source_was_hashed(capsys: pytest.CaptureFixture[str]) -> None:
    with show.ProgressShown(Sink()) as shown:
        for _ in range(2):
            shown.writes = "8 bytes in 1 file"
            shown(Progress("hash", what="MODEL, to compare it with its receipt"))
            shown(Progress("write", 0, 8))
            shown(Progress("write", 8, 8, "model.safetensors"))
    assert [line.split()[0] for line in capsys.readouterr().err.splitlines()] == ["Hashing", "Writing"] * 2


def test_a_log_gets_a_line_each_half_a_minute(monkeypatch: pytest.MonkeyPatch) -> None:
    now = [0.0]
    monkeypatch.setattr(show.time, "monotonic", lambda: now[0])
    sink, lines = Sink(), []
    monkeypatch.setattr(sink, "phase", lambda word, text: lines.append(f"{word} {text}"))
    with show.ProgressShown(sink) as shown:
        for second in range(0, 100):
            now[0] = float(second)
            shown(Progress("write", second * 10**9, 10**11, "model-00001-of-00020.safetensors"))
    assert lines == [
        f"Writing {part}%  {part}.0 GB of 100 GB  1.00 GB/s, {left} left  model-00001-of-00020.safetensors"
        for part, left in ((30, "1:10"), (60, "40.0 s"), (90, "10.0 s"))
    ]


def test_a_spinner_is_drawn_while_transformers_is_imported(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TERM", "xterm")
    sink = Terminal()
    with show.ProgressShown(sink) as shown:
        shown(Progress("load", what="torch and transformers"))
        shown(Progress("read", 0, 100))
    assert "Loading   torch and transformers" in sink.drawn.getvalue()
