r"""GPT-NeoX's own model and DeepSpeed's own saver on CPUs: pipelines and one sequential model, with tensor parallel ranks.

    GPT_NEOX=CHECKOUT python -m torch.distributed.run --standalone --nproc-per-node W write_neox.py CASE OUT

CHECKOUT is EleutherAI/gpt-neox. Its `GPT2ModelPipe` is built by its own arguments; no step is trained. Values count up, a
step of 2^-12 moves the masters away from the copies, and ranks differ where the model says that they may. The truth is
what CHECKOUT's `tools/ckpts/convert_neox_to_hf.py` makes of the same layers with the masters in place of the copies.
"""

# ruff: noqa: E402
from __future__ import annotations

import json
import os
import re
import shutil
import sys
import types
import zlib
from pathlib import Path
from typing import Any
from unittest.mock import MagicMock

os.environ.update(DS_ACCELERATOR="cpu", HF_HUB_OFFLINE="1", OMP_NUM_THREADS="1")
SOURCE = Path(os.environ["GPT_NEOX"])
sys.path[:0] = [str(SOURCE), str(SOURCE / "tools" / "ckpts")]

import deepspeed
import torch
import torch.distributed as dist
import transformers
from deepspeed.runtime.pipe.topology import PipeModelDataParallelTopology
from deepspeed.utils import safe_get_full_fp32_param
from safetensors.torch import save_file

sys.modules["lm_dataformat"] = sys.modules["ftfy"] = MagicMock()
from megatron import mpu
from megatron.model import GPT2ModelPipe
from megatron.neox_arguments import NeoXArgs

STEP = 7
SIZES: dict[str, Any] = {
    "num_layers": 2,
    "hidden_size": 24,
    "num_attention_heads": 6,
    "seq_length": 16,
    "max_position_embeddings": 32,
    "pos_emb": "rotary",
    "rotary_pct": 1.0,
    "no_weight_tying": True,
    "init_method": "small_init",
    "output_layer_init_method": "wang_init",
    "make_vocab_size_divisible_by": 2,
    "use_cpu_initialization": True,
    "rope_fusion": False,
    "layernorm_fusion": False,
    "bias_gelu_fusion": False,
    "scaled_upper_triang_masked_softmax_fusion": False,
    "train_micro_batch_size_per_gpu": 1,
    "gradient_accumulation_steps": 1,
    "optimizer": {"type": "adam", "params": {"lr": 1e-3}},
    "train_iters": 10,
    "lr_decay_iters": 10,
    "hidden_dropout": 0,
    "attention_dropout": 0,
}
NEOX = {"gpt_j_residual": True, "rotary_pct": 0.5, "mlp_multiple_of": 2}
LLAMA = {
    "num_kv_heads": 2,
    "norm": "rmsnorm",
    "rms_norm_epsilon": 1e-6,
    "activation": "swiglu",
    "intermediate_size": 57,
    "mlp_multiple_of": 2,
    "use_bias_in_attn_linear": False,
    "use_bias_in_norms": False,
    "use_bias_in_mlp": False,
}
CASES: dict[str, dict[str, Any]] = {
    "neox_tp2_pp2_w4": {"arch": "neox", "tp": 2, "pp": 2, **NEOX},
    "neox_llama_tp2_pp1_w4": {"arch": "llama", "tp": 2, "pp": 1, **LLAMA},
    "neox_tied_tp3_pp2_w6": {"arch": "neox", "tp": 3, "pp": 2, **NEOX, "no_weight_tying": False},
    "neox_sequential_tp2_w2": {"arch": "neox", "tp": 2, "pp": 0, **NEOX},
}


def arguments(case: dict[str, Any], stage: int) -> Any:
    """GPT-NeoX's arguments, with DeepSpeed's configuration among them."""
    own = {key: value for key, value in case.items() if key not in ("arch", "tp", "pp")}
    made = {
        "pipe_parallel_size": case["pp"],
        "model_parallel_size": case["tp"],
        "zero_optimization": {"stage": stage},
    }
    args = NeoXArgs.from_dict(
        SIZES | made | {"global_num_gpus": dist.get_world_size(), "precision": "bfloat16"} | own
    )
    args.rank, args.padded_vocab_size = dist.get_rank(), 30
    return args


def fill(model: torch.nn.Module, rank: int) -> None:
    """Values of their own: alike on all tensor parallel ranks, unless the model cuts the parameter or adds it up."""
    with torch.no_grad():
        for name, param in model.named_parameters():
            differs = getattr(param, "model_parallel", False) or re.search(
                r"(dense|4h_to_h|linear2)\.bias$", name
            )
            begin = zlib.crc32(f"{name}{rank if differs else ''}".encode()) % 251
            steps = torch.arange(begin, begin + param.numel()) * 37 % 251
            param.copy_((steps.float() / 1024 - 0.12).reshape(param.shape))


