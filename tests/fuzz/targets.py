"""What is fuzzed: each reader by itself, and whole checkpoints of every backend with one file exchanged for another."""

from __future__ import annotations

import shutil
import sys
from collections.abc import Sequence
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from support.helpers import FIXTURES, unpacked

from ckptconv.backends import open_checkpoint
from ckptconv.backends.huggingface import torch_bin
from ckptconv.backends.huggingface.weight_files import choose
from ckptconv.backends.megatron.lora import lora_settings
from ckptconv.backends.megatron.settings import read_settings
from ckptconv.commands.inspect import inspect
from ckptconv.commands.merge.run import merge
from ckptconv.formats import json as json_file
from ckptconv.formats.crcs import check_crcs
from ckptconv.formats.safetensors import read_header
from ckptconv.formats.stand_ins import TensorRecord
from ckptconv.formats.torch_zip import open_torch_zip
from ckptconv.formats.unpickle import safe_load
from ckptconv.models import installed  # noqa: F401  # before imports are forbidden
from ckptconv.publish import assets
from ckptconv.read.reader import read_numpy

from . import mutate, seeds
from .mutate import Mutate
from .target import Bytes, Folder, Target
from .trainer_targets import trainer_targets

_SMALL = 1 << 16  # bytes of a tensor that is read as well


def _read_checkpoint(folder: Path) -> None:
    """Everything that is known of it, and the elements of some small tensors."""
    found = open_checkpoint(folder)
    for tensor in list(found.tensors.values())[:3]:
        if tensor.view.nbytes <= _SMALL:
            read_numpy(tensor.view)


def _inspect(folder: Path) -> None:
    inspect(folder)


def _plan(folder: Path) -> None:
    merge(folder, folder.parent / "never", dry_run=True)


def _read_torch(path: Path) -> None:
    file = open_torch_zip(str(path))
    values = file.root.values() if isinstance(file.root, dict) else [file.root]
    for value in values:
        if isinstance(value, TensorRecord):
            view = file.view(value)
            if view.nbytes <= _SMALL:
                read_numpy(view)
    for _ in check_crcs(str(path)):
        pass


def _read_bin(path: Path) -> None:
    found = torch_bin.read_state_dict(path)
    for view in list(found.tensors.values())[:3]:
        if view.nbytes <= _SMALL:
            read_numpy(view)


def _read_json(path: Path) -> None:
    json_file.read_table(path)
    assets.read_config(path)


def _read_header(path: Path) -> None:
    for view in list(read_header(path)[0].values())[:3]:
        if view.nbytes <= _SMALL:
            read_numpy(view)


def _yaml(path: Path) -> None:
    lora_settings(path.parent)
    read_settings(path.parent, path.parent)


def targets(root: Path) -> list[Target]:
    """All of them. root: an empty folder, in which everything is read."""
    verl = FIXTURES / "verl_fsdp2_w4" / "run" / "global_step_1" / "actor"
    flat = FIXTURES / "verl_fsdp1_w2" / "run" / "global_step_1" / "actor"
    dist = unpacked("megatron/qwen2_tp2")
    legacy = unpacked("megatron/qwen3_moe_local_mlm_legacy")
    fsdp3 = unpacked("megatron_fsdp/qwen2_fsdp3")
    z2, z3, uni = (unpacked(f"deepspeed_{name}") for name in ("z2_fp32_w4", "z3_fp32_w3", "universal_z1_w2"))
    torch_files = [
        *sorted(verl.glob("model_*.pt"))[:1],
        *sorted(flat.glob("model_*.pt"))[:1],
        *(legacy / "run").rglob("*.pt"),
        *(z2 / "run").rglob("*_states.pt"),
        *(dist / "run").rglob("common.pt"),
        *sorted((uni / "run").rglob("fp32.pt"))[:3],
    ]
    headers = [
        seeds.safetensors(
            a=("F32", [2, 3], 24), b=("BF16", [4], 8), c=("I64", [], 8), d=("F8_E4M3", [0, 5], 0)
        ),
        seeds.safetensors(**{f"model.layers.{i}.w": ("U8", [3, 1], 3) for i in range(12)}),
    ]
    texts = [
        (dist / "hf" / "config.json").read_bytes(),
        (dist / "run" / "global_step_10" / "actor" / "transformer_config.json").read_bytes(),
        (dist / "run" / "global_step_10" / "actor" / "dist_ckpt" / "metadata.json").read_bytes(),
    ]
    whole = [path.read_bytes() for path in torch_files]
    pt, metadata = mutate.torch_zip, mutate.pickled
    return [
        Bytes(
            "pickle",
            300,
            seeds.pickles([*torch_files, *(dist / "run").rglob(".metadata")]),
            mutate.pickled,
            _load,
            None,
        ),
        Bytes("torch zip", 100, whole, pt, _read_torch, root / "zip" / "x.pt"),
        Bytes(
            "torch bin",
            60,
            [*whole, seeds.old_form()],
            anyhow_or(pt),
            _read_bin,
            root / "bin" / "pytorch_model.bin",
        ),
        Bytes(
            "safetensors", 250, headers, mutate.safetensors, _read_header, root / "safe" / "model.safetensors"
        ),
        Bytes("json", 150, texts, mutate.jsoned, _read_json, root / "json" / "config.json"),
        Folder(
            "index",
            10,
            seeds.indexed(root / "index seed"),
            root / "i" / "index",
            {"*.index.json": mutate.jsoned},
            _index,
        ),
        Bytes("yaml", 60, [seeds.YAML], mutate.yamled, _yaml, root / "yaml" / "run_config.yaml"),
        *_folders(
            root, verl, flat, dist, legacy, fsdp3, {"z2": z2, "z3": z3, "uni": uni}, pt, metadata, headers
        ),
        *trainer_targets(root),
    ]


