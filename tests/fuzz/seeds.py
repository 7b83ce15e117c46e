"""What inputs are made from, where the fixtures have nothing small enough."""

from __future__ import annotations

import json
import pickle
import shutil
from collections.abc import Sequence
from pathlib import Path

from . import mutate

YAML = b"""checkpoint:
  save: /models/run
model:
  _target_: megatron.bridge.models.GPTProvider
  moe_mlp_glu_interleave_size: null
  hidden_size: 64
peft:
  _target_: megatron.bridge.peft.lora.LoRA
  target_modules: &modules
  - linear_qkv
  - linear_proj
  again: *modules
  dim: 8
  alpha: 16
  dropout: 0.0
train: {}
"""


def safetensors(**tensors: tuple[str, list[int], int]) -> bytes:
    header, at = {"__metadata__": {"format": "pt"}}, 0
    for name, (dtype, shape, nbytes) in tensors.items():
        header[name] = {"dtype": dtype, "shape": shape, "data_offsets": [at, at + nbytes]}  # type: ignore[dict-item]
        at += nbytes
    text = json.dumps(header).encode()
    return len(text).to_bytes(8, "little") + text + bytes(at)


def old_form() -> bytes:
    """torch.save's form from before 1.6, and nothing else that begins so: five pickles, then storages."""
    parts = (0x1950A86A20F9469CFC6C, 1001, {"little_endian": True}, {"w": 1}, ["0"])
    return b"".join(pickle.dumps(part, 2) for part in parts) + (3).to_bytes(8, "little") + bytes(12)


def pickles(paths: Sequence[Path]) -> list[bytes]:
    found = []
    for path in paths:
        data = path.read_bytes()
        if data[:2] == b"PK":
            data = next(entry.data for entry in mutate.entries(data) if entry.name.endswith("data.pkl"))
        found.append(data)
    return found


def light(folder: Path, root: Path) -> Path:
    """A folder of verl's without optimizers."""
    target = root / "light" / folder.parent.parent.parent.name
    if not target.exists():
        shutil.copytree(
            folder, target, ignore=shutil.ignore_patterns("optim_*", "extra_state_*", "tokenizer*")
        )
    return target


def shard(rank: int) -> bytes:
    info = {"w": {"saved_offsets": [2 * (rank - 1), 0]}}
    header = {
        "__metadata__": {"DCP_SHARDING_INFO": json.dumps(info), "DCP_VERSION": "1.0"},
        "w": {"dtype": "F32", "shape": [2, 3], "data_offsets": [0, 24]},
    }
    text = json.dumps(header).encode()
    return len(text).to_bytes(8, "little") + text + bytes(24)


def indexed(folder: Path) -> Path:
    """A model folder of two files, with its index."""
    folder.mkdir()
    names = [f"model-0000{number}-of-00002.safetensors" for number in (1, 2)]
    for name, tensor in zip(names, "ab", strict=True):
        (folder / name).write_bytes(safetensors(**{tensor: ("F32", [2], 8)}))
    index = {"metadata": {"total_size": 16}, "weight_map": dict(zip("ab", names, strict=True))}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))
    return folder
