"""Write the cases with DeepSpeed under torchrun, and pack them as tests/fixtures/deepspeed_*.tar.xz.

python tests/make/deepspeed/make.py OUT [CASE ...]     # in an environment with deepspeed; README.md says which
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from importlib.metadata import version
from pathlib import Path

from cases import CASES

HERE = Path(__file__).resolve().parent
sys.path.insert(0, str(HERE.parent))
from pack import pack  # noqa: E402

NEWEST = "0.19.8"
ENVIRONMENT = os.environ | {"DS_ACCELERATOR": "cpu", "OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1"}


def run(*command: object) -> None:
    done = subprocess.run(list(map(str, command)), env=ENVIRONMENT, capture_output=True, text=True)
    if done.returncode:
        raise SystemExit(f"{command}\n{done.stdout[-3000:]}\n{done.stderr[-6000:]}")


def make(name: str, out: Path) -> Path:
    """One case in out/deepspeed_NAME, with the version behind the name if it is not the newest."""
    found = version("deepspeed")
    suffix = "" if found == NEWEST else f"_{found.replace('.', '_')}"
    case, folder = CASES[name], out / f"deepspeed_{name}{suffix}"
    shutil.rmtree(folder, ignore_errors=True)
    torchrun = (
        sys.executable,
        "-m",
        "torch.distributed.run",
        "--standalone",
        f"--nproc-per-node={case.world}",
    )
    run(*torchrun, HERE / case.script, name, folder)
    if case.universal:
        saved = folder / "run" / case.folder / "global_step7"
        to = saved.with_name("global_step7_universal")
        convert = (sys.executable, "-m", "deepspeed.checkpoint.ds_to_universal", "--inject_missing_state")
        run(
            *convert,
            "--input_folder",
            saved,
            "--output_folder",
            to,
            "--num_extract_workers",
            1,
            "--num_merge_workers",
            1,
        )
        shutil.rmtree(saved)
        (saved.parent / "latest").unlink()
    return folder


def main() -> None:
    out, *names = sys.argv[1:]
    for name in names or CASES:
        folder = make(name, Path(out))
        print(name, pack(folder, HERE.parents[1] / "fixtures").stat().st_size, flush=True)


if __name__ == "__main__":
    main()
