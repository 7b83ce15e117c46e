"""Progress, imports and memory of a verification."""

import json
import subprocess
import sys
import tracemalloc
from pathlib import Path

from verify_tools import Made

from ckptconv.commands.verify import verify


def test_progress_is_told_to_the_end(made: Made) -> None:
    told: list[tuple[int, int]] = []
    result = verify(
        made("hsdp_w4"), against=made("hsdp_w4") / "hub", on_bytes=lambda *pair: told.append(pair)
    )
    done = [one for one, _ in told]
    assert done == sorted(done)
    assert done[-1] == result.read
    assert result.read <= told[-1][1] <= result.read * 1.1, "zip directories and headers are the difference"


def test_a_reference_needs_neither_torch_nor_transformers(made: Made) -> None:
    code = (
        "import sys; from ckptconv.commands.verify import verify;"
        f"assert verify({str(made('fsdp2_w4'))!r}, against={str(made('fsdp2_w4') / 'hub')!r}).ok;"
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
