"""The Python that has verl 0.9.1: named by BENCH_VERL_PYTHON, or made once under the benchmark's folder."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

_WITH_DEPENDENCIES = [
    "transformers==5.23.0",
    "accelerate",
    "omegaconf",
    "psutil",
    "ray",
    "pillow",
    "orjson",
    "python-dateutil",
    "pytz",
    "tzdata",
    "dill",
    "xxhash",
    "pyarrow",
    "codetiming",
    "hjson",
    "msgpack",
    "ninja",
    "py-cpuinfo",
    "pydantic",
    "einops",
]
_ALONE = ["peft", "verl==0.9.1", "tensordict", "pyvers", "cloudpickle", "datasets", "multiprocess", "pandas"]


def verl_python(out: Path, install: bool) -> str | None:
    """A python that can import verl's merger, or None when there is none and `install` is false."""
    named = os.environ.get("BENCH_VERL_PYTHON")
    if named:
        return named
    folder = out / "verl-venv"
    python, mark = folder / "bin" / "python", folder / "made"
    if mark.exists():
        return str(python)
    if not install:
        return None
    subprocess.run([sys.executable, "-m", "venv", "--clear", str(folder)], check=True)
    pip = [str(python), "-m", "pip", "install", "--quiet"]
    subprocess.run([*pip, "torch==2.13.0", "numpy"], check=True)
    subprocess.run([*pip, "torch==2.13.0", *_WITH_DEPENDENCIES], check=True)
    subprocess.run([*pip, "--no-deps", *_ALONE], check=True)
    mark.touch()
    return str(python)
