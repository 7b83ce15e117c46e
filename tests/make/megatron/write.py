"""One rank of a case, for torchrun: the model of ./hf in Megatron-Core, saved into ./run as a trainer saves it.

Runs in the case's folder, so that no absolute path gets into the files. Megatron-Core's writer starts processes
that import this file again: nothing but constants belongs to its top level.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import re
import sys
from pathlib import Path
from typing import Any

HF, RUN, STEP = "hf", Path("run"), 10


def main() -> None:
    from cases import CASES, Case

    case: Case = CASES[sys.argv[1]]
    sys.path.insert(0, str(Path(__file__).parent / "stand_ins"))
    if case.source:
        import gpu_only  # noqa: F401
    import cpu  # noqa: F401
    import torch.distributed as dist
    from megatron.core import mpu
    from megatron.core.tensor_parallel.random import model_parallel_cuda_manual_seed

    dist.init_process_group("gloo")
    mpu.initialize_model_parallel(
        case.tp,
        case.pp,
        case.vpp or None,
        expert_model_parallel_size=case.ep,
        expert_tensor_parallel_size=case.etp,
    )
    model_parallel_cuda_manual_seed(0)
    from bridges import load

    loaded = load(case)
    optimizer = make_optimizer(loaded) if case.optimizer else None
    models = without_te(loaded) if case.spec == "local" else loaded.models
    Writer(case, loaded, models, optimizer).write()
    if case.lora:
        export_lora(loaded)
    dist.barrier()
    dist.destroy_process_group()


def make_optimizer(loaded: Any) -> Any:
    """A distributed Adam after one step; the weights are put back after it."""
    import torch
    from megatron.core.optimizer import OptimizerConfig, get_megatron_optimizer

    config = OptimizerConfig(
        optimizer="adam", lr=1e-4, bf16=True, params_dtype=torch.bfloat16, use_distributed_optimizer=True
    )
    optimizer = get_megatron_optimizer(config, loaded.wrapped)
    for model in loaded.wrapped:
        for parameter in model.parameters():
            parameter.main_grad.normal_()
    optimizer.step()
    loaded.native.load_weights(loaded.models, HF)
    optimizer.reload_model_params()
    return optimizer


def export_lora(loaded: Any) -> None:
    """What Megatron-Bridge makes of the adapters, on their own and merged into the weights."""
    import torch.distributed as dist
    from safetensors.torch import save_file

    alone = {name: tensor.clone() for name, tensor in loaded.native.export_adapter_weights(loaded.wrapped)}
    merged = {
        name: tensor.clone() for name, tensor in loaded.native.export_hf_weights(loaded.wrapped, cpu=True)
    }
    if dist.get_rank() == 0:
        save_file(alone, "adapter.safetensors")
        save_file(merged, "merged.safetensors")


def without_te(loaded: Any) -> list[Any]:
    """The same weights in layers of Megatron-Core's local spec."""
    import torch
    from mbridge.core.util import unwrap_model
    from megatron.core.models.gpt.gpt_layer_specs import get_gpt_decoder_block_spec

    bridge, config = loaded.native, loaded.config
    config.persist_layer_norm = config.moe_grouped_gemm = config.sequence_parallel = False
    bridge._get_transformer_layer_spec = lambda vp=None: get_gpt_decoder_block_spec(
        config, use_transformer_engine=False, vp_stage=vp
    )
    bridge.has_vp_stage = True
    local = [unwrap_model(each) for each in bridge.get_model()]
    for source, target in zip(loaded.models, local, strict=True):
        weights = source.state_dict()
        for name, tensor in target.state_dict().items():
            if isinstance(tensor, torch.Tensor) and "_extra_state" not in name:
                tensor.copy_(next(weights[each] for each in te_names(name) if each in weights))
    return local


