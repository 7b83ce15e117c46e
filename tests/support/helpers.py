"""What several tests share: the list of made checkpoints, reading folders without ckptconv, running the command."""

from __future__ import annotations

import contextlib
import hashlib
import io
import json
import os
import re
import shutil
import signal
import subprocess
import sys
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, NamedTuple
from unittest import mock

from filelock import FileLock
from make.configs import MODEL_TYPES
from make.pack import unpack
from safetensors import deserialize

REPO = Path(__file__).resolve().parents[2]
FIXTURES = REPO / "tests" / "fixtures"
ROLE = "global_step_7/actor"  # where a made checkpoint's rank files lie

ARCHS = tuple(f"arch_{model_type}_w2" for model_type in MODEL_TYPES)
NO_HUB = ("buffers_w2", "fsdp1_sharded_tensor_w4", "smalldims_w4", "smalldims_fsdp1_w4")
LORA = ("lora_w4", "lora_noalpha_w2", "lora_bf16_w2", "lora_only_w2")
VARIANTS = (
    "ws1_fsdp1",
    "ws1_fsdp2",
    "fsdp1_dtensor_w2",
    "fsdp1_sharded_tensor_w2",
    "fsdp1_flat_noorig_w2",
    "shard1_w2",
    "critic_w2",
    "trl_vhead_w2",
    "trl_vhead_bare_w2",
    "fsdp2_w4",
    "fsdp2_tied_w4",
    "fsdp2_untied_but_config_tied_w4",
    "fsdp2_bf16_w4",
    "hsdp_w4",
    "hsdp_oddnames_w4",
    "hsdp_fsdp1_w4",
    "fsdp2_tp_even_w4",
    "fsdp2_tp_uneven_w4",
    "fsdp1_dtensor_w4",
    "qwen3_moe_w4",
    "mixtral_w4",
    "qwen2_5_vl_w4",
    *NO_HUB,
    *LORA,
    *ARCHS,
)
# verl's own fixtures: (folder, step/role)
VERL = tuple(
    (path.parents[3].name, str(path.parent.relative_to(path.parents[2])))
    for path in sorted(FIXTURES.glob("verl_*/truth/*/*/truth.safetensors"))
)


def unpacked(name: str) -> Path:
    """The folder of a packed fixture (`megatron/qwen2_tp2`), unpacked once. Read it, and copy what you want to change."""
    archive = FIXTURES / f"{name}.tar.xz"
    cache = Path(os.environ.get("CKPTCONV_TEST_CACHE") or REPO / ".cache" / "checkpoints") / "fixtures"
    home = cache / f"{hashlib.sha256(archive.read_bytes()).hexdigest()[:16]}"
    cache.mkdir(parents=True, exist_ok=True)
    with FileLock(home.with_suffix(".lock")):
        if not home.is_dir():
            building = home.with_suffix(".building")
            shutil.rmtree(building, ignore_errors=True)
            unpack(archive, building)
            building.rename(home)
    return home / archive.name.removesuffix(".tar.xz")


class Tensor(NamedTuple):
    """A tensor as bytes, so that equal means bit for bit."""

    dtype: str  # safetensors' code
    shape: tuple[int, ...]
    data: bytes


Tensors = dict[str, Tensor]


def parse(data: bytes) -> Tensors:
    """A safetensors file by safetensors' own parser."""
    return {n: Tensor(t["dtype"], tuple(t["shape"]), bytes(t["data"])) for n, t in deserialize(data)}


def tensors(path: Path) -> Tensors:
    """The tensors of a safetensors file, or of all of a folder's own files."""
    files = sorted(path.glob("*.safetensors")) if path.is_dir() else [path]
    assert files, f"no safetensors in {path}"
    found: Tensors = {}
    for file in files:
        for name, tensor in parse(file.read_bytes()).items():
            assert name not in found, f"{name} is in two files"
            found[name] = tensor
    return found


def opened(path: Path, **options: Any) -> Tensors:
    """The tensors that ckptconv reads from a checkpoint."""
    from ckptconv.backends import open_checkpoint
    from ckptconv.read.reader import read_numpy
    from ckptconv.tensors.dtypes import to_safetensors

    stored = open_checkpoint(path, **options).tensors
    return {
        name: Tensor(to_safetensors(t.view.dtype), tuple(t.view.shape), read_numpy(t.view).tobytes())
        for name, t in stored.items()
    }


def assert_equal(found: Mapping[str, Tensor], wanted: Mapping[str, Tensor]) -> None:
    """Names, dtypes, shapes and bytes; the message names tensors instead of dumping them."""
    assert sorted(found) == sorted(wanted)
    assert {n: t[:2] for n, t in found.items()} == {n: t[:2] for n, t in wanted.items()}
    assert [n for n, t in found.items() if t.data != wanted[n].data] == []


def cast(found: Mapping[str, Tensor], dtype: str = "bfloat16") -> Tensors:
    """The same tensors with fp32 cast by torch."""
    import torch

    target = {"bfloat16": "BF16", "float16": "F16"}[dtype]
    new = {}
    for name, tensor in found.items():
        if tensor.dtype != "F32":
            new[name] = tensor
            continue
        whole = torch.frombuffer(bytearray(tensor.data), dtype=torch.float32).to(getattr(torch, dtype))
        new[name] = Tensor(target, tensor.shape, whole.view(torch.int16).numpy().tobytes())
    return new


