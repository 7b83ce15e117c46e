"""Many files are read in order, by several threads where the first one was slow."""

from __future__ import annotations

import signal
import subprocess
import sys
import textwrap
import threading
import time
from pathlib import Path
from subprocess import PIPE

import pytest
from support.helpers import ROLE
from support.shim import faults, run

from ckptconv.formats import in_order as module
from ckptconv.formats.in_order import in_order


class Clocks:
    """Clocks that the test moves: a busy machine, which takes the processor away for a while, changes nothing on them."""

    def __init__(self) -> None:
        self.passed = self.used = 0.0

    def perf_counter(self) -> float:
        return self.passed

    def thread_time(self) -> float:
        return self.used


def slowly(number: int) -> tuple[int, int]:
    time.sleep(0.003)
    return number, threading.get_ident()


def test_slow_files_are_read_by_several_threads_and_come_in_order() -> None:
    found = list(in_order(slowly, range(60)))
    assert [number for number, _ in found] == list(range(60))
    assert len({thread for _, thread in found}) > 2


def test_fast_files_are_read_by_the_caller_s_thread(monkeypatch: pytest.MonkeyPatch) -> None:
    clocks = Clocks()
    monkeypatch.setattr(module, "time", clocks)

    def computes(number: int) -> tuple[int, int]:
        clocks.passed += 0.0108
        clocks.used += 0.0100  # it works for 10 ms and waits for 0.8 ms
        return number, threading.get_ident()

    found = list(in_order(computes, range(60)))
    assert {thread for _, thread in found} == {threading.get_ident()}
    assert [number for number, _ in found] == list(range(60))


def test_the_first_file_that_waits_starts_the_threads(monkeypatch: pytest.MonkeyPatch) -> None:
    clocks = Clocks()
    monkeypatch.setattr(module, "time", clocks)

    def waits_at_5(number: int) -> int:
        if number == 5:
            clocks.passed += 0.0012
        return threading.get_ident()

    found = list(in_order(waits_at_5, range(60)))
    assert set(found[:6]) == {threading.get_ident()}
    assert threading.get_ident() not in found[6:]


def test_the_first_error_in_order_ends_it_and_no_further_file_is_begun() -> None:
    begun: list[int] = []

    def fails_at_7(number: int) -> int:
        begun.append(number)
        time.sleep(0.003)
        if number in (7, 9):
            raise ValueError(f"file {number}")
        return number

    found: list[int] = []
    with pytest.raises(ValueError, match="file 7"):
        found += in_order(fails_at_7, range(1000))
    assert found == list(range(7))
    assert len(begun) < 100


def test_not_more_than_a_bounded_number_is_read_ahead() -> None:
    begun: list[int] = []

    def counted(number: int) -> int:
        begun.append(number)
        time.sleep(0.003)
        return number

    ahead = [len(begun) - number for number in in_order(counted, range(200))]
    assert max(ahead) <= 34
    assert max(ahead) > 2


def test_ctrl_c_does_not_wait_for_files_that_are_under_way() -> None:
    """A stalled mount answers no read for minutes, and the interpreter waits for threads that are not daemons."""
    code = """
        import time
        from ckptconv.formats.in_order import in_order

        def read(number):
            if number == 3:
                print("stalled", flush=True)
            time.sleep(0.01 if number < 3 else 60)

        for _ in in_order(read, range(100)):
            pass
    """
    process = subprocess.Popen(
        [sys.executable, "-c", textwrap.dedent(code)], stdout=PIPE, stderr=PIPE, text=True
    )
    assert process.stdout is not None
    assert process.stdout.readline() == "stalled\n"
    process.send_signal(signal.SIGINT)
    _, error = process.communicate(timeout=30)
    assert "KeyboardInterrupt" in error
    assert process.returncode == -signal.SIGINT


@pytest.mark.parametrize("kind", ["fsdp2_w4", "qwen3_moe_w4"])
def test_a_slow_disk_changes_nothing_in_what_is_read(made: object, tmp_path: Path, kind: str) -> None:
    folder = made(kind) / ROLE  # type: ignore[operator]
    words = ("inspect", folder, "--json")
    fast = run(*words)
    slow = run(*words, env=faults("slow:2000", "open,read", folder))
    assert (slow.code, slow.out) == (fast.code, fast.out)
