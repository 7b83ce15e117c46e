"""One case over model parallel ranks, by DeepSpeed itself: AutoTP, a pipeline, or DeepSpeed's own experts.

python -m torch.distributed.run --standalone --nproc-per-node W write_parallel.py CASE OUT

Values begin as numbers that count up, and one step moves the masters away from the module's copies. The truth is each rank's
`safe_get_full_fp32_param`. Tensor parallel parts are joined as DeepSpeed's own 16-bit export says, and compared with it.
"""

from __future__ import annotations

import os
import re
import sys
from pathlib import Path
from typing import Any

os.environ.update(DS_ACCELERATOR="cpu", HF_HUB_OFFLINE="1", OMP_NUM_THREADS="1")

import deepspeed
import torch
import torch._dynamo  # zero.Init wants it imported
import torch.distributed as dist
from cases import CASES, Case
from deepspeed.utils import safe_get_full_fp32_param
from parallel_models import build, count_up, data_of, layers_of, with_experts
from transformers.utils.output_capturing import _CanRecordRegistry as OutputRegistry
from write import STEP, finish, settings

Tensors = dict[str, torch.Tensor]
DTYPES = {"bf16": torch.bfloat16, "fp16": torch.float16, "fp32": torch.float32}


class Signs(torch.optim.AdamW):
    """AdamW's state, and steps of 2^-11 along the signs of the gradients: masters that pack well and are not the copies."""

    @torch.no_grad()
    def step(self, closure: Any = None) -> None:
        for group in self.param_groups:
            for param in group["params"]:
                if param.grad is None:
                    continue
                state = self.state[param]
                state |= {"step": torch.tensor(float(STEP))}
                state |= {key: torch.full_like(param, 0.25) for key in ("exp_avg", "exp_avg_sq")}
                param.sub_(param.grad.sign(), alpha=2**-11)


def engine_of(case: Case, model: Any) -> Any:
    """The engine, for a whole model or for the layers of a pipeline."""
    made = settings(case) | {"communication_data_type": "fp32", "gradient_clipping": 1.0}
    if case.tp > 1:
        made["tensor_parallel"] = {"autotp_size": case.tp}
    if case.autoep:
        made["expert_parallel"] = {
            "enabled": True,
            "autoep_size": case.ep,
            "preset_model": case.autoep,
            "use_grouped_mm": False,  # torch's grouped product wants sizes that divide by 16
        }
        made["optimizer"] = {"type": "AdamW", "params": {"lr": 1e-3, "torch_adam": True}}
        return deepspeed.initialize(model=model, config=made)[0]
    net = layers_of(model, case.pp) if case.pp > 1 else model
    params: Any = list(net.parameters())
    if case.ep:
        from deepspeed.moe.utils import split_params_into_different_moe_groups_for_optimizer as by_expert

        params = by_expert({"params": params, "name": "all"})
    engine, *_ = deepspeed.initialize(model=net, optimizer=Signs(params, lr=1e-3), config=made)
    return engine


