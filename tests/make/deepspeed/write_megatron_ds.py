r"""Megatron-DeepSpeed's own pipeline model and DeepSpeed's own saver on CPUs, with tensor parallel ranks.

    MEGATRON_DEEPSPEED=CHECKOUT python -m torch.distributed.run --standalone --nproc-per-node W write_megatron_ds.py CASE OUT

CHECKOUT is deepspeedai/Megatron-DeepSpeed. Its `GPTModelPipe` is built by its own arguments; no step is trained. Values
count up, and 2^-12 moves the masters away from the copies. The truth is joined by DeepSpeed's ds_to_universal, under the
names that CHECKOUT's tools/hf2megads_weight_converter.py gives Llama.
"""

# ruff: noqa: E402
from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import zlib
from pathlib import Path
from typing import Any

os.environ.update(DS_ACCELERATOR="cpu", HF_HUB_OFFLINE="1", OMP_NUM_THREADS="1")
sys.path.insert(0, os.environ["MEGATRON_DEEPSPEED"])

import deepspeed
import torch
import torch.distributed as dist
import transformers
from safetensors.torch import save_file

sys.modules["deepspeed.comm.torch"].build_shm_op = lambda: None  # type: ignore[attr-defined]
from deepspeed.utils import safe_get_full_fp32_param
from megatron.arguments import core_transformer_config_from_args, parse_args, validate_args
from megatron.core import mpu
from megatron.global_vars import set_args
from megatron.model import GPTModelPipe
from megatron.model.gpt_model import UniversalCheckpointInfo

STEP = 7
CASES = {"megatron_ds_tp2_pp2_w4": (2, 2, True), "megatron_ds_tied_tp2_pp1_w4": (2, 1, False)}


def arguments(tp: int, pp: int, untied: bool, folder: Path) -> Any:
    sys.argv = [
        "x", "--num-layers", "2", "--hidden-size", "24", "--num-attention-heads", "6", "--num-key-value-heads", "2",
        "--ffn-hidden-size", "38", "--seq-length", "16", "--max-position-embeddings", "32", "--micro-batch-size", "1",
        "--tensor-model-parallel-size", str(tp), "--pipeline-model-parallel-size", str(pp), "--bf16", "--swiglu",
        "--normalization", "rmsnorm", "--use-rotary-position-embeddings", "--disable-bias-linear",
        "--no-query-key-layer-scaling",
        "--use-cpu-initialization", "--no-masked-softmax-fusion", "--no-bias-gelu-fusion", "--no-bias-dropout-fusion",
        "--deepspeed", "--zero-stage", "1", "--lr", "1e-3", "--train-iters", "1", "--distributed-backend", "gloo",
        "--no-gradient-accumulation-fusion", *(["--untie-embeddings-and-output-weights"] if untied else []),
    ]  # fmt: skip
    args = parse_args()
    args.padded_vocab_size, args.rank, args.world_size = 30, dist.get_rank(), dist.get_world_size()
    args.deepspeed_config_dict = {}
    validate_args(args, {})
    set_args(args)
    return args