def te_names(name: str) -> list[str]:
    """What a tensor of the local spec may be called in a model built of Transformer Engine's layers."""
    names = [
        name,
        name.replace("input_layernorm.", "self_attention.linear_qkv.layer_norm_"),
        name.replace("pre_mlp_layernorm.", "mlp.linear_fc1.layer_norm_"),
    ]
    expert = re.match(r"(.*experts\.)local_experts\.(\d+)\.(linear_fc\d)\.weight", name)
    return [*names, f"{expert[1]}{expert[3]}.weight{expert[2]}"] if expert else names


class Writer:
    """Saves as Megatron-LM's and verl's own checkpoint functions do, which want a GPU or a whole trainer."""

    def __init__(self, case: Any, loaded: Any, models: list[Any], optimizer: Any) -> None:
        import torch.distributed as dist
        from megatron.core import mpu

        self.case, self.loaded, self.models, self.optimizer = case, loaded, models, optimizer
        self.keys = ["model"] if len(models) == 1 else [f"model{index}" for index in range(len(models))]
        self.rank = dist.get_rank()
        self.dp = mpu.get_data_parallel_group(with_context_parallel=True)

    def write(self) -> None:
        getattr(self, self.case.layout)()

    def note(self, file: str, text: str) -> None:
        """A text file that rank 0 writes below ./run."""
        if self.rank == 0:
            (RUN / file).parent.mkdir(parents=True, exist_ok=True)
            (RUN / file).write_text(text)

    # -- torch_dist

    def metadata(self) -> dict[str, Any]:
        """What sharded_state_dict is told, as verl tells it; Megatron-Core 0.13 was told nothing."""
        if self.case.core.startswith("0.13"):
            return {}
        told: dict[str, Any] = {"singleton_local_shards": False, "chained_optim_avoid_prefix": True}
        if self.case.optimizer:
            told["distrib_optim_sharding_type"] = self.case.optimizer
        return told | self.case.metadata

    def sharded(self) -> dict[str, Any]:
        """The model's and the optimizer's sharded state dicts."""
        told = self.metadata()
        given = {"metadata": told | {"dp_cp_group": self.dp}} if told else {}
        state = {
            key: each.sharded_state_dict(**given) for key, each in zip(self.keys, self.models, strict=True)
        }
        if self.optimizer:
            state["optimizer"] = self.optimizer.sharded_state_dict(state, **given)
        return state

    def rng(self) -> list[dict[str, Any]]:
        """The states of random number generators, as both trainers keep them."""
        import numpy as np
        import torch
        from megatron.core import tensor_parallel
        from newest import NEW

        if self.case.family in NEW:  # zeros, which take no space in a packed file
            blank = {
                "random_rng_state": (3, (0,) * 625, None),
                "np_rng_state": ("MT19937", np.zeros(624, np.uint32), 0),
            }
            zeros = {
                "torch_rng_state": torch.zeros(5056, dtype=torch.uint8),
                "cuda_rng_state": torch.zeros(16),
            }
            return [blank | zeros | {"rng_tracker_states": {}}]
        return [
            {
                "random_rng_state": random.Random(0).getstate(),
                "np_rng_state": np.random.RandomState(0).get_state(),
                "torch_rng_state": torch.get_rng_state(),
                "cuda_rng_state": torch.cuda.get_rng_state(),
                "rng_tracker_states": tensor_parallel.get_cuda_rng_tracker().get_states(),
            }
        ]

    def sharded_rng(self) -> Any:
        from megatron.core import mpu
        from megatron.core.dist_checkpointing.mapping import ShardedObject

        sizes = mpu.get_pipeline_model_parallel_world_size(), mpu.get_tensor_model_parallel_world_size()
        place = mpu.get_pipeline_model_parallel_rank(), mpu.get_tensor_model_parallel_rank()
        replica = mpu.get_data_parallel_rank(with_context_parallel=True)
        return ShardedObject("rng_state", self.rng(), sizes, place, replica_id=replica)

    def save(self, state: dict[str, Any], folder: Path) -> None:
        """megatron.core.dist_checkpointing.save, as both trainers call it."""
        import torch.distributed as dist
        from megatron.core import dist_checkpointing
        from megatron.core.dist_checkpointing.serialization import get_default_save_sharded_strategy
        from megatron.core.dist_checkpointing.strategies.fully_parallel import (
            FullyParallelSaveStrategyWrapper,
        )

        folder.mkdir(parents=True, exist_ok=True)
        dist.barrier()
        strategy = FullyParallelSaveStrategyWrapper(get_default_save_sharded_strategy("torch_dist"), self.dp)
        told = {"content_metadata": self.metadata()} if self.metadata() else {}
        dist_checkpointing.save(
            state, str(folder), sharded_strategy=strategy, validate_access_integrity=True, **told
        )

    def mlm(self) -> None:
        """Megatron-LM's save_checkpoint with --ckpt-format torch_dist."""
        state = {
            "args": self.args(),
            "checkpoint_version": 3.0,
            "iteration": STEP,
            **self.sharded(),
            "rng_state": self.sharded_rng(),
            "num_floating_point_operations_so_far": 0,
        }
        self.save(state, RUN / f"iter_{STEP:07d}")
        self.note("latest_checkpointed_iteration.txt", str(STEP))

    def bridge(self) -> None:
        """Megatron-Bridge's own save_megatron_model."""
        self.loaded.native.save_megatron_model(self.loaded.wrapped, str(RUN))

    def verl(self) -> None:
        """verl up to 0.8: everything in dist_ckpt/."""
        self.save({**self.sharded(), "rng_state": self.sharded_rng()}, self.actor() / "dist_ckpt")
        self.beside("huggingface")

    def verl_v2(self) -> None:
        """verl's manifest schema 2 with use_dist_checkpointing: a folder each for model, optimizer and extra."""
        state = self.sharded()
        if self.case.lora:
            state = {key: {n: t for n, t in part.items() if ".adapter." in n} for key, part in state.items()}
        optimizer = state.pop("optimizer", None)
        self.save(state, self.actor() / "model/dist_ckpt")
        if optimizer is not None:
            self.save({"optimizer": optimizer}, self.actor() / "optimizer/dist_ckpt")
        self.save({"rng_state": self.sharded_rng()}, self.actor() / "extra/dist_ckpt")
        self.beside("model/huggingface" if self.case.lora else "")
        self.note(f"global_step_{STEP}/actor/ckpt_contents.json", manifest(self.case, optimizer is not None))

    # -- one file per rank

    def mlm_legacy(self) -> None:
        """Megatron-LM's save_checkpoint with --ckpt-format torch."""
        import torch

        if self.owns_file():
            state = {
                "args": self.args(),
                "checkpoint_version": 3.0,
                "iteration": STEP,
                **{
                    key: each.state_dict_for_save_checkpoint()
                    for key, each in zip(self.keys, self.models, strict=True)
                },
                "rng_state": self.rng(),
                "num_floating_point_operations_so_far": 0,
            }
            torch.save(state, self.rank_folder(RUN / f"iter_{STEP:07d}") / "model_optim_rng.pt")
        self.note("latest_checkpointed_iteration.txt", str(STEP))

    def verl_legacy(self) -> None:
        """verl 0.3: a list of one state dict for each model chunk."""
        import torch

        if self.owns_file():
            torch.save(
                [each.state_dict() for each in self.models],
                self.rank_folder(self.actor() / "model") / "model.pt",
            )
        self.beside("huggingface")

    def owns_file(self) -> bool:
        """Whether this rank writes: the first of those that hold the same weights."""
        from megatron.core import mpu

        return mpu.get_data_parallel_rank() == 0 or mpu.get_expert_data_parallel_rank() == 0

    def rank_folder(self, base: Path) -> Path:
        from megatron.core import mpu

        name = f"mp_rank_{mpu.get_tensor_model_parallel_rank():02d}"
        if self.case.pp > 1:
            name += f"_{mpu.get_pipeline_model_parallel_rank():03d}"
        if self.case.ep > 1:
            name += f"_{mpu.get_expert_model_parallel_rank():03d}"
        (base / name).mkdir(parents=True, exist_ok=True)
        return base / name

    # -- what lies beside the weights

    def actor(self) -> Path:
        return RUN / f"global_step_{STEP}" / ("critic" if self.case.critic else "actor")

    def beside(self, huggingface: str) -> None:
        """verl's notes about the step and the model."""
        self.note("latest_checkpointed_iteration.txt", str(STEP))
        if self.rank == 0:
            if huggingface:
                self.loaded.hf_config.save_pretrained(self.actor() / huggingface)
            (self.actor() / "transformer_config.json").write_text(
                json.dumps(plain(vars(self.loaded.config)), indent=2)
            )

    def args(self) -> argparse.Namespace:
        """The part of Megatron-LM's arguments that says what the model is."""
        import enum

        import torch
        from families import COMPARED
        from newest import NEW

        config, hf = self.loaded.config, self.loaded.hf_config
        plain_types = (str, int, float, bool, list, tuple, dict, torch.dtype, enum.Enum, type(None))
        values = {name: value for name, value in vars(config).items() if isinstance(value, plain_types)}
        values = {
            name: value for name, value in values.items() if "hook" not in name
        }  # with_lora's is no data
        if self.case.family in NEW:
            values = {name: values[name] for name in COMPARED if name in values}
        values |= {
            "padded_vocab_size": self.loaded.padded_vocab_size,
            "ckpt_format": "torch" if self.case.layout.endswith("legacy") else "torch_dist",
            "use_dist_ckpt": not self.case.layout.endswith("legacy"),
            "iteration": STEP,
            "seq_length": 64,
            "group_query_attention": True,
            "swiglu": bool(config.gated_linear_unit),
            "world_size": self.case.world,
            "position_embedding_type": "rope",
            "untie_embeddings_and_output_weights": not hf.tie_word_embeddings,
            "transformer_impl": "transformer_engine" if self.case.spec == "te" else "local",
        }
        return argparse.Namespace(**values)


