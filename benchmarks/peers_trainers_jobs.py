"""What the peers of `benchmarks.peers_trainers` run: writers of checkpoints and the trainers' own converters.

python benchmarks/peers_trainers_jobs.py JOB FOLDER [TO]     # in the peers' environment, mostly under torchrun
"""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path
from typing import Any
from unittest.mock import MagicMock

os.environ.update(DS_ACCELERATOR="cpu", HF_HUB_OFFLINE="1", OMP_NUM_THREADS="1", CUDA_VISIBLE_DEVICES="")
HERE = Path(__file__).resolve().parent
SIZES: dict[str, Any] = {
    "hidden_size": 1024,
    "intermediate_size": 2816,
    "num_attention_heads": 16,
    "num_key_value_heads": 4,
    "vocab_size": 32000,
    "max_position_embeddings": 2048,
    "tie_word_embeddings": False,
}
LAYERS = {"fp32": 16, "bf16": 40}  # about 1 GB of each


_BUCKETS = MagicMock(cached_path=lambda path, **options: Path(path))  # OLMo-core's; every file is local
sys.modules |= {"cached_path": _BUCKETS, "cached_path.schemes": _BUCKETS}

import torch  # noqa: E402
import torch.distributed as dist  # noqa: E402


def llama(dtype: torch.dtype) -> Any:
    """A Llama of random weights, the same on every rank."""
    import transformers

    torch.manual_seed(7)
    layers = LAYERS["fp32" if dtype == torch.float32 else "bf16"]
    config = transformers.LlamaConfig(**SIZES, num_hidden_layers=layers, architectures=["LlamaForCausalLM"])
    return transformers.AutoModelForCausalLM.from_config(config, dtype=dtype)


def write_lightning(folder: Path) -> None:
    """Fabric's ModelParallelStrategy: a .ckpt folder."""
    from lightning.fabric import Fabric
    from lightning.fabric.strategies import ModelParallelStrategy
    from torch.distributed.fsdp import fully_shard

    def shard(model: Any, mesh: Any) -> Any:
        for layer in model.model.layers:
            fully_shard(layer, mesh=mesh["data_parallel"])
        fully_shard(model, mesh=mesh["data_parallel"])
        return model

    world = int(os.environ["WORLD_SIZE"])
    strategy = ModelParallelStrategy(shard, data_parallel_size=world, tensor_parallel_size=1)
    fabric = Fabric(accelerator="cpu", devices=world, strategy=strategy)
    fabric.launch()
    model = llama(torch.float32)
    model.config.save_pretrained(folder / "run")
    fabric.save(str(folder / "run" / "step-10.ckpt"), {"model": fabric.setup_module(model), "step": 10})


def convert_lightning(folder: Path, to: Path) -> None:
    from lightning.fabric.utilities.consolidate_checkpoint import _parse_cli_args, _process_cli_args
    from lightning.fabric.utilities.load import _load_distributed_checkpoint

    sys.argv = ["x", str(folder / "run" / "step-10.ckpt"), "--output_file", str(to / "consolidated.ckpt")]
    config = _process_cli_args(_parse_cli_args())
    torch.save(_load_distributed_checkpoint(config.checkpoint_folder), config.output_file)


def engine_of(stage: int) -> Any:
    import deepspeed
    import torch._dynamo  # zero.Init wants it imported

    sys.modules["deepspeed.comm.torch"].build_shm_op = lambda: None  # type: ignore[attr-defined]  # no C++ to compile
    deepspeed.init_distributed("gloo", verbose=False)
    model = llama(torch.bfloat16)
    settings = {
        "train_micro_batch_size_per_gpu": 1,
        "bf16": {"enabled": True},
        "zero_optimization": {"stage": stage, "stage3_gather_16bit_weights_on_model_save": True},
        "zero_allow_untested_optimizer": True,
        "zero_force_ds_cpu_optimizer": False,
    }
    optimizer = torch.optim.SGD(
        model.parameters(), lr=0.1
    )  # keeps no moments: the files are masters and copies
    return deepspeed.initialize(model=model, optimizer=optimizer, config=settings)[0]


def write_deepspeed(folder: Path) -> None:
    engine = engine_of(3)
    engine.save_checkpoint(str(folder / "run"), tag="global_step10")
    engine.module.config.save_pretrained(folder / "run")


