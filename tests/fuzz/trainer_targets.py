"""More of what is fuzzed: the trainers' own files and settings, and the plans that are made from them."""

from __future__ import annotations

import contextlib
import json
import shutil
from collections.abc import Callable
from pathlib import Path

from support.helpers import FIXTURES, unpacked

from ckptconv.backends import open_checkpoint
from ckptconv.backends.dcp.metadata import read_metadata
from ckptconv.backends.megatron.settings import yaml_section
from ckptconv.commands.inspect import inspect
from ckptconv.commands.merge.run import merge
from ckptconv.errors import CkptconvError
from ckptconv.formats import json as json_file
from ckptconv.models.nanotron import config as nanotron
from ckptconv.models.olmo_core import config as olmo_core
from ckptconv.read.reader import read_numpy

from . import mutate, seeds
from .mutate import Mutate
from .target import Bytes, Folder, Target

_SMALL = 1 << 16  # bytes of a tensor that is read as well
_META = {"**/.metadata": mutate.pickled}
_JSON = {"**/*.json": mutate.jsoned}
_STATES = {"**/*_states.pt": mutate.torch_zip}
_SAFE = {"**/*.safetensors": mutate.safetensors}
# name, share, the fixture's archive, the part of it, its files
_CHECKPOINTS: tuple[tuple[str, float, str, str, dict[str, Mutate]], ...] = (
    ("nanotron", 8, "nanotron_llama_tp2_pp2", "run", _SAFE | _JSON | {"latest.txt": mutate.anyhow}),
    ("nanotron, tied", 4, "nanotron_llama_tied_pp2", "run", _SAFE | _JSON),
    ("olmo core", 6, "olmo_core_olmo3", "run", _META | _JSON),
    ("olmo core, experts", 4, "olmo_core_flex_olmo", "run", _META | _JSON),
    ("nemo", 6, "nemo_qwen2_tp2", "run/checkpoints", _META | _JSON | {"**/model.yaml": mutate.yamled}),
    ("torchtitan", 6, "torchtitan_0_3", "llama/run/checkpoint", _META | {"**/*.distcp": mutate.anyhow}),
    ("lightning", 4, "lightning_full", "run", _JSON | {"**/*.ckpt": mutate.torch_zip}),
    ("deepspeed tp", 6, "deepspeed_tp2_z1_w2", "run", _STATES),
    ("deepspeed pipe", 4, "deepspeed_pipe2_z1_w4", "run", _STATES),
    ("deepspeed moe", 4, "deepspeed_moe_z1_ep2_w2", "run", _STATES),
    ("deepspeed autoep", 4, "deepspeed_autoep_z1_ep2_w2", "run", _STATES | _JSON),
    ("megatron experts", 3, "megatron/qwen3_moe_tp2pp2ep2", "run", _META | _JSON),
    ("megatron hybrid", 2, "megatron/nemotron_h_mb", "run", _JSON | {"**/*.yaml": mutate.yamled}),
    ("megatron lora", 3, "megatron/lora_v2", "run", _META | _JSON),
)


def trainer_targets(root: Path) -> list[Target]:
    """Those of trainers. root: an empty folder, in which everything is read."""
    found: list[Target] = _files(root)
    for number, (name, share, fixture, inside, files) in enumerate(_CHECKPOINTS):
        seed = root / "seed" / str(number)
        shutil.copytree(unpacked(fixture) / inside, seed / "run")
        config = unpacked(fixture) / inside.partition("run")[0] / "hf" / "config.json"
        if config.is_file():
            (seed / "hf").mkdir()
            shutil.copy(config, seed / "hf")
        inputs = {f"run/{pattern}": how for pattern, how in files.items()} | {"hf/*.json": mutate.jsoned}
        present = {pattern: how for pattern, how in inputs.items() if any(seed.glob(pattern))}
        found.append(Folder(name, share, seed, root / "t" / str(number), present, _all))
    verl = seeds.light(FIXTURES / "verl_fsdp2_w4" / "run" / "global_step_1" / "actor", root)
    # Rank files share the form of their zip directories, as torch.save writes it; one of them has another one.
    found.append(
        Folder("zip places", 20, verl, root / "places" / "actor", {"model_*": mutate.zip_structure}, _read)
    )
    found.append(
        Folder("adapter", 8, _adapter(root / "adapters"), root / "ad" / "adapter", _SAFE | _JSON, _inspect)
    )
    return found