def anyhow_or(how: Mutate) -> Mutate:
    """The same, and bytes anyhow for what is no zip."""
    return lambda data, random: how(data, random) if data[:2] == b"PK" else mutate.anyhow(data, random)


def _load(data: bytes) -> object:
    return safe_load(data, "x")


def _index(folder: Path) -> None:
    choose(folder)
    open_checkpoint(folder, backend="huggingface")


def _folders(
    root: Path, verl: Path, flat: Path, dist: Path, legacy: Path, fsdp3: Path, zero: dict[str, Path], pt: Mutate,
    metadata: Mutate, headers: Sequence[bytes],
) -> list[Target]:  # fmt: skip
    js, raw = mutate.jsoned, mutate.anyhow
    megatron = {
        ".metadata": metadata,
        "**/.metadata": metadata,
        "**/*.distcp": raw,
        "**/common.pt": pt,
        "**/*.json": js,
    }
    hub = root / "hub seed"
    hub.mkdir()
    shutil.copy(dist / "hf" / "config.json", hub)
    (hub / "model.safetensors").write_bytes(headers[0])
    shards = root / "shards seed"
    shards.mkdir()
    for rank in (1, 2):
        (shards / f"shard-0000{rank}-model-00001-of-00001.safetensors").write_bytes(seeds.shard(rank))
    step = dist / "run" / "global_step_10" / "actor"
    found: list[Target] = [
        Folder(
            "fsdp",
            6,
            seeds.light(verl, root),
            root / "1/fsdp/actor",
            {"model_*": pt, "*.json": js},
            _read_checkpoint,
        ),
        Folder(
            "fsdp1", 4, seeds.light(flat, root), root / "2/fsdp1/actor", {"model_*": pt}, _read_checkpoint
        ),
        Folder("megatron", 5, step, root / "3/megatron/actor", megatron, _read_checkpoint),
        Folder(
            "megatron legacy", 6, legacy / "run", root / "4/legacy/run", {"**/*.pt": pt}, _read_checkpoint
        ),
        Folder("megatron fsdp", 4, fsdp3 / "run", root / "5/mfsdp/run", megatron, _read_checkpoint),
        Folder(
            "hub", 8, hub, root / "9/hub/model", {"*.safetensors": mutate.safetensors, "*.json": js}, _inspect
        ),
        Folder(
            "rank shards",
            8,
            shards,
            root / "10/hf/shards",
            {"*.safetensors": mutate.safetensors},
            _read_checkpoint,
        ),
        Folder(
            "plan",
            2,
            seeds.light(verl, root),
            root / "11/plan/actor",
            {"model_*": pt, "*/config.json": js},
            _plan,
        ),
    ]
    for number, (name, folder) in enumerate(zero.items()):
        files = {"**/*_states.pt": pt, "latest*": raw, "**/fp32.pt": pt}
        home = root / str(6 + number) / name / "run"
        found.append(
            Folder(
                f"deepspeed {name}",
                5,
                folder / "run",
                home,
                {k: v for k, v in files.items() if any((folder / "run").glob(k))},
                _read_checkpoint,
            )
        )
    return found
