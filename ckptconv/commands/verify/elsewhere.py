"""Layer elsewhere: the model folder gives the same logits and text in another environment (verify --logits --python)."""

from __future__ import annotations

import base64
import json
import os
import subprocess
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

from ckptconv.commands.verify.behaviour import compared
from ckptconv.commands.verify.model_runner import Ran, Runner
from ckptconv.commands.verify.records import Layer, Problem
from ckptconv.commands.verify.sides import Side
from ckptconv.errors import CkptconvError, Kind
from ckptconv.models.facts import default_architecture, named_architectures
from ckptconv.tensors.look import resolved

_PROVES = "the other environment's transformers reads the same model and tokenizer from this folder"
_SECONDS = 3600  # after which the other process is given up


def elsewhere_layer(
    ours: Side,
    here: Ran,
    runner: Runner,
    prompt: str,
    python: str | Path,
    on_phase: Callable[[str], None] | None,
) -> Layer:
    """Run a model folder in another environment with the token ids that were used here, and compare.

    Args:
        ours: the target, a model folder.
        here: its output in this environment, on the CPU.
        runner: which made it.
        prompt: the text that was run.
        python: the interpreter of the other environment, which has torch and transformers.
        on_phase: called with a sentence before it runs.

    Raises:
        CkptconvError: the interpreter cannot be started, or has no transformers.
    """
    if not ours.is_folder or ours.is_adapter or ours.config is None:
        return Layer(
            "elsewhere",
            None,
            "",
            "skipped: only a model folder is run in another environment: merge it first",
        )
    if on_phase:
        on_phase(f"{ours.path} with {python}")
    named = named_architectures(ours.config)
    asked = {
        "folder": os.fspath(resolved(ours.checkpoint.root)),
        "architecture": named[0] if named else default_architecture(dict(ours.config)),
        "ids": here.ids,
        "prompt": prompt if runner.tokenizer is not None else "",
        "tokens": len(here.text),
        "dtype": here.dtype,
    }
    answer = _ask(Path(python), asked)
    version = f"transformers {answer['version']}"
    if "error" in answer:
        problem = Problem(version, f"cannot run it: {answer['error'][:200]}", str(python))
        return Layer("elsewhere", False, _PROVES, f"{version} cannot run it", (problem,))
    there = _ran(answer, here)
    problems = _tokenizer(answer["ids"], here.ids, version)
    layer = compared(here, there, runner, tolerant=False, whose=f"{version}'s ")
    return replace(
        layer,
        name="elsewhere",
        ok=bool(layer.ok) and not problems,
        proves=_PROVES,
        found=f"{version}: {layer.found}",
        problems=(*problems, *layer.problems),
    )


def _tokenizer(found: Any, wanted: list[int], version: str) -> tuple[Problem, ...]:
    if found is None or found == wanted:
        return ()
    if isinstance(found, str):
        return (Problem("tokenizer", f"{version} cannot load it: {found[:200]}"),)
    return (Problem("tokenizer", f"{version} gives other tokens for the prompt"),)


def _ran(answer: dict[str, Any], here: Ran) -> Ran:
    import numpy as np

    logits = np.frombuffer(base64.b64decode(answer["logits"]), np.float32).reshape(-1, answer["columns"])
    return Ran(
        here.ids, logits, tuple(answer["text"]), answer["dtype"], answer["step"], tuple(answer["absent"])
    )


def _ask(python: Path, asked: dict[str, Any]) -> dict[str, Any]:
    """The answer of other_environment.py."""
    script = Path(__file__).with_name("other_environment.py")
    environment = {
        name: value for name, value in os.environ.items() if name not in ("PYTHONPATH", "PYTHONHOME")
    }
    environment |= {"HF_HUB_OFFLINE": "1", "TRANSFORMERS_VERBOSITY": "error"}
    try:
        done = subprocess.run(
            [os.fspath(python), os.fspath(script)],
            input=json.dumps(asked),
            capture_output=True,
            text=True,
            timeout=_SECONDS,
            env=environment,
            check=False,
        )
    except (OSError, subprocess.TimeoutExpired) as error:
        raise _not_usable(python, str(error)) from error
    if done.returncode:
        raise _not_usable(python, (done.stderr.strip().splitlines() or ["it ended without a word"])[-1])
    found: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return found


def _not_usable(python: Path, found: str) -> CkptconvError:
    return CkptconvError(
        "the other environment cannot run a model",
        where=python,
        found=found[:200],
        wanted="--python, a Python with torch and transformers",
        kind=Kind.ENVIRONMENT,
    )
