"""Python environments of the peers: named by BENCH_VERL_PYTHON and BENCH_DEEPSPEED_PYTHON, or made once under the
benchmark's folder."""

from __future__ import annotations

import os
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True, slots=True)
class Peer:
    """What pip installs with its dependencies, and what it installs alone, since that would bring CUDA."""

    with_dependencies: str
    alone: str


PEERS = {
    "verl": Peer(
        "transformers==5.23.0 accelerate omegaconf psutil ray pillow orjson python-dateutil pytz tzdata dill xxhash pyarrow"
        " codetiming hjson msgpack ninja py-cpuinfo pydantic einops",
        "peft verl==0.9.1 tensordict pyvers cloudpickle datasets multiprocess pandas",
    ),
    "deepspeed": Peer(
        "transformers==5.23.0 accelerate einops hjson msgpack ninja numpy packaging psutil py-cpuinfo pydantic tqdm",
        "deepspeed==0.19.8",
    ),
}


def python_of(peer: str, out: Path, install: bool) -> str | None:
    """A python that can import the peer, or None when there is none and `install` is false."""
    named = os.environ.get(f"BENCH_{peer.upper()}_PYTHON")
    if named:
        return named
    folder = out / f"{peer}-venv"
    python, mark = folder / "bin" / "python", folder / "made"
    if mark.exists():
        return str(python)
    if not install:
        return None
    subprocess.run([sys.executable, "-m", "venv", "--clear", str(folder)], check=True)
    pip = [str(python), "-m", "pip", "install", "--quiet"]
    subprocess.run([*pip, "torch==2.13.0", "numpy", "setuptools", "wheel"], check=True)
    subprocess.run([*pip, "torch==2.13.0", *PEERS[peer].with_dependencies.split()], check=True)
    built = (
        ["--no-deps", "--no-build-isolation"] if peer == "deepspeed" else ["--no-deps"]
    )  # its setup.py imports torch
    subprocess.run([*pip, *built, *PEERS[peer].alone.split()], check=True)
    mark.touch()
    return str(python)
