"""Tiny models in MaxText's layout, by MaxText's own conversion functions and Orbax's own saver, over four CPU devices.

    MAXTEXT=CHECKOUT python tests/make/maxtext/make.py CASE OUT      # OUT/{run/checkpoints/7/items, hf}

Real: `param_mapping.py` of a checkout of AI-Hypercomputer/maxtext at e591f30c (which arrays there are, and how each is
turned), Orbax's CheckpointManager, its database and the mesh. Not real: MaxText's model and trainer; numbers are made here.
hf/ has what MaxText's functions for its exporter make of the saved arrays. Needed: jax 0.10.2, orbax-checkpoint 0.12.8,
safetensors.
"""

from __future__ import annotations

import importlib.util
import json
import os
import shutil
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

os.environ["XLA_FLAGS"] = "--xla_force_host_platform_device_count=4"

import jax
import ml_dtypes
import numpy as np
import orbax.checkpoint as ocp
from jax.sharding import Mesh, NamedSharding, PartitionSpec
from safetensors.numpy import save_file

SIZES = {
    "hidden_size": 24,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 10,
    "num_hidden_layers": 3,
    "vocab_size": 52,
    "max_position_embeddings": 64,
    "rms_norm_eps": 1e-5,
    "hidden_act": "silu",
}
DENSE = {"intermediate_size": 44}
# case -> (class, MaxText's function names, settings, dtype, scanned, Orbax's options)
CASES: dict[str, tuple[str, str, dict[str, Any], Any, bool, dict[str, Any]]] = {
    "llama": ("LlamaForCausalLM", "LLAMA31", DENSE | {"tie_word_embeddings": False}, np.float32, True, {}),
    "llama_unscanned": (
        "LlamaForCausalLM",
        "LLAMA31",
        DENSE | {"tie_word_embeddings": False},
        ml_dtypes.bfloat16,
        False,
        {"use_zarr3": True},
    ),
    "qwen2": (
        "Qwen2ForCausalLM",
        "QWEN",
        DENSE | {"tie_word_embeddings": True, "head_dim": 6},
        ml_dtypes.bfloat16,
        True,
        {},
    ),
    "qwen3_moe": (
        "Qwen3MoeForCausalLM",
        "QWEN",
        {
            "num_experts": 4,
            "num_experts_per_tok": 2,
            "moe_intermediate_size": 20,
            "intermediate_size": 40,
            "norm_topk_prob": True,
            "decoder_sparse_step": 1,
            "mlp_only_layers": [],
            "tie_word_embeddings": False,
        },
        np.float32,
        True,
        {"use_ocdbt": False},
    ),
}
TYPES = {"LlamaForCausalLM": "llama", "Qwen2ForCausalLM": "qwen2", "Qwen3MoeForCausalLM": "qwen3_moe"}


