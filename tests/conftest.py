"""Fixtures: real checkpoints, made by the real frameworks on first use and kept in a cache."""

import hashlib
import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable
from importlib.metadata import version
from pathlib import Path

import pytest
from filelock import FileLock
from make.names import group_of, world_of

os.environ["HF_HUB_OFFLINE"] = "1"
# A shell starts what runs in its background with Ctrl-C ignored, and every process under it inherits that.
signal.signal(signal.SIGINT, signal.default_int_handler)

REPO = Path(__file__).resolve().parent.parent
MAKE = Path(__file__).resolve().parent / "make"

# Makers that have nothing to do with the checkpoints here; any other file there counts for the cache.
OTHER_MAKERS = ("verl_", "smollm", "old_torch", "demo", "screens", "hf")


def maker_of(group: str) -> str:
    """The script that makes a group: dcp.py those of distributed checkpoints, fsdp.py the others."""
    return "dcp.py" if group.startswith("dcp_") else "fsdp.py"


def cache_key(group: str) -> str:
    """Hash of everything that decides what the makers of a group write."""
    digest = hashlib.sha256()
    others = {"fsdp.py", "variants.py"} if maker_of(group) == "dcp.py" else {"dcp.py"}
    for package in ("torch", "transformers", "peft", "accelerate"):
        digest.update(f"{package}=={version(package)}\n".encode())
    for source in sorted(MAKE.glob("*.py")):
        if source.name not in others and not source.name.startswith(OTHER_MAKERS):
            digest.update(source.name.encode() + b"\0" + source.read_bytes())
    return digest.hexdigest()[:16]


def launch(group: str, world: int, out: Path) -> None:
    """Make all variants of a group under torchrun; `out` appears whole or not at all."""
    building = out.with_name(f"{out.name}.{os.getpid()}.building")
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", f"--nproc-per-node={world}"]
    command += [str(MAKE / maker_of(group)), "--group", group, "--out", str(building)]
    run = subprocess.run(
        command, env=os.environ | {"OMP_NUM_THREADS": "1"}, capture_output=True, text=True, timeout=600
    )
    if run.returncode:
        shutil.rmtree(building, ignore_errors=True)
        raise RuntimeError(f"{' '.join(command)} failed:\n{run.stdout[-2000:]}\n{run.stderr[-8000:]}")
    building.rename(out)


@pytest.fixture(scope="session")
def made() -> Callable[[str], Path]:
    """`made("fsdp2_w4")` is the folder of that checkpoint; tests/make/README.md lists them.

    The folders are shared by all tests and runs: read them, and copy what you want to change.
    """
    cache = Path(os.environ.get("CKPTCONV_TEST_CACHE") or REPO / ".cache" / "checkpoints")
    failed: dict[str, str] = {}

    def folder(variant: str) -> Path:
        group = group_of(variant)
        root = cache / cache_key(group)
        out = root / group
        if group in failed:
            pytest.fail(failed[group], pytrace=False)
        if not out.is_dir():
            root.mkdir(parents=True, exist_ok=True)
            with FileLock(root / f"{group}.lock"):
                if not out.is_dir():
                    try:
                        launch(group, world_of(variant), out)
                    except RuntimeError as error:
                        failed[group] = str(error)
                        pytest.fail(failed[group], pytrace=False)
        if not (out / variant).is_dir():
            raise LookupError(f"no variant {variant} in {out}: {sorted(p.name for p in out.iterdir())}")
        return out / variant

    return folder