def plain(values: dict[str, Any]) -> dict[str, Any]:
    """What of a config verl writes as JSON."""
    import contextlib
    import enum

    import torch

    kept: dict[str, Any] = {}
    for name, value in values.items():
        if isinstance(value, (torch.dtype, enum.Enum)):
            kept[name] = str(value)
        else:
            with contextlib.suppress(TypeError):
                json.dumps(value)
                kept[name] = value
    return kept


def manifest(case: Any, optimizer: bool) -> str:
    """verl's ckpt_contents.json (MegatronCheckpointManager._build_checkpoint_manifest)."""
    shards = {"format": "megatron_dist_checkpoint"}
    contents: dict[str, Any] = {
        "model": {"path": "model/dist_ckpt", **shards, "backend": "dist_checkpointing"},
        "rng_state": {"path": "extra/dist_ckpt", **shards, "key": "rng_state"},
        "transformer_config": {"path": "transformer_config.json", "format": "json"},
    }
    directories = {
        "model/dist_ckpt": "Megatron dist_checkpointing shards for model weights "
        "(or PEFT adapter shards when mbridge is enabled).",
        "extra/dist_ckpt": "Megatron dist_checkpointing shards for extra state (rng_state).",
    }
    if optimizer:
        contents["optimizer"] = {"path": "optimizer/dist_ckpt", **shards}
        directories["optimizer/dist_ckpt"] = (
            "Megatron dist_checkpointing shards for the optimizer state (includes lr_scheduler when present)."
        )
    saved = ["model", "optimizer", "extra"] if optimizer else ["model", "extra"]
    values = {
        "schema_version": 2,
        "framework": "megatron",
        "role": "critic" if case.critic else "actor",
        "arch": "Qwen2ForCausalLM",
        "global_step": STEP,
        "world_size": case.world,
        "backend": {"has_bridge": False, "use_dist_checkpointing": True, "peft": False},
        "save_contents": saved,
        "contents": contents,
        "directories": directories,
        "saved_any_dist_ckpt": True,
    }
    return json.dumps(values, indent=2, sort_keys=True)


if __name__ == "__main__":
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    main()