def convert_zero_to_fp32(folder: Path, to: Path) -> None:
    from deepspeed.utils.zero_to_fp32 import convert_zero_checkpoint_to_fp32_state_dict as convert

    convert(str(folder / "run"), str(to), safe_serialization=True)


def convert_save_16bit(folder: Path, to: Path) -> None:
    engine = engine_of(3)
    engine.load_checkpoint(str(folder / "run"), load_optimizer_states=True, load_lr_scheduler_states=False)
    engine.save_16bit_model(str(to))


def olmo() -> Any:
    from olmo_core.nn.transformer import TransformerBlockType, TransformerConfig

    options = {"d_model": 1024, "n_layers": 16, "n_heads": 16, "n_kv_heads": 4, "vocab_size": 32000}
    block = TransformerBlockType.reordered_norm
    return TransformerConfig.llama_like(
        **options, qk_norm=True, layer_norm_eps=1e-6, block_name=block, hidden_size_multiplier=1.0
    )


def write_olmo_core(folder: Path) -> None:
    from olmo_core.distributed.checkpoint import save_model_and_optim_state
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.fsdp import fully_shard

    dist.init_process_group("gloo")
    torch.manual_seed(7)
    config = olmo()
    model = config.build(init_device="cpu")
    with torch.no_grad():
        for param in model.parameters():
            param.normal_(0, 0.02)
    fully_shard(model, mesh=init_device_mesh("cpu", (dist.get_world_size(),)))
    step = folder / "run" / "step10"
    save_model_and_optim_state(str(step / "model_and_optim"), model, flatten_optimizer_state=True)
    tokenizer = {"vocab_size": 32000, "eos_token_id": 1, "pad_token_id": 2, "bos_token_id": None}
    experiment = {
        "model": config.as_config_dict(),
        "dataset": {"tokenizer": tokenizer, "sequence_length": 128},
    }
    (step / "config.json").write_text(json.dumps(experiment))


def convert_olmo_core(folder: Path, to: Path) -> None:
    from olmo_core.distributed.checkpoint import load_model_and_optim_state
    from olmo_core.nn.hf.checkpoint import save_hf_model

    model = olmo().build(init_device="cpu")
    load_model_and_optim_state(str(folder / "run" / "step10" / "model_and_optim"), model)
    save_hf_model(to, model.state_dict(), model, save_overwrite=True)


def nanotron() -> Any:
    """tests/make/nanotron/make.py with this model's sizes."""
    sys.path.insert(0, str(HERE.parent / "tests" / "make" / "nanotron"))
    import make

    make.SIZES.update(
        SIZES, num_hidden_layers=LAYERS["bf16"], rope_theta=50000.0, rms_norm_eps=1e-5, attention_bias=False
    )
    make.CASES["bench"] = ("llama", 2, 1, torch.bfloat16, {})
    return make


def write_nanotron(folder: Path) -> None:
    make, phase = nanotron(), "convert" if os.environ["WORLD_SIZE"] == "1" else "save"
    sys.argv = ["make.py", "bench", phase, str(folder)]
    make.main()


def convert_nanotron(folder: Path, to: Path) -> None:
    """Its script, with its model built on the CPU."""
    make = nanotron()
    make.stand_ins.buffers_on_cpu()
    from llama import convert_nanotron_to_hf as script

    def loaded(model_config: Any, checkpoint_path: Path) -> Any:
        context = make.ParallelContext(1, 1, 1)
        parallel = make.ParallelismArgs(dp=1, pp=1, tp=1)
        model = make.built(model_config, context, parallel, torch.bfloat16)
        make.mark_tied_parameters(model, context, parallel)
        make.load_weights(model, context, checkpoint_path)
        return model

    script.load_nanotron_model = loaded
    device = torch.device
    script.torch.device = lambda *args: device("cpu") if args[:1] == ("cuda",) else device(*args)
    script.convert_checkpoint_and_save(folder / "bench" / "run" / "10", to, None, make.LlamaConfig)


if __name__ == "__main__":
    job, *paths = sys.argv[1:]
    globals()[job](*map(Path, paths))
    if job.startswith("write") and dist.is_initialized():
        dist.barrier()
    sys.stdout.flush()
    os._exit(0)
