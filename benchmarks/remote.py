"""The 0.5B checkpoint from an object store on this machine: ckptconv beside a plain download, and beside download + verl.

    python -m benchmarks.remote --out .cache/bench [--rounds 3] [--latency 0.005]

The store is `benchmarks.store_server`, in a process of its own on the loopback interface. What is timed, in turns:

- ckptconv merge s3://…
- a download of the same objects by obstore: 8 MiB ranges, 16 at a time, written to the disk
- the same download, then verl's merger on the folder (with a Python that has verl, see README.md)
- ckptconv merge of the folder on the disk, for the bytes and the memory
"""

from __future__ import annotations

import argparse
import filecmp
import json
import os
import shutil
import statistics
import subprocess
import sys
import urllib.request
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path

from benchmarks.make_checkpoint import ensure
from benchmarks.measure import Cost, run
from benchmarks.peer_env import python_of
from benchmarks.sizes import SIZES, Checkpoint

_DOWNLOAD = """
import os, sys
from concurrent.futures import ThreadPoolExecutor
import obstore
from obstore.store import S3Store
bucket, prefix, out = sys.argv[1:]
store, step = S3Store(bucket), 8 << 20
def part(key, start, end, handle):
    os.pwrite(handle, memoryview(obstore.get_range(store, key, start=start, end=end)), start)
with ThreadPoolExecutor(16) as pool:
    done = []
    for item in obstore.list(store, prefix).collect():
        path = os.path.join(out, item["path"])
        os.makedirs(os.path.dirname(path), exist_ok=True)
        handle = os.open(path, os.O_CREAT | os.O_WRONLY)
        for start in range(0, item["size"], step):
            done.append(pool.submit(part, item["path"], start, min(start + step, item["size"]), handle))
    for each in done:
        each.result()
"""


@contextmanager
def server(root: Path, latency: float) -> Iterator[str]:
    """The address of a server of the folder's subfolders as buckets."""
    command = [sys.executable, "-m", "benchmarks.store_server", str(root), "--latency", str(latency)]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as process:
        assert process.stdin is not None
        assert process.stdout is not None
        yield f"http://127.0.0.1:{int(process.stdout.readline())}"
        process.stdin.close()
        process.wait()


def requests_of(url: str) -> Counter[str]:
    """What the server was asked so far: "GET name" -> times."""
    text = urllib.request.urlopen(f"{url}/-counts").read().decode()
    return Counter({what: int(n) for n, what in (line.split(" ", 1) for line in text.splitlines())})


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path, default=Path(".cache/bench"))
    parser.add_argument("--size", choices=sorted(SIZES), default="0.5b")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--latency", type=float, default=0.0)
    parser.add_argument("--no-install", action="store_true", help="leave verl out where it is not there")
    args = parser.parse_args()
    checkpoint = ensure(SIZES[args.size], args.out)
    verl = python_of("verl", args.out, install=not args.no_install)
    scratch = args.out / "remote"
    shutil.rmtree(scratch, ignore_errors=True)
    scratch.mkdir()
    with server(args.out.resolve(), args.latency) as url:
        os.environ.update(
            AWS_ENDPOINT_URL=url, AWS_ALLOW_HTTP="true", AWS_REGION="us-east-1",
            AWS_ACCESS_KEY_ID="key", AWS_SECRET_ACCESS_KEY="secret",
        )  # fmt: skip
        costs = _rounds(args.size, checkpoint, scratch, verl, args.rounds)
        before = requests_of(url)
        run([sys.executable, "-m", "ckptconv", "inspect", f"s3://{args.size}/run"], scratch / "log")
        asked = requests_of(url) - before
    same = all(
        filecmp.cmp(path, scratch / "near" / path.name, shallow=False)
        for path in (scratch / "far").iterdir()
        if path.name != "ckptconv.json"  # its fingerprint is of times and ETags
    )
    found = {
        "costs": {name: [asdict(cost) for cost in each] for name, each in costs.items()},
        "same_bytes": same,
        "inspect_requests": dict(asked),
    }
    (args.out / "remote.json").write_text(json.dumps(found, indent=1))
    _show(costs, same, asked)


def _rounds(
    size: str, checkpoint: Checkpoint, scratch: Path, verl: str | None, rounds: int
) -> dict[str, list[Cost]]:
    """Everyone's costs, in turns; every second round in the other order."""
    python, log = sys.executable, scratch / "log"
    address, local = f"s3://{size}/run", str(checkpoint.actor.parents[1])
    down, merged = str(scratch / "down"), str(scratch / "out")
    download = [python, "-c", _DOWNLOAD, size, "run", down]
    commands = {
        "far": [python, "-m", "ckptconv", "merge", address, str(scratch / "far"), "--overwrite"],
        "download": download,
        "near": [python, "-m", "ckptconv", "merge", local, str(scratch / "near"), "--overwrite"],
    }
    if verl:
        actor = str(scratch / "down" / "run" / "global_step_1" / "actor")
        merger = [verl, "-m", "verl.model_merger", "merge", "--backend", "fsdp", "--local_dir", actor]
        commands["verl"] = [*merger, "--target_dir", merged]
    costs: dict[str, list[Cost]] = {name: [] for name in commands}
    for number in range(rounds):
        for name in (
            list(commands) if number % 2 == 0 else ["near", "download", *(["verl"] if verl else []), "far"]
        ):
            if name == "download":
                shutil.rmtree(down, ignore_errors=True)
            os.sync()
            costs[name].append(run(commands[name], log))
            shutil.rmtree(merged, ignore_errors=True)
    return costs


def _show(costs: dict[str, list[Cost]], same: bool, asked: Counter[str]) -> None:
    wall = {name: statistics.median(cost.wall for cost in each) for name, each in costs.items()}
    print("| | wall s | min to max | CPU s | peak MiB |\n|---|---:|---:|---:|---:|")
    for name, each in costs.items():
        cpu = statistics.median(cost.cpu for cost in each)
        low, high = min(cost.wall for cost in each), max(cost.wall for cost in each)
        peak = max(cost.peak for cost in each) / 2**20
        print(f"| {name} | {wall[name]:.1f} | {low:.1f} to {high:.1f} | {cpu:.1f} | {peak:.0f} |")
    print(f"bytes equal to those of the local merge: {same}")
    print(f"merge s3:// / download: {wall['far'] / wall['download']:.2f}")
    if "verl" in wall:
        print(f"merge s3:// / (download + verl): {wall['far'] / (wall['download'] + wall['verl']):.2f}")
    files = {what: n for what, n in asked.items() if what.endswith(".pt")}
    print(f"inspect: {max(files.values())} requests per rank file, {sum(asked.values())} in all")


if __name__ == "__main__":
    main()