def move_masters(engine: Any) -> None:
    """Masters that are not the copies, copies that are the masters rounded, and moments of one number."""
    for flat in engine.optimizer.single_partition_of_fp32_groups:
        flat.data.add_(2**-12)
        engine.optimizer.state[flat] = {key: torch.full_like(flat, 0.25) for key in ("exp_avg", "exp_avg_sq")}
        engine.optimizer.state[flat]["step"] = torch.tensor(float(STEP))
    for param in engine.module.parameters():
        param.data.copy_(safe_get_full_fp32_param(param))


def write_truth(case: dict[str, Any], args: Any, engine: Any, out: Path, layers: Path) -> None:
    """GPT-NeoX's own conversion, of the masters."""
    import convert_neox_to_hf as own

    held = {name: safe_get_full_fp32_param(param) for name, param in engine.module.named_parameters()}
    held |= dict(engine.module.named_buffers())
    held = {name.replace("tied_modules.embed.", "0."): value for name, value in held.items()}
    tp = mpu.get_model_parallel_rank()
    if mpu.get_data_parallel_rank() == 0:
        layers.mkdir(exist_ok=True, parents=True)
        if case["pp"] == 0:
            torch.save({"module": held}, layers / f"mp_rank_{tp:02d}_model_states.pt")
        numbers = {name.split(".")[0] for name in held} if case["pp"] else set()
        for number in numbers:
            layer = {
                name.partition(".")[2]: value for name, value in held.items() if name.split(".")[0] == number
            }
            torch.save(layer, layers / f"layer_{int(number):02d}-model_{tp:02d}-model_states.pt")
    dist.barrier()
    if dist.get_rank():
        return

    def tokenizer(wanted: Any) -> Any:
        wanted.padded_vocab_size = args.padded_vocab_size
        return types.SimpleNamespace(pad=1, eod=0)

    own.build_tokenizer = tokenizer
    # transformers 5 calls the head of this class lm_head, the Hub's files embed_out
    transformers.GPTNeoXForCausalLM.embed_out = property(lambda self: self.lm_head)
    said = SIZES | {key: value for key, value in case.items() if key not in ("arch", "tp", "pp")}
    said |= {"pipe_parallel_size": case["pp"], "model_parallel_size": case["tp"], "precision": "fp32"}
    said["intermediate_size"] = INNER[case["arch"]]
    model = own.convert(
        str(layers), said, str(out), sequential=case["pp"] == 0, architecture=case["arch"], precision="fp32"
    )
    truth = {name: value.detach().clone().contiguous() for name, value in model.state_dict().items()}
    if case["arch"] == "neox":
        head = truth.pop("lm_head.weight")
        truth |= {"embed_out.weight": head} if case.get("no_weight_tying", True) else {}
    save_file(truth, out / "truth.safetensors")
    model.config.architectures = [type(model).__name__]
    model.config.save_pretrained(out / "run")


INNER = {"neox": 96, "llama": 20}


def main() -> None:
    name, out = sys.argv[1], Path(sys.argv[2])
    case = CASES[name]
    sys.modules["deepspeed.comm.torch"].build_shm_op = lambda: None  # type: ignore[attr-defined]  # no C++ to compile
    deepspeed.init_distributed("gloo", verbose=False)
    torch.cuda.current_device = lambda: "cpu"  # type: ignore[assignment,return-value]
    stages = max(case["pp"], 1)
    topology = PipeModelDataParallelTopology(
        num_pp=stages, num_mp=case["tp"], num_dp=dist.get_world_size() // stages // case["tp"]
    )
    mpu.initialize_model_parallel(case["tp"], topology=topology)
    args = arguments(case, 1)
    model: Any = GPT2ModelPipe(
        neox_args=args, num_tokentypes=0, parallel_output=True, topology=mpu.get_topology()
    )
    if case["pp"] == 0:
        model = model.to_sequential()
    model = model.to(torch.bfloat16)
    fill(model, mpu.get_model_parallel_rank())
    engine, *_ = deepspeed.initialize(
        model=model,
        optimizer=torch.optim.AdamW(model.parameters(), lr=1e-3),
        mpu=mpu if case["pp"] == 0 else None,
        config={
            "train_micro_batch_size_per_gpu": 1,
            "bf16": {"enabled": True},
            "zero_optimization": {"stage": 1},
            "zero_allow_untested_optimizer": True,
            "zero_force_ds_cpu_optimizer": False,
        },
    )
    move_masters(engine)
    engine.global_steps = STEP
    folder = out / "run"
    engine.save_checkpoint(str(folder), tag=f"global_step{STEP}")
    write_truth(case, args, engine, out, out / "layers")
    if dist.get_rank() == 0:
        shutil.rmtree(out / "layers")
        for script in folder.glob("zero_to_*.py"):
            script.write_text("raise SystemExit('this is never run')\n")
        versions = {
            "deepspeed": deepspeed.__version__,
            "torch": torch.__version__,
            "gpt-neox": os.environ.get("GPT_NEOX_COMMIT", ""),
        }
        (out / "about.json").write_text(
            json.dumps({"case": name, "versions": versions, "world": dist.get_world_size()}, indent=1) + "\n"
        )
    dist.barrier()
    os._exit(0)


if __name__ == "__main__":
    main()
