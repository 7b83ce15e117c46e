"""ckptconv beside DeepSpeed's own zero_to_fp32, on a ZeRO-2 checkpoint of two ranks with fp32 masters.

.venv/bin/python -m benchmarks.zero --out DIR --python PYTHON [--size 0.5b] [--rounds 3]

PYTHON has deepspeed and transformers (tests/make/deepspeed/README.md). Both write float32, in turns; the input is read once
before each run. The tensors are compared in the first round.
"""

from __future__ import annotations

import argparse
import os
import shutil
import subprocess
import sys
from pathlib import Path
from statistics import median

from benchmarks.measure import run, settle, warm
from benchmarks.sizes import SIZES

_SAME = """
import sys
from pathlib import Path
from safetensors import safe_open
def opened(folder):
    return {n: f for p in sorted(Path(folder).glob("*.safetensors")) for f in [safe_open(p, "pt")] for n in f.keys()}
one, two = opened(sys.argv[1]), opened(sys.argv[2])
assert sorted(one) == sorted(two), set(one) ^ set(two)
for name in one:
    assert one[name].get_tensor(name).equal(two[name].get_tensor(name)), name
print(len(one), "tensors, equal bit for bit")
"""


def write(python: str, size: str, root: Path) -> None:
    """The checkpoint, by DeepSpeed under torchrun."""
    command = [python, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2"]
    command += [str(Path(__file__).with_name("write_zero.py")), "--size", size, "--root", str(root)]
    here = str(Path(__file__).resolve().parent.parent)
    subprocess.run(command, check=True, env=os.environ | {"PYTHONPATH": here, "OMP_NUM_THREADS": "1"})


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--size", choices=sorted(SIZES), default="0.5b")
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--python", required=True)
    parser.add_argument("--rounds", type=int, default=3)
    args = parser.parse_args()
    root = args.out / f"zero-{args.size}"
    folder = root / "checkpoint-1"
    if not (folder / "config.json").is_file():
        shutil.rmtree(root, ignore_errors=True)
        write(args.python, args.size, root)
    files = sorted(folder.glob("global_step1/*.pt"))
    ours, theirs = args.out / "ours", args.out / "theirs"
    commands = {
        "ckptconv": (sys.executable, "-m", "ckptconv", "merge", str(folder), str(ours), "--dtype", "keep"),
        "zero_to_fp32": (
            args.python, "-m", "deepspeed.utils.zero_to_fp32", str(folder), str(theirs), "--safe_serialization",
        ),
    }  # fmt: skip
    walls: dict[str, list[float]] = {key: [] for key in commands}
    for number in range(args.rounds):
        for key, command in commands.items():
            for output in (ours, theirs) if number else ():
                shutil.rmtree(output, ignore_errors=True)
            settle()
            warm(files)
            cost = run(command, args.out / f"{key}.log")
            print(f"{key:<14} {cost.wall:6.2f} s  {cost.peak >> 20:6,} MiB  load {cost.load:.1f}", flush=True)
            walls[key].append(cost.wall)
        if not number:
            subprocess.run([sys.executable, "-c", _SAME, str(ours), str(theirs)], check=True)
    ratio = median(walls["zero_to_fp32"]) / median(walls["ckptconv"])
    print(f"zero_to_fp32 takes {ratio:.1f} times as long as ckptconv, median to median")
    for output in (ours, theirs):
        shutil.rmtree(output, ignore_errors=True)


if __name__ == "__main__":
    main()
