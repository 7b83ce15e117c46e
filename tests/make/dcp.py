r"""Writes tiny real distributed checkpoints (DCP), as torch, accelerate and trainers built on them do; one launch a world.

python -m torch.distributed.run --standalone --nproc-per-node 2 tests/make/dcp.py --out DIR [--group dcp_w2]
"""

import argparse
import datetime
import gc
import os
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")
os.environ.setdefault("HF_HUB_DISABLE_PROGRESS_BARS", "1")

import lora
import models
import save
import torch
import torch.distributed as dist
import torch.distributed.checkpoint as dcp
from names import world_of
from shard import Sharder, fsdp1, fsdp2, fsdp2_tp, mesh_2d
from torch import nn
from torch.distributed.checkpoint.state_dict import (
    StateDictOptions,
    get_model_state_dict,
    get_optimizer_state_dict,
)
from torch.distributed.checkpoint.stateful import Stateful

Writer = Callable[[nn.Module, Path], None]


@dataclass(frozen=True)
class Variant:
    """One checkpoint: `write` saves the sharded model under a folder; truth.safetensors holds torch's whole tensors."""

    name: str
    build: Callable[[], nn.Module]
    shard: Sharder
    write: Writer
    shows: str
    before: Writer | None = None  # writes reference files from the whole model


def first() -> bool:
    """True on the rank that writes what is not sharded."""
    return dist.get_rank() == 0


def settings(model: nn.Module, folder: Path) -> None:
    """config.json, tokenizer and generation config."""
    config = getattr(model, "_fsdp_wrapped_module", model).config
    if not first():
        return
    if isinstance(config, dict):
        save.write_json(folder / "config.json", config)
    else:
        config.save_pretrained(folder)
        save.write_tokenizer(folder)


def trained(model: nn.Module) -> torch.optim.Optimizer:
    """An AdamW with a state, after one step that changes no weight."""
    optimizer = torch.optim.AdamW(model.parameters(), lr=0.0, weight_decay=0.0)
    for parameter in model.parameters():
        parameter.grad = torch.zeros_like(parameter)
    optimizer.step()
    return optimizer