def finish(name: str, out: Path, untied: bool) -> None:
    """The truth, joined by DeepSpeed and named as the checkout's converter names Llama; and what the case is."""
    convert = [sys.executable, "-m", "deepspeed.checkpoint.ds_to_universal", "--num_extract_workers", "1"]
    convert += ["--num_merge_workers", "1", "--input_folder", str(out / f"run/global_step{STEP}")]
    subprocess.run([*convert, "--output_folder", str(out / "universal")], check=True, capture_output=True)
    truth: dict[str, torch.Tensor] = {}
    for path in (out / "universal" / "zero").glob("*/fp32.pt"):
        layer, _, rest = path.parent.name.partition(".")
        value = torch.load(path, weights_only=False)["param"]
        rest = "word_embeddings.weight" if layer == "tied_modules" else rest
        begin = f"model.layers.{int(layer) - 2}." if layer.isdigit() else ""
        if rest == "self_attention.query_key_value.weight":
            groups = value.unflatten(0, (2, 5, 4)).split(
                (3, 1, 1), 1
            )  # of each key: three queries, a key, a value
            truth |= {
                f"{begin}self_attn.{letter}_proj.weight": part.flatten(0, 2)
                for letter, part in zip("qkv", groups, strict=True)
            }
        elif rest == "mlp.dense_h_to_4h.weight":
            truth[f"{begin}mlp.gate_proj.weight"], truth[f"{begin}mlp.up_proj.weight"] = value.chunk(2)
        else:
            truth[NAMES[rest] if rest in NAMES else begin + INNER.get(rest, rest)] = value
    save_file({key: value.clone().contiguous() for key, value in truth.items()}, out / "truth.safetensors")
    shutil.rmtree(out / "universal")
    for script in (out / "run").glob("zero_to_*.py"):
        script.write_text("raise SystemExit('this is never run')\n")
    config = transformers.LlamaConfig(
        hidden_size=24, intermediate_size=38, num_hidden_layers=2, num_attention_heads=6, num_key_value_heads=2,
        vocab_size=29, max_position_embeddings=32, tie_word_embeddings=not untied, architectures=["LlamaForCausalLM"],
    )  # fmt: skip
    config.save_pretrained(out / "run")
    versions = {
        "deepspeed": deepspeed.__version__,
        "torch": torch.__version__,
        "Megatron-DeepSpeed": "4efb479d",
    }
    about = {"case": name, "versions": versions, "world": dist.get_world_size()}
    (out / "about.json").write_text(json.dumps(about, indent=1) + "\n")


NAMES = {
    "word_embeddings.weight": "model.embed_tokens.weight",
    "weight": "model.norm.weight",
    "lm_head.weight": "lm_head.weight",
}
INNER = {
    "self_attention.dense.weight": "self_attn.o_proj.weight",
    "mlp.dense_4h_to_h.weight": "mlp.down_proj.weight",
}


def main() -> None:
    name, out = sys.argv[1], Path(sys.argv[2])
    tp, pp, untied = CASES[name]
    deepspeed.init_distributed("gloo", verbose=False)
    torch.cuda.current_device = lambda: "cpu"  # type: ignore[assignment,return-value]
    args = arguments(tp, pp, untied, out)
    mpu.initialize_model_parallel(tp, pp)
    model = GPTModelPipe(core_transformer_config_from_args(args), num_tokentypes=0, parallel_output=True)
    model._megatron_batch_fn = None
    model = model.to(torch.bfloat16)
    with torch.no_grad():
        for key, param in model.named_parameters():
            cut = getattr(param, "tensor_model_parallel", False)
            begin = zlib.crc32(f"{key}{mpu.get_tensor_model_parallel_rank() if cut else ''}".encode()) % 251
            steps = torch.arange(begin, begin + param.numel()) * 37 % 251
            param.copy_((steps.float() / 1024 - 0.12).reshape(param.shape))
    config = {
        "train_micro_batch_size_per_gpu": 1,
        "bf16": {"enabled": True},
        "zero_optimization": {"stage": 1},
        "zero_allow_untested_optimizer": True,
        "zero_force_ds_cpu_optimizer": False,
    }
    engine, *_ = deepspeed.initialize(
        model=model, optimizer=torch.optim.AdamW(model.parameters(), lr=1e-3), config=config
    )
    for flat in engine.optimizer.single_partition_of_fp32_groups:
        flat.data.add_(2**-12)
        engine.optimizer.state[flat] = {key: torch.full_like(flat, 0.25) for key in ("exp_avg", "exp_avg_sq")}
        engine.optimizer.state[flat]["step"] = torch.tensor(float(STEP))
    for param in engine.module.parameters():
        param.data.copy_(safe_get_full_fp32_param(param))
    engine.global_steps = STEP
    folder = out / "run"
    client = {
        "universal_checkpoint_info": UniversalCheckpointInfo(using_model_pipe=True).get(),
        "iteration": STEP,
    }
    client["universal_checkpoint_info"]["original_vocab_size"] = 29
    engine.save_checkpoint(str(folder), tag=f"global_step{STEP}", client_state=client)
    dist.barrier()
    if dist.get_rank() == 0:
        finish(name, out, untied)
    dist.barrier()
    os._exit(0)


if __name__ == "__main__":
    main()