def train(case: Case, engine: Any) -> None:
    """One step."""
    if case.pp > 1:
        engine.train_batch(iter([(data_of(0), data_of(0))] * 4))
    else:
        ids = data_of(dist.get_rank() // case.tp)
        engine.backward(engine(input_ids=ids, labels=ids).loss)
        engine.step()
    engine.global_steps = STEP


def round_masters(case: Case, engine: Any) -> None:
    """Masters on a grid of 2^-13, copies of them, and moments of one number: AdamW's own steps pack as badly as noise."""
    kept = "fp32_partitioned_groups_flat" if case.stage == 3 else "single_partition_of_fp32_groups"
    for flat in getattr(engine.optimizer, kept):
        flat.data.copy_(
            (flat.data * 8192).round() / 8192 + 0.0
        )  # no -0.0: the sum over ranks in the truth loses its sign
    for state in engine.optimizer.state.values():
        for key in ("exp_avg", "exp_avg_sq"):
            state[key].fill_(0.25)
        state["step"].fill_(STEP)
    if case.stage < 3:
        for param in engine.module.parameters():
            param.data.copy_(safe_get_full_fp32_param(param))


def held(case: Case, engine: Any) -> Tensors:
    """This rank's parameters: the masters over its data parallel ranks."""
    found = {}
    for name, param in engine.module.named_parameters():
        value = safe_get_full_fp32_param(param) if case.stage else param.data
        found[name] = value.detach().cpu().clone().contiguous()
    return found


def whole(case: Case, ranks: list[Tensors], export: Tensors) -> Tensors:
    """The model, from every rank's parameters."""
    if case.tp > 1:
        return {name: joined(name, ranks[: case.tp], export) for name in ranks[0]}
    if case.pp > 1:
        return {name: value for each in ranks for name, value in each.items()}
    if case.autoep:
        fused = [name for name in ranks[0] if re.search(r"\.experts\.w[123]$", name)]
        return {
            name: torch.cat([each[name] for each in ranks[: case.ep]]) if name in fused else value
            for name, value in ranks[0].items()
        }
    found: Tensors = {}
    for index, each in enumerate(ranks[: case.ep]):
        for name, value in each.items():
            local = re.match(r"(.*deepspeed_experts\.)(\d+)(\..*)", name)
            if local:
                experts = case.experts // case.ep
                name = f"{local[1]}{index * experts + int(local[2])}{local[3]}"
            found[name] = value
    return found


def joined(name: str, ranks: list[Tensors], export: Tensors) -> torch.Tensor:
    """A parameter over tensor parallel ranks, cut along the dim in which the parts differ from DeepSpeed's own export."""
    parts, shape = [each[name] for each in ranks], export[name].shape
    dims = [dim for dim in range(len(shape)) if parts[0].shape[dim] != shape[dim]]
    made = torch.cat(parts, dims[0]) if dims else parts[0]
    assert torch.equal(made.to(export[name].dtype), export[name]), f"{name} is not as save_16bit_model has it"
    return made


def class_names(case: Case, tensors: Tensors) -> Tensors:
    """The names of the class: those of a pipeline's layers are numbers."""
    if case.pp == 1:
        return tensors
    count, found = case.layers, {}
    if case.model == "neox":
        ends = {"0": "gpt_neox.embed_in.weight", str(count + 4): "embed_out.weight"}
        for name, value in tensors.items():
            place, rest = name.split(".", 1)
            block = f"gpt_neox.layers.{int(place) - 2}.{rest}"
            norm = f"gpt_neox.final_layer_norm.{rest.removeprefix('norm.')}"
            found[ends.get(place) or (norm if place == str(count + 3) else block)] = value
        return found
    for name, value in tensors.items():
        place, rest = name.split(".", 1)
        ends = {
            "tied_modules": "model.embed_tokens.weight",
            "0": "model.embed_tokens.weight",
            str(count + 1): "model.norm.weight",
            str(count + 2): "lm_head.weight",
        }
        found[ends.get(place) or f"model.layers.{int(place) - 1}.{rest}"] = value
    return found


def main() -> None:
    name, out = sys.argv[1], Path(sys.argv[2])
    case = CASES[name]
    sys.modules["deepspeed.comm.torch"].build_shm_op = lambda: None  # type: ignore[attr-defined]  # no C++ to compile
    # DeepSpeed 0.19.8 looks a class up by its name; transformers 5.23 by a model.
    OutputRegistry.get = lambda self, key, default=None: (  # type: ignore[method-assign,assignment,misc]
        dict.get(self, key if isinstance(key, str) else str(type(key))) or default or {}
    )
    deepspeed.init_distributed("gloo", verbose=False)
    deepspeed.accelerator.get_accelerator().is_fp16_supported = lambda: True
    model = build(case, DTYPES[case.dtype])
    if case.ep and not case.autoep:
        with_experts(case, model, DTYPES[case.dtype])
    count_up(model, dist.get_rank() % case.ep if case.ep else 0)
    engine = engine_of(case, model)
    train(case, engine)
    if case.autoep:
        round_masters(case, engine)
    folder = out / "run" / case.folder
    engine.save_checkpoint(str(folder), tag=case.tag)
    export = engine._consolidated_16bit_state_dict() if case.tp > 1 else None
    ranks: list[Any] = [None] * dist.get_world_size()
    dist.all_gather_object(ranks, held(case, engine))
    if dist.get_rank() == 0:
        truth = class_names(case, whole(case, ranks, export or {}))
        finish(name, folder, out, model, {key: value.clone() for key, value in truth.items()})
    dist.barrier()
    os._exit(0)


if __name__ == "__main__":
    main()
