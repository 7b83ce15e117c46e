"""kill -9 at random moments, and the same command again. The long form: python -m tests.survival --kills 50 --seed 1."""

from __future__ import annotations

import random
import shutil
import signal
from collections.abc import Callable
from pathlib import Path

import pytest
from support.helpers import FIXTURES, ROLE, save_ws1, state, unpacked
from support.killing import CHANGES, Tally, again, make_case, survive
from support.shim import KILLS, SEED, faults, run

Made = Callable[[str], Path]


def large(folder: Path) -> Path:
    """24 MB by plain torch.save, in blocks that go past the page cache where the disk is one for that."""
    import torch

    tensors = {f"layer_{i}.weight": torch.arange(500_003.0) + i / 7 for i in range(12)}
    return save_ws1(tensors, {"model_type": "odd", "architectures": ["Odd"]}, folder)


def source(kind: str, made: Made, folder: Path) -> list[object]:
    """A checkpoint's folder and flags that cut it into several shards."""
    if kind == "fsdp":
        return [made("qwen3_moe_w4") / ROLE, "--max-shard-size", "20KB"]
    if kind == "megatron":
        return [unpacked("megatron/qwen3_moe_tp2pp2ep2") / "run", "--max-shard-size", "20KB"]
    if kind == "dcp":
        return [made("dcp_titan_w2") / "run", "--max-shard-size", "10KB"]
    if kind == "deepspeed":
        return [unpacked("deepspeed_trainer_z3_w3") / "run", "--max-shard-size", "10KB"]
    return [large(folder / "run"), "--max-shard-size", "4MB", "--dtype", "keep"]


KINDS = ["fsdp", "megatron", "dcp", "deepspeed", "large"]


EVERY = [(kind, existing) for kind in KINDS for existing in (False, True)]
SOME = [("fsdp", False), ("megatron", True), ("dcp", False), ("deepspeed", True), ("large", True)]


@pytest.mark.parametrize(("kind", "existing"), EVERY if KILLS else SOME)
def test_a_merge_that_is_killed_is_whole_in_the_end(
    made: Made, tmp_path: Path, kind: str, existing: bool
) -> None:
    def put_old(target: Path) -> None:
        target.mkdir()
        (target / "config.json").write_text('{"model_type": "older"}')
        (target / "model-00001-of-00002.safetensors").write_bytes(b"older" * 1000)

    rng = random.Random(f"{SEED} {kind} {existing}")
    replaces = put_old if existing else None
    words = source(kind, made, tmp_path)
    tally = Tally()
    wanted = KILLS // 2 or 2
    both = (1, 2) if KILLS else (2,)
    cases = [make_case([*words, "--workers", n], tmp_path / "out", replaces) for n in both]
    for trial in range(wanted * 3):
        case = cases[trial % len(cases)]
        survive(case, rng, min(rng.choice([1, 1, 2, 3]), wanted - tally.kills), tally)
        if tally.kills == wanted:
            break
        again(case, replaces)
    assert tally.kills == wanted
    print(f"\n{kind}, {'overwrite' if existing else 'new target'}: {tally}")


def test_all_steps_killed_at_any_moment_are_whole_in_the_end(tmp_path: Path) -> None:
    """A step is there whole or not at all, however often the run over all of them is killed."""
    rng = random.Random(f"{SEED} steps")
    words = ["merge", FIXTURES / "verl_fsdp2_w4" / "run"]
    more = ["--all-steps", "--max-shard-size", "20KB", "-q"]
    counted = tmp_path / "calls"
    assert (
        run(*words, tmp_path / "alone", *more, env=faults("count", CHANGES, tmp_path, count=counted)).code
        == 0
    )
    whole, out = state(tmp_path / "alone"), tmp_path / "out"
    steps = {name for name in whole if "/" not in name}
    left, ended = KILLS or 3, 0
    while left:
        at = rng.randint(1, int(counted.read_text()))
        ran = run(*words, out, *more, env=faults("kill", CHANGES, tmp_path, at=at))
        left -= ran.code == -signal.SIGKILL
        ended += ran.code == 0
        for step in steps & {path.name for path in out.glob("*")}:
            assert state(out / step) == {
                name.partition("/")[2]: digest
                for name, digest in whole.items()
                if name.startswith(f"{step}/")
            }
        if ran.code == 0 or not left:
            again_ran = run(*words, out, *more)
            assert again_ran.code == 0, again_ran
            assert state(out) == whole
            shutil.rmtree(out)
    print(f"\nall steps: {KILLS or 3} kills, {ended} runs ended before")