def _files(root: Path) -> list[Target]:
    """Readers of one file."""
    home = unpacked("nanotron_llama_tp2_pp2") / "run"
    smollm = unpacked("nanotron_smollm3_tp1") / "run"
    nano = [next(folder.rglob("model_config.json")) for folder in (home, smollm)]
    olmo = [
        next(unpacked(f"olmo_core_{it}").glob("run/step*/config.json"))
        for it in ("olmo3", "flex_olmo", "qwen3")
    ]
    dcp = [
        next(unpacked(it).rglob(".metadata"))
        for it in ("torchtitan_0_3", "olmo_core_olmo2", "nemo_qwen2_tp2")
    ]
    nemo = [next(unpacked("nemo_qwen2_tp2").rglob("model.yaml"))]
    slices = sorted(home.rglob("*rank-0-of-2.safetensors"))[:4]

    def one(
        name: str, share: float, paths: list[Path], how: Mutate, read: Callable[[Path], object]
    ) -> Target:
        return Bytes(
            name, share, [path.read_bytes() for path in paths], how, read, root / name / paths[0].name
        )

    return [
        one("dcp metadata", 200, dcp, mutate.pickled, _metadata),
        one("nanotron config", 120, nano, mutate.jsoned, _nanotron),
        one("olmo core config", 120, olmo, mutate.jsoned, _olmo),
        one("nemo yaml", 80, nemo, mutate.yamled, _yaml),
        one("nanotron slices", 100, slices, mutate.safetensors, _header),
    ]


def _adapter(folder: Path) -> Path:
    """A PEFT adapter of one module."""
    folder.mkdir(parents=True)
    at = "base_model.model.model.layers.0.self_attn.q_proj.lora_"
    factors = {f"{at}A.weight": ("F32", [2, 4], 32), f"{at}B.weight": ("F32", [6, 2], 48)}
    (folder / "adapter_model.safetensors").write_bytes(seeds.safetensors(**factors))
    settings = {
        **{
            "peft_type": "LORA",
            "r": 2,
            "lora_alpha": 4,
            "target_modules": ["q_proj"],
            "base_model_name_or_path": "a/b",
        },
        **{"rank_pattern": {"q": 2}, "alpha_pattern": {}, "use_rslora": False, "modules_to_save": None},
        **{
            "trainable_token_indices": [1, 2],
            "target_parameters": [],
            "use_dora": False,
            "peft_version": "0.18.0",
        },
    }
    (folder / "adapter_config.json").write_text(json.dumps(settings))
    return folder


def _all(folder: Path) -> None:
    """The checkpoint, some of its tensors, the plan of a merge by its own config, and by the model's config next to it."""
    _read(folder / "run")
    with contextlib.suppress(CkptconvError):
        merge(folder / "run", folder / "never", dry_run=True)
    if (folder / "hf").is_dir():
        merge(folder / "run", folder / "never", dry_run=True, config=folder / "hf")


def _inspect(folder: Path) -> None:
    inspect(folder)


def _read(folder: Path) -> None:
    for tensor in list(open_checkpoint(folder).tensors.values())[:3]:
        if tensor.view.nbytes <= _SMALL:
            read_numpy(tensor.view)


def _metadata(path: Path) -> None:
    read_metadata(path.parent)


def _nanotron(path: Path) -> None:
    nanotron.hub_config(json_file.read_table(path))


def _olmo(path: Path) -> None:
    olmo_core.hub_config(json_file.read_table(path))


def _yaml(path: Path) -> None:
    for section in ("config", "model", "peft"):
        yaml_section(path, section)


def _header(path: Path) -> None:
    from ckptconv.backends.nanotron.slices import is_sliced, parts, unsharded_shape
    from ckptconv.formats.safetensors import read_header

    views, metadata = read_header(path)[:2]
    for view in views.values():
        if is_sliced(metadata):
            parts(metadata, unsharded_shape(metadata, path), view, path)