class App(Stateful):
    """The application state of torch's DCP recipe: model and optimizer in one object."""

    def __init__(self, model: nn.Module) -> None:
        self.model, self.optimizer = model, trained(model)

    def state_dict(self) -> dict[str, Any]:
        return {
            "model": get_model_state_dict(self.model),
            "optim": get_optimizer_state_dict(self.model, self.optimizer),
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        raise NotImplementedError


class Flat(Stateful):
    """torchtitan's OptimizersContainer: a flattened optimizer state dict (torchtitan/components/optimizer.py)."""

    def __init__(self, model: nn.Module) -> None:
        self.model, self.optimizer = model, trained(model)

    def state_dict(self) -> dict[str, Any]:
        options = StateDictOptions(flatten_optimizer_state_dict=True)
        return get_optimizer_state_dict(self.model, self.optimizer, options=options)

    def load_state_dict(self, state: dict[str, Any]) -> None:
        raise NotImplementedError


def plain(model: nn.Module, folder: Path) -> None:
    """The state dict itself, nothing around it."""
    dcp.save(model.state_dict(), checkpoint_id=folder / "step-7")
    settings(model, folder / "step-7")


def alone(model: nn.Module, folder: Path) -> None:
    """A world of one: rank 0 saves whole tensors without the others."""
    if first():
        dcp.save(model.state_dict(), checkpoint_id=folder / "step-7", no_dist=True)
    settings(model, folder / "step-7")


def each_for_itself(model: nn.Module, folder: Path) -> None:
    """Without collectives: every rank writes metadata of its own and there is no whole."""
    dcp.save(model.state_dict(), checkpoint_id=folder / "step-7", use_collectives=False)
    settings(model, folder / "step-7")


def app(model: nn.Module, folder: Path) -> None:
    """torch's recipe, by several threads a rank."""
    writer = dcp.FileSystemWriter(folder / "ckpt", thread_count=3)
    dcp.save({"app": App(model)}, storage_writer=writer)
    settings(model, folder)


def titan(model: nn.Module, folder: Path) -> None:
    """torchtitan's way: the model's keys at the top, other states beside (components/checkpointer/dcp.py)."""
    step = folder / "checkpoint" / "step-7"
    states = {
        "optimizer": Flat(model),
        "lr_scheduler": {"last_epoch": 7, "base_lrs": torch.ones(3)},
        "dataloader": {"dp_rank_0": b"bytes", "world_size": 2},
        "train_state": {"step": torch.tensor(7), "ntokens_seen": torch.tensor(9)},
        **get_model_state_dict(model),
    }
    dcp.save(states, checkpoint_id=step)
    settings(model, folder)


def one_file_each(model: nn.Module, folder: Path) -> None:
    """A file for every tensor, a base model without a head under `model`."""
    writer = dcp.FileSystemWriter(folder / "7", single_file_per_rank=False)
    dcp.save({"model": get_model_state_dict(model)}, storage_writer=writer)
    settings(model, folder / "7")


def asynchronous(model: nn.Module, folder: Path) -> None:
    """async_save of a Lightning-like state dict: every name has the attribute `model.` before it, all under a key."""
    state = {f"model.{name}": value for name, value in get_model_state_dict(model).items()}
    dcp.async_save({"state_dict": state, "global_step": 7}, checkpoint_id=folder / "last").result()
    settings(model, folder / "last")


def not_flattened(model: nn.Module, folder: Path) -> None:
    """A planner that keeps no paths: prefixes are known from the names alone."""
    state = {f"module.{name}": value for name, value in get_model_state_dict(model).items()}
    planner = dcp.DefaultSavePlanner(flatten_state_dict=False)
    dcp.save(state, checkpoint_id=folder / "last", planner=planner)
    settings(model, folder / "last")


def accelerate(beside: bool, full: bool = False, **options: bool) -> Writer:
    """accelerate's own functions, as the HF Trainer calls them; the config beside the weights or in the run's folder.

    full: FULL_STATE_DICT, which rank 0 gathers and saves whole.
    """

    def write(model: nn.Module, folder: Path) -> None:
        from types import SimpleNamespace

        from accelerate import PartialState
        from accelerate.utils.fsdp_utils import save_fsdp_model, save_fsdp_optimizer
        from torch.distributed.fsdp import (
            FullOptimStateDictConfig,
            FullStateDictConfig,
            ShardedOptimStateDictConfig,
            ShardedStateDictConfig,
            StateDictType,
        )

        # What of FullyShardedDataParallelPlugin and Accelerator the two functions read; the real ones want an accelerator.
        PartialState(cpu=True)  # their loggers ask for it
        plugin = SimpleNamespace(
            fsdp_version=1 if save.is_fsdp1(model) else 2,
            state_dict_type=StateDictType.FULL_STATE_DICT if full else StateDictType.SHARDED_STATE_DICT,
            state_dict_config=FullStateDictConfig() if full else ShardedStateDictConfig(),
            optim_state_dict_config=FullOptimStateDictConfig() if full else ShardedOptimStateDictConfig(),
        )
        accelerator = SimpleNamespace(num_processes=dist.get_world_size(), process_index=dist.get_rank())
        step = folder / "checkpoint-7"
        save_fsdp_model(plugin, accelerator, model, str(step), **options)
        save_fsdp_optimizer(plugin, accelerator, trained(model), model, str(step))
        if beside:
            other = fsdp2()(models.SmallDims())
            save_fsdp_model(plugin, accelerator, other, str(step), model_index=1)
        if first():
            save.write_json(step / "trainer_state.json", {"global_step": 7})
            torch.save({}, step / "scheduler.pt")
        settings(model, step if beside else folder)

    return write


def adapter(model: nn.Module, folder: Path) -> None:
    """What the HF Trainer saves of a PEFT model under SHARDED_STATE_DICT: the adapter alone, its settings above."""
    accelerate(False, adapter_only=True)(model, folder)
    if first():
        model.peft_config["default"].save_pretrained(str(folder))


def two(a: str, b: str) -> Writer:
    """Two models under two keys; the second one's values are the first one's plus one."""

    def write(model: nn.Module, folder: Path) -> None:
        state = get_model_state_dict(model)
        other = {name: value + 1 for name, value in state.items()}
        dcp.save({a: state, b: other, "step": torch.tensor(7)}, checkpoint_id=folder / "7")
        settings(model, folder / "7")

    return write


def hugging_face(consolidate: bool, files: int = 2) -> Writer:
    """HuggingFaceStorageWriter: each rank its own safetensors; consolidated into whole ones or not."""

    def write(model: nn.Module, folder: Path) -> None:
        state = get_model_state_dict(model)
        index = {name: 1 + place % files for place, name in enumerate(state)}
        writer = dcp.HuggingFaceStorageWriter(
            str(folder / "hf"),
            fqn_to_index_mapping=index,
            save_distributed=True,
            enable_consolidation=consolidate,
        )
        dcp.save(state, storage_writer=writer)
        settings(model, folder / "hf")

    return write


def automodel(model: nn.Module, folder: Path) -> None:
    """The folders of NeMo-Automodel, from its source: shards in model/, config in model/.hf_metadata/, DCP in optim/."""
    step = folder / "epoch_0_step_7"
    writer = dcp.HuggingFaceStorageWriter(str(step / "model"), save_distributed=True)
    dcp.save(get_model_state_dict(model), storage_writer=writer)
    dcp.save({"optim": get_optimizer_state_dict(model, trained(model))}, checkpoint_id=step / "optim")
    settings(model, step / "model" / ".hf_metadata")
    if first():
        names = dict.fromkeys(models.qwen2().state_dict(), 1)
        save.write_json(step / "model" / ".hf_metadata" / "fqn_to_file_index_mapping.json", names)
        (folder / "LATEST").symlink_to(step.name)


def nemo_rl(model: nn.Module, folder: Path) -> None:
    """The folders of NeMo-RL, from its source: policy/weights/model, an optimizer and a value model beside."""
    step = folder / "step_7"
    dcp.save(get_model_state_dict(model), checkpoint_id=step / "policy" / "weights" / "model")
    optimizer = {"optim": {"optim": get_optimizer_state_dict(model, trained(model))}}
    dcp.save(optimizer, checkpoint_id=step / "policy" / "optimizer" / "optim")
    dcp.save(fsdp2()(models.SmallDims()).state_dict(), checkpoint_id=step / "value" / "weights" / "model")
    settings(model, folder)


def base() -> nn.Module:
    """The same without a head: the names of an AutoModel."""
    from configs import QWEN2
    from transformers import AutoModel

    return models.from_config(AutoModel, "qwen2", **QWEN2)


def tied() -> nn.Module:
    """Head and embedding on one storage."""
    return models.qwen2(tie_word_embeddings=True)


def as_it_is(model: nn.Module) -> nn.Module:
    return model


Q = models.qwen2
VARIANTS = (
    Variant("dcp_alone_w2", tied, as_it_is, alone, "saved by one rank: plain tensors, a tied head"),
    Variant("dcp_each_w2", models.SmallDims, fsdp2(), each_for_itself, "use_collectives=False: no .metadata"),
    Variant("dcp_app_w2", Q, fsdp2(), app, "app.model.*, app.optim.*; three threads a rank"),
    Variant(
        "dcp_titan_w2",
        Q,
        fsdp2(),
        titan,
        "model keys at the top; flattened optimizer, loader, counters beside",
    ),
    Variant("dcp_base_w2", base, fsdp2(), one_file_each, "a file a tensor; a base model, so no lm_head"),
    Variant("dcp_async_w2", Q, fsdp2(), asynchronous, "async_save; state_dict.model.model.*"),
    Variant("dcp_unflattened_w2", Q, fsdp1(), not_flattened, "no planner data; module.model.*"),
    Variant(
        "dcp_accelerate_w2", Q, fsdp2(), accelerate(True), "pytorch_model_fsdp_0 and _1 in checkpoint-7/"
    ),
    Variant(
        "dcp_accelerate_fsdp1_w2", Q, fsdp1(None, True), accelerate(False), "ShardedTensor; config above"
    ),
    Variant("dcp_accelerate_full_w2", Q, fsdp2(), accelerate(True, full=True), "whole, by rank 0; no DCP"),
    Variant("dcp_lora_w2", lora.lora, fsdp2(), adapter, "a LoRA adapter alone", before=lora.write_peft),
    Variant("dcp_actor_critic_w2", Q, fsdp2(), two("actor", "critic"), "two models"),
    Variant("dcp_ema_w2", base, fsdp2(), two("model", "ema"), "a model and its average"),
    Variant("dcp_rivals_w2", Q, fsdp2(), two("left", "right"), "two models of equal rank"),
    Variant("dcp_hf_w2", Q, fsdp2(), hugging_face(False), "safetensors of ranks, for two output files"),
    Variant("dcp_hf_whole_w2", Q, fsdp2(), hugging_face(True), "the same, consolidated; sharded/ beside"),
    Variant("dcp_automodel_w2", Q, fsdp2(), automodel, "NeMo-Automodel's folders"),
    Variant("dcp_nemo_rl_w2", Q, fsdp2(), nemo_rl, "NeMo-RL's folders"),
    Variant("dcp_hsdp_w4", Q, fsdp2(lambda: mesh_2d("dp", "fsdp")), app, "replicas are stored once"),
    Variant("dcp_tp_w4", Q, fsdp2_tp, plain, "FSDP2 and tensor parallelism, uneven"),
    Variant("dcp_small_w4", models.SmallDims, fsdp2(), plain, "dims of 1, 2 and 3 over four ranks"),
    Variant("dcp_buffers_w4", models.Buffers, fsdp2(), plain, "whole and 0-d tensors; several dtypes"),
    Variant("dcp_hf_tp_w4", Q, fsdp2_tp, hugging_face(False, 3), "safetensors of ranks, two dims cut"),
    Variant("dcp_hf_small_w4", models.SmallDims, fsdp2(), hugging_face(False, 1), "ranks without a part"),
)


def make(variant: Variant, out: Path) -> None:
    """Write one checkpoint; every rank calls this."""
    folder = out / variant.name
    folder.mkdir(parents=True, exist_ok=True)
    model = variant.build()
    whole = {name: t.detach().clone() for name, t in model.state_dict().items()}
    if variant.before and first():
        variant.before(model, folder)
    model = variant.shard(model)
    gathered = save.gather(model)
    save.check_gathered(gathered, whole)
    variant.write(model, folder / "run")
    if first():
        save.write_tensors(folder / "truth.safetensors", gathered)
        save.write_json(
            folder / "about.json", {"shows": variant.shows, "versions": {"torch": torch.__version__}}
        )
    dist.barrier()


def main() -> None:
    """Make the variants of this world."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--group")
    parser.add_argument("--only", nargs="*", metavar="VARIANT")
    options = parser.parse_args()

    torch.set_num_threads(1)
    dist.init_process_group("gloo", timeout=datetime.timedelta(seconds=120))
    for variant in VARIANTS:
        if world_of(variant.name) != dist.get_world_size() or (
            options.only and variant.name not in options.only
        ):
            continue
        start = time.perf_counter()
        make(variant, options.out)
        gc.collect()
        if first():
            print(f"{variant.name}: {time.perf_counter() - start:.2f} s", flush=True)
    dist.destroy_process_group()


if __name__ == "__main__":
    main()
