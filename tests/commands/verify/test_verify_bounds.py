"""Progress, imports and memory of a verification."""

import json
import subprocess
import sys
import tracemalloc
from pathlib import Path

import pytest
from support.verify_tools import Made

from ckptconv.commands.progress import Progress
from ckptconv.commands.verify import values, verify


def test_progress_is_told_to_the_end(made: Made) -> None:
    told: list[Progress] = []
    result = verify(made("hsdp_w4"), against=made("hsdp_w4") / "hub", on_progress=told.append)
    assert {step.phase for step in told} == {"read"}
    done = [step.done for step in told]
    assert done == sorted(done)
    assert (done[0], done[-1]) == (0, result.read)
    total = told[-1].total
    assert total is not None
    assert result.read <= total <= result.read * 1.1, "zip directories and headers are the difference"


def test_a_reference_needs_neither_torch_nor_transformers(made: Made) -> None:
    hub, base = str(made("fsdp2_w4") / "hub"), str(made("lora_w4") / "base")
    code = (
        "import sys; from ckptconv.commands.verify import verify;"
        f"assert verify({str(made('fsdp2_w4'))!r}, against={hub!r}, base={base!r}).ok;"
        "print([m for m in ('torch', 'transformers', 'accelerate') if m in sys.modules])"
    )
    ran = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert ran.stdout.strip() == "[]"


def test_memory_does_not_grow_with_a_tensor(tmp_path: Path) -> None:
    rows, columns = 40_000, 2_048
    for name in ("one", "two"):
        folder = tmp_path / name
        folder.mkdir()
        nbytes = rows * columns * 2
        entry = {"dtype": "BF16", "shape": [rows, columns], "data_offsets": [0, nbytes]}
        header = json.dumps({"__metadata__": {"format": "pt"}, "w": entry}).encode()
        with open(folder / "model.safetensors", "wb") as file:  # sparse: zeros that no disk holds
            file.write(len(header).to_bytes(8, "little") + header)
            file.truncate(8 + len(header) + nbytes)
        (folder / "config.json").write_text("{}")
    with open(tmp_path / "two" / "model.safetensors", "r+b") as file:
        file.seek(-2, 2)
        file.write(b"\x80\x3f")
    tracemalloc.start()
    try:
        result = verify(tmp_path / "one", against=tmp_path / "two", workers=2)
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    (found,) = result.differences
    assert (found.count, found.at, found.max_abs) == (1, (rows - 1, columns - 1), 1.0)
    assert peak < 48 << 20, f"{peak:,} bytes for two files of {nbytes:,}"


_LARGE = (40_000, 2_048)  # three such tensors in bf16 are 492 MB


def large(folder: Path, last: bytes = b"") -> Path:
    """A model folder of zeros that no disk holds."""
    rows, columns = _LARGE
    nbytes = rows * columns * 2
    header: dict[str, object] = {"__metadata__": {"format": "pt"}}
    for n in range(3):
        offsets = [n * nbytes, (n + 1) * nbytes]
        header[f"w{n}"] = {"dtype": "BF16", "shape": [rows, columns], "data_offsets": offsets}
    text = json.dumps(header).encode()
    folder.mkdir()
    with open(folder / "model.safetensors", "wb") as file:
        file.write(len(text).to_bytes(8, "little") + text)
        file.truncate(8 + len(text) + 3 * nbytes)
        if last:
            file.seek(-len(last), 2)
            file.write(last)
    (folder / "config.json").write_text("{}")
    return folder


def test_no_more_threads_than_memory_is_for(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("ckptconv.read.workers.count", lambda wanted=None: wanted or 16)
    assert values.few(None) * 5 * values.BLOCK < 200 << 20
    assert values.few(12) == 12


def resident(command: str) -> int:
    """The largest resident size of a process that runs it, in MiB."""
    code = f"{command}\nprint(open('/proc/self/status').read().split('VmHWM:')[1].split()[0])"
    ran = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    return int(ran.stdout.split()[-1]) // 1024


def test_resident_memory_stays_below_300_mib(tmp_path: Path) -> None:
    """Comparing, saying what a difference looks like, the base, all of 492 MB; and merging with --verify."""
    one, two = large(tmp_path / "one"), large(tmp_path / "two", b"\x80\x3f")
    asked = f"against={str(two)!r}, base={str(one)!r}, workers=2"
    told = f"from ckptconv import verify\nassert len(verify({str(one)!r}, {asked}).differences) == 1"
    assert resident(told) < 300
    out = tmp_path / "out"
    merged = f"from ckptconv import merge\nassert merge({str(two)!r}, {str(out)!r}, workers=2, verify=True).checked == 3"
    assert resident(merged) < 300
