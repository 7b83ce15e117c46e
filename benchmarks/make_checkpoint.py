"""Makes the checkpoints of a size, once: by a real FSDP2 run over four gloo ranks, and by DeepSpeed over two."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from dataclasses import asdict
from pathlib import Path

from benchmarks.sizes import SIZES, WORLD, Checkpoint, Size

REPOSITORY = Path(__file__).resolve().parents[1]


def ensure(size: Size, out: Path) -> Checkpoint:
    """The checkpoints of a size under `out`; written only when they are not there whole and of this shape."""
    checkpoint = Checkpoint(out / size.name)
    shape = {key: value for key, value in asdict(size).items() if key != "rounds"} | {"world": WORLD}
    if checkpoint.mark.is_file() and json.loads(checkpoint.mark.read_text()) == shape:
        return checkpoint
    need = (1 if size.is_large else 2) * 4 * size.parameters
    checkpoint.root.mkdir(parents=True, exist_ok=True)
    for folder in ("run", "dcp"):
        shutil.rmtree(checkpoint.root / folder, ignore_errors=True)
    if need > shutil.disk_usage(checkpoint.root).free:
        raise SystemExit(f"the checkpoints of {size.name} need {need / 1e9:.1f} GB of free disk")
    print(f"writing the {size.name} checkpoints, {need / 1e9:.1f} GB", file=sys.stderr)
    job = ["-m", "benchmarks.write_checkpoint", f"--size={size.name}", f"--root={checkpoint.root.resolve()}"]
    if size.is_large:
        for rank in range(WORLD):
            subprocess.run([sys.executable, *job, f"--alone={rank}"], cwd=REPOSITORY, check=True)
    else:
        launch = ["-m", "torch.distributed.run", "--standalone", f"--nproc-per-node={WORLD}"]
        subprocess.run([sys.executable, *launch, *job], cwd=REPOSITORY, check=True)
    checkpoint.mark.write_text(json.dumps(shape))
    return checkpoint


def ensure_zero(size: Size, checkpoint: Checkpoint, python: str) -> None:
    """The size's ZeRO-2 checkpoint, by DeepSpeed in `python`; written only when it is not there whole."""
    if (checkpoint.zero / "config.json").is_file():  # the job writes it last
        return
    shutil.rmtree(checkpoint.zero.parent, ignore_errors=True)
    print(f"writing the {size.name} ZeRO-2 checkpoint", file=sys.stderr)
    command = [python, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2"]
    command += [str(Path(__file__).with_name("write_zero.py")), "--size", size.name]
    command += ["--root", str(checkpoint.root.resolve())]
    env = os.environ | {"PYTHONPATH": str(REPOSITORY), "OMP_NUM_THREADS": "1"}
    subprocess.run(command, check=True, env=env)


if __name__ == "__main__":
    for name in sys.argv[2:]:
        ensure(SIZES[name], Path(sys.argv[1]))
