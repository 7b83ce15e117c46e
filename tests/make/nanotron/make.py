"""Real nanotron checkpoints on CPU ranks over gloo: nanotron's models, conversion from Hugging Face and save_weights.

torchrun --nproc-per-node 1 make.py CASE convert TO          # TO/CASE/{whole, hf}
torchrun --nproc-per-node WORLD make.py CASE save TO         # TO/CASE/run; see README.md

A Hugging Face model of random weights becomes nanotron's (examples/llama/convert_hf_to_nanotron.py), is saved with TP 1,
loaded with the case's TP and PP (load_weights, which cuts by each parameter's slices), and saved again.
"""

from __future__ import annotations

import json
import shutil
import sys
from dataclasses import asdict
from pathlib import Path
from typing import Any

import stand_ins
import torch
import torch.distributed as dist

stand_ins.install()

from nanotron.config import ParallelismArgs  # noqa: E402
from nanotron.config.models_config import LlamaConfig, Qwen2Config  # noqa: E402
from nanotron.models import build_model  # noqa: E402
from nanotron.models.llama import LlamaForTraining  # noqa: E402
from nanotron.models.qwen import Qwen2ForTraining  # noqa: E402
from nanotron.parallel import ParallelContext  # noqa: E402
from nanotron.serialize import load_weights, save_weights  # noqa: E402
from nanotron.serialize.metadata import DataStageMetadata, TrainingMetadata, save_meta  # noqa: E402
from nanotron.trainer import mark_tied_parameters  # noqa: E402

SIZES = {
    "hidden_size": 24,
    "intermediate_size": 38,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "vocab_size": 66,
    "max_position_embeddings": 128,
    "rope_theta": 50000.0,
    "rms_norm_eps": 1e-5,
    "attention_bias": False,
}
# case -> nanotron's class, TP, PP, dtype, further settings
CASES: dict[str, tuple[str, int, int, torch.dtype, dict[str, Any]]] = {
    "llama_tp2_pp2": ("llama", 2, 2, torch.bfloat16, {"rope_interleaved": True}),
    "llama_tied_tp2": ("llama", 2, 1, torch.float32, {"tie_word_embeddings": True, "hidden_size": 16}),
    "llama_tied_pp2": ("llama", 1, 2, torch.bfloat16, {"tie_word_embeddings": True}),
    "qwen2_bias_tp2": ("qwen2", 2, 1, torch.bfloat16, {"attention_bias": True}),
    "smollm3_tp1": ("qwen2", 1, 1, torch.bfloat16, {"no_rope_layer": 3, "tie_word_embeddings": True}),
}


def main() -> None:
    name, phase, to = sys.argv[1], sys.argv[2], Path(sys.argv[3]) / sys.argv[1]
    stand_ins.buffers_on_cpu()
    kind, tp, pp, dtype, settings = CASES[name]
    config = (LlamaConfig if kind == "llama" else Qwen2Config)(**{**SIZES, **settings})
    context = ParallelContext(*((1, 1) if phase == "convert" else (tp, pp)), 1)
    parallel = ParallelismArgs(dp=1, pp=context.pipeline_parallel_size, tp=context.tensor_parallel_size)
    model = built(config, context, parallel, dtype)
    mark_tied_parameters(model, context, parallel)
    if phase == "convert":
        convert(config, model, to, dtype, bool(settings.get("rope_interleaved")))
        save_weights(model, context, to / "whole")
    else:
        load_weights(model, context, to / "whole")
        save(config, model, context, to)
        about = {"command": f"make.py {name}", "nanotron": "2411b02", "torch": torch.__version__}
        (to / "about.json").write_text(json.dumps(about, indent=1) + "\n")
    dist.barrier()
    if phase == "save" and dist.get_rank() == 0:
        shutil.rmtree(to / "whole")
    dist.destroy_process_group()


def convert(config: Any, model: Any, to: Path, dtype: torch.dtype, interleaved: bool) -> None:
    """Fill nanotron's model by its own script, and save the truth."""
    from llama import convert_hf_to_nanotron as script

    table = script.get_weight_mapping
    script.get_weight_mapping = lambda *args, **options: table(*args, **options) | biases(config)
    shutil.rmtree(to, ignore_errors=True)
    truth = hugging_face(config, dtype)
    script.convert_hf_to_nt(truth, model, config, interleaved)
    truth.save_pretrained(to / "hf")
    (to / "hf" / "generation_config.json").unlink(missing_ok=True)


def biases(config: Any) -> dict[str, list[str]]:
    """The biases of queries, keys and values, which the script's table lacks."""
    return {
        f"model.decoder.{layer}.pp_block.attn.qkv_proj.bias": [
            f"model.layers.{layer}.self_attn.{part}_proj.bias" for part in "qkv"
        ]
        for layer in range(config.num_hidden_layers)
    }


def save(config: Any, model: Any, context: ParallelContext, to: Path) -> None:
    """The files of a step, in the order of nanotron's trainer.save_checkpoint."""
    step = to / "run" / "10"
    save_weights(model, context, step)
    stage = DataStageMetadata("stage", 1, 80, 8, {"data": 640})
    save_meta(context, step, TrainingMetadata(80, 10, 640, 0, [stage]))
    if dist.get_rank() == 0:
        (to / "run" / "latest.txt").write_text("10")
        (step / "model_config.json").write_text(json.dumps(asdict(config)))


def hugging_face(config: Any, dtype: torch.dtype) -> Any:
    """The same model in transformers, of the class that computes what nanotron's does, with random weights."""
    import transformers

    shared = (
        *("hidden_size", "intermediate_size", "num_hidden_layers", "num_attention_heads", "vocab_size"),
        *("num_key_value_heads", "max_position_embeddings", "rms_norm_eps", "tie_word_embeddings"),
        *("bos_token_id", "eos_token_id", "pad_token_id", "hidden_act", "initializer_range"),
    )
    keys = {key: getattr(config, key) for key in shared}
    keys["rope_parameters"] = {"rope_type": "default", "rope_theta": config.rope_theta}
    if config.attention_bias:
        made = transformers.Qwen2Config(**keys)
    elif getattr(config, "no_rope_layer", None):
        made = transformers.SmolLM3Config(**keys, no_rope_layer_interval=config.no_rope_layer)
    else:
        made = transformers.LlamaConfig(**keys)
    torch.manual_seed(0)
    model = transformers.AutoModelForCausalLM.from_config(made, dtype=dtype)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.randn(parameter.shape).mul_(0.1).to(dtype))
    return model


def built(config: Any, context: ParallelContext, parallel: ParallelismArgs, dtype: torch.dtype) -> Any:
    model = LlamaForTraining if isinstance(config, LlamaConfig) else Qwen2ForTraining
    options = {"config": config, "parallel_context": context, "parallel_config": parallel}
    if isinstance(config, LlamaConfig):
        options["random_states"] = None
    return build_model(lambda: model(**options), context, dtype, device=torch.device("cpu"))


if __name__ == "__main__":
    main()