def largest_difference(found: Mapping[str, Tensor], wanted: Mapping[str, Tensor]) -> float:
    """The largest |difference| over all float32 tensors; names, dtypes and shapes must be equal."""
    import numpy as np

    assert {n: t[:2] for n, t in found.items()} == {n: t[:2] for n, t in wanted.items()}
    assert {t.dtype for t in found.values()} == {"F32"}
    return max(
        float(np.abs(np.frombuffer(t.data, "<f4") - np.frombuffer(wanted[n].data, "<f4")).max())
        for n, t in found.items()
    )


def state(folder: Path) -> dict[str, str]:
    """Every path under a folder, hidden ones too, with its content's hash: what "unchanged" compares."""
    return {
        str(path.relative_to(folder)): hashlib.sha256(path.read_bytes()).hexdigest() if path.is_file() else ""
        for path in sorted(folder.rglob("*"))
    }


def rank_file(folder: Path, rank: int) -> Path:
    """One rank's file of a made checkpoint."""
    (found,) = (folder / ROLE).glob(f"model_world_size_*_rank_{rank}.pt")
    return found


def own_copy(folder: Path, target: Path) -> Path:
    """A made checkpoint's run folder, to change as a test likes."""
    shutil.copytree(folder / "global_step_7", target / "global_step_7")
    shutil.copy(folder / "latest_checkpointed_iteration.txt", target)
    return target


def edit_json(path: Path, **values: Any) -> None:
    """Set keys of a JSON file; None removes them."""
    data = json.loads(path.read_text()) | values
    path.write_text(json.dumps({key: value for key, value in data.items() if value is not None}))


def edit_config(run: Path, **values: Any) -> None:
    """Change the config.json of a copied checkpoint."""
    edit_json(run / ROLE / "huggingface" / "config.json", **values)


def save_ws1(state_dict: Mapping[str, Any], config: Mapping[str, Any], folder: Path) -> Path:
    """A run of one rank, by plain torch.save in verl's layout; returns the run folder."""
    import torch

    role = folder / "global_step_7" / "actor"
    (role / "huggingface").mkdir(parents=True)
    torch.save(dict(state_dict), role / "model_world_size_1_rank_0.pt")
    (role / "huggingface" / "config.json").write_text(json.dumps(config))
    return folder


def many_tensors(folder: Path, count: int = 400, rows: int = 2_000) -> Path:
    """A run of many tensors of 32 kB each, so that small shards take a while; values tell tensors apart."""
    import torch

    tensors = {f"layer_{i}.weight": torch.arange(rows * 4.0).reshape(rows, 4) + i / 7 for i in range(count)}
    return save_ws1(tensors, {"model_type": "odd", "architectures": ["Odd"]}, folder)


class Ran(NamedTuple):
    """How a command ended. text: both streams, escapes and line breaks taken out."""

    code: int
    out: str
    err: str

    @property
    def errors(self) -> list[str]:
        """The lines that begin an error."""
        return [line for line in self.err.splitlines() if line.startswith("error:")]

    @property
    def flat(self) -> str:
        """All that was said on one line, so that wrapping does not matter."""
        return " ".join(f"{self.out} {self.err}".split())


def cli(*args: object, columns: int | None = None, env: Mapping[str, str | None] | None = None) -> Ran:
    """`ckptconv ARGS` in this process, through the same main() that the entry point calls."""
    from ckptconv.__main__ import main

    out, err = io.StringIO(), io.StringIO()
    changed = {"COLUMNS": str(columns) if columns else None, "CKPTCONV_DEBUG": None, **(env or {})}
    kept = {k: v for k, v in os.environ.items() if k not in changed}
    values = kept | {k: v for k, v in changed.items() if v is not None}
    before, code = {number: signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGINT)}, 0
    with (
        mock.patch.dict(os.environ, values, clear=True),
        mock.patch.object(sys, "argv", ["ckptconv", *map(str, args)]),
        contextlib.redirect_stdout(out),
        contextlib.redirect_stderr(err),
    ):
        try:
            main()
        except SystemExit as end:
            code = end.code if isinstance(end.code, int) else 0
        finally:
            for number, handler in before.items():
                signal.signal(number, handler)
    return Ran(code, out.getvalue(), err.getvalue())


def command(*args: object) -> list[str]:
    """The words that start the command in a process of its own."""
    return [sys.executable, "-m", "ckptconv", *map(str, args)]


def environment(**values: str) -> dict[str, str]:
    """This environment, with the repository importable from any folder."""
    return os.environ | {"PYTHONPATH": str(REPO), "PYTHONUNBUFFERED": "1"} | values


def process(*args: object, cwd: Path | None = None, **env: str) -> Ran:
    """`ckptconv ARGS` in a process of its own."""
    done = subprocess.run(
        command(*args), capture_output=True, text=True, timeout=120, cwd=cwd, env=environment(**env)
    )
    return Ran(done.returncode, done.stdout, done.stderr)


def assert_one_error(ran: Ran, says: str, *, code: int = 2, names: Iterable[object] = ()) -> None:
    """One error, in words that fit, with the names a user needs; no traceback, nothing on stdout."""
    assert ran.code == code, ran
    assert len(ran.errors) == 1, ran.err
    assert re.search(says, ran.errors[0]), ran.err
    assert "Traceback" not in ran.err
    assert "unexpected error" not in ran.err
    assert ran.out == ""
    for name in names:
        assert str(name) in ran.err, ran.err