def maxtext() -> Any:
    path = Path(os.environ["MAXTEXT"]) / "src/maxtext/checkpoint_conversion/utils/param_mapping.py"
    spec = importlib.util.spec_from_file_location("param_mapping", path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def shapes(config: dict[str, Any], kind: str) -> dict[str, tuple[int, ...]]:
    """The last keys of MaxText's arrays of one layer -> their shapes, as its layers declare them."""
    h, q, k, d = (
        config[key] for key in ("hidden_size", "num_attention_heads", "num_key_value_heads", "head_dim")
    )
    i, e, m = config["intermediate_size"], config.get("num_experts", 0), config.get("moe_intermediate_size")
    found = {
        "query-kernel": (h, q, d),
        "key-kernel": (h, k, d),
        "value-kernel": (h, k, d),
        "out-kernel": (q, d, h),
        "layer_norm-scale": (h,),
        "mlp-wi_0-kernel": (h, i),
        "mlp-wi_1-kernel": (h, i),
        "mlp-wo-kernel": (i, h),
        "gate-kernel": (h, e),
        "moe_block-wi_0": (e, h, m),
        "moe_block-wi_1": (e, h, m),
        "moe_block-wo": (e, m, h),
        "token_embedder-embedding": (config["vocab_size"], h),
        "decoder_norm-scale": (h,),
        "logits_dense-kernel": (h, config["vocab_size"]),
    }
    if kind == "qwen2":
        found |= {"query-bias": (q, d), "key-bias": (k, d), "value-bias": (k, d)}
    if kind == "qwen3_moe":
        found |= {"query_norm-scale": (d,), "key_norm-scale": (d,)}
    return found


def numbers(shape: tuple[int, ...], seed: int, dtype: Any) -> Any:
    """Values of their own for each array, few enough to pack well."""
    made = np.random.default_rng(seed).integers(-9, 9, shape).astype(np.float32) / 128
    return made.astype(dtype)


def hub_shape(name: str, shape: tuple[int, ...]) -> tuple[int, ...]:
    """The Hub's shape of one layer's array, which MaxText's functions ask for."""
    if name.endswith("out-kernel"):
        return shape[2], shape[0] * shape[1]
    if name.endswith("-bias"):
        return (shape[0] * shape[1],)
    if len(shape) == 3:
        return shape[1] * shape[2], shape[0]
    return shape if name.endswith("embedding") else shape[::-1]


def main() -> None:
    case, out = sys.argv[1], Path(sys.argv[2]).absolute()
    architecture, family, settings, dtype, scanned, options = CASES[case]
    kind = TYPES[architecture]
    config = {"architectures": [architecture], "model_type": kind, "dtype": "bfloat16", "rope_theta": 10000.0}
    config |= SIZES | settings
    module, given = maxtext(), SimpleNamespace()
    table = getattr(module, f"{family}_MAXTEXT_TO_HF_PARAM_MAPPING")(config, given, scanned)
    hooks = getattr(module, f"{family}_MAXTEXT_TO_HF_PARAM_HOOK_FN")(
        config, given, scanned, saving_to_hf=True
    )
    known, state, hub = shapes(config, kind), {}, {}
    for seed, (name, targets) in enumerate(table.items()):
        shape = next((known[end] for end in known if name.endswith(end)), None)
        if shape is None or (name.endswith("logits_dense-kernel") and config["tie_word_embeddings"]):
            continue
        stacked = isinstance(targets, list)
        layers = config["num_hidden_layers"]
        whole = (shape[0], layers, *shape[1:]) if stacked and scanned else shape
        state[name] = numbers(whole, seed, dtype)
        calls = hooks.get(name, [])
        for target, part in parts(targets, state[name], scanned):
            for call in calls if isinstance(calls, list) else [calls]:
                part = call(part, hub_shape(name, shape if part.ndim == len(shape) else shape[1:]))
            hub[target] = np.ascontiguousarray(np.asarray(part))
    shutil.rmtree(out, ignore_errors=True)
    save(out / "run" / "checkpoints", state, options)
    (out / "hf").mkdir(parents=True)
    (out / "hf" / "config.json").write_text(json.dumps(config, indent=1) + "\n")
    save_file(hub, out / "hf" / "model.safetensors")
    about = {
        "command": f"make.py {case}",
        "maxtext": "e591f30c",
        "orbax": ocp.__version__,
        "jax": jax.__version__,
    }
    (out / "about.json").write_text(json.dumps(about, indent=1) + "\n")


def parts(targets: Any, array: Any, scanned: bool) -> list[tuple[str, Any]]:
    """The Hub's name and the array of each tensor that one array of MaxText holds."""
    if not isinstance(targets, list):
        return [(targets, array)]
    if isinstance(targets[0], list):  # experts, then layers
        return [
            (name, array[expert, layer])
            for expert, names in enumerate(targets)
            for layer, name in enumerate(names)
        ]
    return [(name, array[:, i] if scanned else array[i]) for i, name in enumerate(targets)]


def save(run: Path, state: dict[str, Any], options: dict[str, Any]) -> None:
    """A train state on a mesh of 2 × 2 devices: the first dim over one, the last over the other, where they divide."""
    mesh = Mesh(np.array(jax.devices()).reshape(2, 2), ("fsdp", "tensor"))
    tree: dict[str, Any] = {}
    for name, array in state.items():
        *above, last = name.split("-")
        first = "fsdp" if array.shape[0] % 2 == 0 else None
        end = "tensor" if array.ndim > 1 and array.shape[-1] % 2 == 0 else None
        spec = (
            PartitionSpec(first, *[None] * (array.ndim - 2), end) if array.ndim > 1 else PartitionSpec(first)
        )
        here = tree
        for key in above:
            here = here.setdefault(key, {})
        here[last] = jax.device_put(array, NamedSharding(mesh, spec))
    whole = {
        "step": np.int32(7),
        "params": tree,
        "opt_state": {"mu": {"decoder_norm": np.zeros(24, np.float32)}},
    }
    handler = ocp.PyTreeCheckpointHandler(**options)
    with ocp.CheckpointManager(run, item_names=("items",), item_handlers={"items": handler}) as manager:
        for step in (5, 7):
            saved = whole if step == 7 else {"step": np.int32(5), "params": {"params": {}}}
            manager.save(step, args=ocp.args.Composite(items=ocp.args.PyTreeSave(saved)))
            manager.wait_until_finished()
    for mark in run.rglob("commit_success.txt"):  # it holds the machine's path
        mark.write_text("")


if __name__ == "__main__":
    main()
