"""ckptconv beside the trainers' own converters, at about 1 GB each: the same tensors, wall, CPU and peak memory.

    python -m benchmarks.peers_trainers --out DIR --python PYTHON [PEER ...]

PYTHON has lightning 2.6.6, deepspeed 0.19.8, ai2-olmo-core 3.0.0 and nanotron's imports; NANOTRON is a checkout of nanotron.
Real savers write each checkpoint over two gloo ranks, once. Each peer runs in a fresh process as it must: save_16bit_model
on two ranks that load the checkpoint into an engine, the others on one. All of its ranks' CPU counts; its peak is that of
its largest rank.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import subprocess
import sys
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from benchmarks import measure
from benchmarks.compare import Digests, digests

JOBS = Path(__file__).resolve().parent / "peers_trainers_jobs.py"


@dataclass(frozen=True, slots=True)
class Peer:
    """A converter.

    Args:
        name: what it is called.
        write: the job that writes the checkpoint; checkpoints of one job are shared.
        convert: the job that converts it.
        input: what ckptconv is given, under the checkpoint's folder.
        dtype: what ckptconv is asked for.
        ranks: the number of processes that the peer runs.
    """

    name: str
    write: str
    convert: str
    input: str
    dtype: str = "keep"
    ranks: int = 1


PEERS = {
    "lightning": Peer(
        "lightning 2.6.6 consolidate_checkpoint", "write_lightning", "convert_lightning", "run/step-10.ckpt"
    ),
    "zero_to_fp32": Peer("DeepSpeed 0.19.8 zero_to_fp32", "write_deepspeed", "convert_zero_to_fp32", "run"),
    "save_16bit": Peer(
        "DeepSpeed 0.19.8 save_16bit_model", "write_deepspeed", "convert_save_16bit", "run", "bfloat16", 2
    ),
    "olmo_core": Peer("OLMo-core 3.0.0 save_hf_model", "write_olmo_core", "convert_olmo_core", "run/step10"),
    "nanotron": Peer(
        "nanotron 2411b02 convert_nanotron_to_hf", "write_nanotron", "convert_nanotron", "bench/run/10"
    ),
}


def job(python: str, ranks: int, *arguments: str) -> list[str]:
    """The command that runs a job on some ranks."""
    torchrun = ["-m", "torch.distributed.run", "--standalone", f"--nproc-per-node={ranks}"]
    return [
        python,
        "-W",
        "ignore",
        *(torchrun if ranks > 1 or "nanotron" in arguments[0] else ()),
        str(JOBS),
        *arguments,
    ]


def ensure(peer: Peer, python: str, out: Path) -> Path:
    """Write the checkpoint if it is not there."""
    folder, mark = out / peer.write, out / f"{peer.write}.made"
    if not mark.exists():
        shutil.rmtree(folder, ignore_errors=True)
        (folder / "run").mkdir(parents=True)
        for ranks in (1, 2) if "nanotron" in peer.write else (2,):
            subprocess.run(job(python, ranks, peer.write, str(folder)), check=True, env=environment())
        mark.touch()
    return folder


def environment() -> dict[str, str]:
    nanotron = os.environ.get("NANOTRON", "")
    paths = f"{nanotron}/src:{nanotron}/examples" if nanotron else ""
    return os.environ | {"PYTHONPATH": paths, "CUDA_DEVICE_MAX_CONNECTIONS": "1", "OMP_NUM_THREADS": "1"}


def of_torch_files(folder: Path, python: str) -> Digests:
    """The digests of a peer's torch files, which that python writes as safetensors."""
    made = folder / "as_safetensors"
    made.mkdir()
    code = (
        "import sys, torch; from safetensors.torch import save_file\n"
        "state = torch.load(sys.argv[1], weights_only=False, mmap=True)\n"
        "state = state.get('model', state.get('state_dict', state))\n"
        "save_file({k: v.contiguous().clone() for k, v in state.items() if hasattr(v, 'shape')}, sys.argv[2])"
    )
    for path in [*folder.glob("*.ckpt"), *folder.glob("*.bin")]:
        subprocess.run([python, "-c", code, str(path), str(made / f"{path.stem}.safetensors")], check=True)
    return digests(made)


def compare(peer: Peer, python: str, out: Path, rounds: int) -> dict[str, Any]:
    """Run ckptconv and a peer in turns; the tensors of the first round are compared."""
    folder, log = ensure(peer, python, out), out / "log"
    files = [path for path in folder.rglob("*") if path.is_file()]
    ours = [sys.executable, "-m", "ckptconv", "merge", str(folder / peer.input)]
    found: dict[str, Any] = {"name": peer.name, "runs": {"ckptconv": [], "peer": []}, "same": None}
    os.environ.update(environment())
    for number in range(rounds):
        for who in ("ckptconv", "peer") if number % 2 == 0 else ("peer", "ckptconv"):
            to = out / f"to_{who}"
            shutil.rmtree(to, ignore_errors=True)
            if who == "peer":
                to.mkdir()
            measure.settle()
            measure.warm(files)
            command = (
                [*ours, str(to), "--dtype", peer.dtype, "--quiet"]
                if who == "ckptconv"
                else job(python, peer.ranks, peer.convert, str(folder), str(to))
            )
            found["runs"][who].append(asdict(measure.run(command, log)))
        if found["same"] is None:
            mine, theirs = digests(out / "to_ckptconv"), digests(out / "to_peer")
            theirs = theirs or of_torch_files(out / "to_peer", python)
            found["same"] = mine == theirs
            found["differ"] = sorted(name for name in {*mine, *theirs} if mine.get(name) != theirs.get(name))[
                :5
            ]
            found["bytes"] = sum(path.stat().st_size for path in (out / "to_ckptconv").glob("*.safetensors"))
    return found


def row(found: dict[str, Any]) -> str:
    """One line of the table: the least of the rounds for times, the most for memory."""
    cells = []
    least = {
        who: {key: min(run[key] for run in runs) for key in ("wall",)}
        | {"cpu": min(run["user"] + run["system"] for run in runs), "peak": max(run["peak"] for run in runs)}
        for who, runs in found["runs"].items()
    }
    for who in ("ckptconv", "peer"):
        each = least[who]
        cells += [f"{each['wall']:.1f}", f"{each['cpu']:.2f}", f"{each['peak'] / 2**20:,.0f}"]
    one, two = least["ckptconv"], least["peer"]
    ratios = f"{one['cpu'] / two['cpu']:.3f} | {one['peak'] / two['peak']:.3f}"
    same = "✓" if found["same"] else f"differ: {', '.join(found['differ'])}"
    return f"| {found['name']} | {found['bytes'] / 1e9:.2f} | {' | '.join(cells)} | {ratios} | {same} |"


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("peers", nargs="*", default=list(PEERS), metavar="PEER", help=", ".join(PEERS))
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--python", required=True)
    parser.add_argument("--rounds", type=int, default=2)
    args = parser.parse_args()
    args.out.mkdir(parents=True, exist_ok=True)
    for name in args.peers:
        found = compare(PEERS[name], args.python, args.out, args.rounds)
        (args.out / f"{name}.json").write_text(json.dumps(found, indent=1) + "\n")
        print(row(found), flush=True)


if __name__ == "__main__":
    main()
