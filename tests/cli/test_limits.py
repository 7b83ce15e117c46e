"""What a shell may limit or lack: open files, memory, threads, an encoding."""

from __future__ import annotations

import json
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest
from support.helpers import FIXTURES, Ran, assert_equal, assert_one_error, command, environment, tensors

Made = Callable[[str], Path]
RUN = FIXTURES / "verl_fsdp2_w4" / "run"


def limited(limit: str, *words: object, **env: str) -> Ran:
    """`ckptconv ARGS` in a shell with a limit."""
    line = " ".join(map(str, command(*words)))
    done = subprocess.run(
        ["bash", "-c", f"{limit} && {line}"],
        env=environment(**env),
        capture_output=True,
        text=True,
        timeout=120,
    )
    return Ran(done.returncode, done.stdout, done.stderr)


def sliced(folder: Path, files: int) -> Path:
    """A model of one tensor per file."""
    from safetensors.torch import save_file
    from torch import arange

    folder.mkdir()
    names = {}
    for number in range(files):
        file = f"model-{number + 1:05d}-of-{files:05d}.safetensors"
        save_file({f"part.{number}": arange(256.0) + number}, folder / file, metadata={"format": "pt"})
        names[f"part.{number}"] = file
    (folder / "model.safetensors.index.json").write_text(json.dumps({"metadata": {}, "weight_map": names}))
    (folder / "config.json").write_text('{"model_type": "odd", "architectures": ["Odd"]}')
    return folder


@pytest.mark.parametrize("most", [40, 100])
def test_more_files_than_may_be_open_are_read(tmp_path: Path, most: int) -> None:
    """128 files and 16 threads; `ulimit -n` sets the hard limit too, so that it cannot be raised."""
    source = sliced(tmp_path / "source", 128)
    words = ["merge", source, tmp_path / "out", "--workers", 16, "--max-memory", "1GB", "-q"]
    ran = limited(f"ulimit -n {most}", *words)
    assert ran.code == 0, ran
    assert_equal(tensors(tmp_path / "out"), tensors(source))


def test_a_thread_keeps_only_its_share_of_the_files_open(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import resource

    from ckptconv.read.files import Files

    source = sliced(tmp_path / "source", 30)
    monkeypatch.setattr(resource, "getrlimit", lambda _: (74, 74))
    files, memory = Files(), memoryview(bytearray(8))
    for path in sorted(source.glob("*.safetensors")):
        files.fill(str(path), 0, memory)
    assert 1 <= len(files._open_files) <= 10
    files.close()


@pytest.mark.parametrize("limit", ["ulimit -v 150000", "ulimit -v 200000"])
def test_too_little_memory_is_one_clear_error(made: Made, tmp_path: Path, limit: str) -> None:
    ran = limited(limit, "merge", RUN, tmp_path / "out", "-q")
    if ran.code == 0:
        pytest.skip("this machine needs less")
    assert_one_error(ran, r"not enough memory", names=("ulimit -v",))
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("encoding", ["ascii", "latin-1", "cp1252", "utf-16"])
@pytest.mark.parametrize("words", [("inspect", RUN), ("inspect", RUN, "--tensor", "q_proj"), ("--help",)])
def test_an_encoding_that_lacks_our_glyphs_does_not_change_the_exit_code(
    encoding: str, words: tuple[object, ...]
) -> None:
    line = subprocess.run(
        list(map(str, command(*words))),
        env=environment(PYTHONIOENCODING=encoding),
        capture_output=True,
        timeout=60,
    )
    assert line.returncode == 0, line
    shown = line.stdout.decode(encoding)
    assert "\\u" not in shown
    if encoding == "ascii" and words == ("inspect", RUN):
        assert "+ complete" in shown


def test_a_pipe_gets_whole_names_and_no_padding(tmp_path: Path) -> None:
    """For grep and for logs: only a terminal, or COLUMNS, has a width."""
    from safetensors.torch import save_file
    from torch import ones

    name = "model." + ".".join(f"a_rather_long_part_{number}" for number in range(12)) + ".weight"
    (tmp_path / "model").mkdir()
    save_file({name: ones(2, 3)}, tmp_path / "model" / "model.safetensors")
    (tmp_path / "model" / "config.json").write_text('{"model_type": "odd", "architectures": ["Odd"]}')
    ran = limited("unset COLUMNS", "inspect", tmp_path / "model")
    assert any(name in line for line in ran.out.splitlines())
    assert not any(line.endswith(" ") for line in ran.out.splitlines())
    narrow = limited("export COLUMNS=60", "inspect", tmp_path / "model")
    wide = [line for line in narrow.out.splitlines() if len(line) > 60]
    assert all(str(tmp_path) in line for line in wide), (
        "only a path in a command that can be pasted is longer"
    )
