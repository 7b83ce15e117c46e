"""Makes, checks and keeps the fixtures of tests/fixtures/megatron; README.md says what they need."""

from __future__ import annotations

import argparse
import json
import os
import random
import shutil
import subprocess
import sys
import tempfile
from importlib.metadata import version
from pathlib import Path
from typing import Any

import check
import tiny
from cases import CASES, DEV, SOURCES, Case
from newest import NEW

HERE = Path(__file__).resolve().parent
sys.path.append(str(HERE.parent))
from pack import pack  # noqa: E402

FIXTURES = HERE.parents[1] / "fixtures/megatron"
PACKAGES = ("torch", "transformers", "safetensors")
BRIDGES = {
    "mbridge": "mbridge",
    "megatron_bridge": "megatron-bridge",
    "mcore_bridge": "mcore-bridge",
    "nemo": "nemo_toolkit",
}


def make(name: str, case: Case, options: argparse.Namespace) -> str:
    """One fixture; it is kept only when its files give back the model bit for bit. Returns a line about it."""
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary) / name
        if failed := make_model(case, folder / "hf", options.transformers5):
            return f"FAILED  {name}\n{failed}"
        if case.critic:
            tiny.as_critic(folder / "hf")
        index = tiny.write_index(folder / "hf")
        failed = launch(name, case, folder, options)
        index.unlink()
        if failed:
            return f"FAILED  {name}\n{failed}"
        if case.critic:
            tiny.as_classifier(folder / "hf")
        wrong = [] if case.family in NEW else check.differences(case, folder)
        if wrong:
            keep = Path(tempfile.gettempdir()) / f"wrong-{name}"
            shutil.rmtree(keep, ignore_errors=True)
            shutil.copytree(folder, keep)
            return f"WRONG   {name}  (kept in {keep})\n" + "\n".join(wrong[:20])
        (folder / "about.json").write_text(json.dumps(about(name, case), indent=1) + "\n")
        paths = machine_paths(folder)
        if paths:
            return f"PATHS   {name}  {paths}"
        size = pack(folder, options.out).stat().st_size
        return f"OK      {name}  {size / 1000:.0f} kB"


def make_model(case: Case, folder: Path, transformers5: Path | None) -> str:
    """Makes the Hugging Face model; one that needs transformers 5 in a process with it. Returns the error's text."""
    if not case.new:
        tiny.make(case.family, folder)
        return ""
    if transformers5 is None:
        return "needs --transformers5: a folder with transformers 5"
    code = (
        f"import pathlib, sys; sys.path.insert(0, {str(HERE)!r}); import tiny; "
        f"tiny.make({case.family!r}, pathlib.Path({str(folder)!r}))"
    )
    environment = os.environ | {"PYTHONPATH": str(transformers5.resolve()), "OMP_NUM_THREADS": "1"}
    done = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", code], env=environment, capture_output=True, text=True
    )
    return "" if done.returncode == 0 else done.stderr[-3000:]


def launch(name: str, case: Case, folder: Path, options: argparse.Namespace) -> str:
    """Runs write.py under torchrun in the fixture's folder; returns the end of its output if it fails."""
    paths = [str(HERE), str(HERE / "stand_ins")]
    if case.source:
        if options.sources is None:
            return "needs --sources: a folder with the repositories Megatron-Bridge and Megatron-LM"
        core = "Megatron-LM-dev" if case.dev else "Megatron-LM"
        paths += [str(options.sources.resolve() / each) for each in ("Megatron-Bridge/src", core)]
    elif case.core != version("megatron-core"):
        if options.old_core is None:
            return f"needs --old-core: a folder with megatron-core {case.core}"
        paths.insert(0, str(options.old_core.resolve()))
    if case.bridge == "nemo":
        if options.nemo is None:
            return "needs --nemo: pip's --target folder of nemo_toolkit, without its dependencies"
        paths.append(str(options.nemo.resolve()))
    if case.new:
        paths.insert(0, str(options.transformers5.resolve()))
    environment = (
        os.environ
        | {"PYTHONPATH": os.pathsep.join(paths), "OMP_NUM_THREADS": "1", "NO_VCS_VERSION": "1"}
        | case.environment
    )
    port = random.randrange(20000, 60000)
    command = [sys.executable, "-W", "ignore", "-m", "torch.distributed.run", f"--master-port={port}"]
    command += [f"--nproc-per-node={case.world}", str(HERE / "write.py"), name]
    done = subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True, timeout=600)
    if done.returncode == 0:
        return ""
    lines = (
        (done.stdout + done.stderr).split("torch.distributed.elastic.multiprocessing.errors")[0].splitlines()
    )
    told = [
        line
        for line in lines
        if "torch/distributed/" not in line and "^^^" not in line and "gloo" not in line
    ]
    return "\n".join(told)[-3500:]


def about(name: str, case: Case) -> dict[str, Any]:
    """What a fixture is, for about.json."""
    used = {each: getattr(case, each) for each in ("tp", "pp", "vpp", "ep", "etp") if getattr(case, each) > 1}
    if case.ep > 1:
        used["etp"] = case.etp
    versions = {each: version(each) for each in (*PACKAGES, BRIDGES[case.bridge])} | {
        "megatron-core": case.core
    }
    if case.source:
        versions = {each: version(each) for each in PACKAGES} | SOURCES | (DEV if case.dev else {})
    return {
        "command": f"python tests/make/megatron/make.py {name}",
        "shows": case.shows,
        "family": case.family,
        "layout": case.layout,
        "ranks": case.world,
        "parallelism": used,
        "spec": case.spec,
        "first_stage_layers": case.first,
        "padded_to_multiple_of": case.pad,
        "metadata": case.metadata,
        "optimizer": case.optimizer,
        "lora": {"r": 4, "alpha": 6, "layers": case.lora} if case.lora else {},
        "versions": {"python": sys.version.split()[0]} | versions,
        "not_real": "Transformer Engine and CUDA (stand_ins/); Megatron-Core and the bridge are",
    }


def machine_paths(folder: Path) -> list[str]:
    """Files that hold a path of this machine."""
    marks = [
        str(Path.home()),
        str(HERE.parents[2]),
        tempfile.gettempdir(),
        sys.prefix,
    ]
    found = []
    for file in sorted(each for each in folder.rglob("*") if each.is_file()):
        data = file.read_bytes()
        found += [f"{file.relative_to(folder)}: {mark}" for mark in marks if mark.encode() in data]
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("case", nargs="*", help="names from cases.py; all of them by default")
    parser.add_argument("--old-core", type=Path, help="pip's --target folder of the older megatron-core")
    parser.add_argument("--transformers5", type=Path, help="pip's --target folder of transformers 5")
    parser.add_argument(
        "--sources", type=Path, help="a folder with Megatron-Bridge and Megatron-LM at SOURCES"
    )
    parser.add_argument("--nemo", type=Path, help="pip's --target folder of nemo_toolkit")
    parser.add_argument("--out", type=Path, default=FIXTURES)
    options = parser.parse_args()
    options.out.mkdir(parents=True, exist_ok=True)
    sys.path += [str(options.nemo.resolve())] if options.nemo else []  # for its version
    failed = 0
    for name in options.case or CASES:
        line = make(name, CASES[name], options)
        print(line, flush=True)
        failed += not line.startswith("OK")
    sys.exit(failed)


if __name__ == "__main__":
    main()
