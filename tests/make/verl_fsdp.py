"""Checkpoints written by verl itself on a CPU, and what verl's own merger makes of them.

    pip install torch==2.13.0 transformers==5.23.0 accelerate omegaconf psutil ray pillow orjson \
        python-dateutil pytz tzdata dill xxhash pyarrow codetiming hjson msgpack ninja py-cpuinfo pydantic \
        einops uvicorn fastapi aiohttp
    pip install --no-deps verl==0.9.1 peft tensordict pyvers cloudpickle datasets multiprocess pandas \
        torchdata cachetools
    python tests/make/verl_fsdp.py            # every case, into tests/fixtures
    python tests/make/verl_fsdp.py verl_lora_w2 --out /tmp/fixtures

A case is a folder. `run/` is what `trainer.default_local_dir` would be and holds nothing but verl's files.
`truth/` repeats its tree; for each role it has `truth.safetensors` (the full state dict, gathered by torch
before verl saved) and `verl_merged.sha256.json` (hashes of what `python -m verl.model_merger merge` wrote).
With DEVICE=cuda in the environment, the shards are tensors of a GPU; all ranks use the first one and talk over gloo.
LoRA cases add `base/`, the model before training, and `fused.safetensors`, peft's own merge_and_unload.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import shutil
import subprocess
import sys
import tempfile
from dataclasses import asdict, dataclass
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import stand_in

FIXTURES = Path(__file__).parents[1] / "fixtures"
DEVICE = os.environ.get("DEVICE", "cpu")
PACKAGES = ("torch", "verl", "transformers", "tokenizers", "accelerate", "peft", "torchdata", "safetensors")
SOURCE = "tiny-qwen2"  # relative, so that no machine's path gets into a config

# Nothing here divides by 2 or 4 ranks except the KV projections' 20 rows; `score` has a single row.
VOCAB, HIDDEN, INTERMEDIATE, LAYERS, HEADS, KV_HEADS, HEAD_DIM = 131, 23, 37, 2, 6, 2, 10
LORA_RANK, LORA_ALPHA = 3, 7


@dataclass(frozen=True)
class Case:
    """One run of a trainer: how it is sharded and what it saves."""

    world: int
    fsdp: int
    roles: tuple[str, ...] = ("actor",)
    steps: tuple[int, ...] = (1,)
    contents: tuple[str, ...] = ("model", "extra")
    tied: bool = False
    lora: str = ""  # "", "all" or "only"


CASES = {
    "verl_fsdp2_w4": Case(4, 2, ("actor", "critic"), (1, 2), ("model", "optimizer", "extra")),
    "verl_fsdp1_w2": Case(2, 1, tied=True),
    "verl_lora_w2": Case(2, 2, tied=True, lora="all"),
    "verl_lora_only_w2": Case(2, 2, contents=("model",), lora="only"),
}


# --- the driver: one process, starts the others ------------------------------------------------------


def make(name: str, out: Path) -> None:
    """Writes one case: torchrun for verl's save, then verl's merger on every role of it."""
    case, folder = CASES[name], out / name
    shutil.rmtree(folder, ignore_errors=True)
    (folder / "truth").mkdir(parents=True)
    torchrun = f"{sys.executable} -m torch.distributed.run --standalone --nproc_per_node {case.world}".split()
    env = os.environ | {"OMP_NUM_THREADS": "1", "TOKENIZERS_PARALLELISM": "false", "HF_HUB_OFFLINE": "1"}
    with tempfile.TemporaryDirectory() as scratch:
        call = [*torchrun, str(Path(__file__).resolve()), name, "--out", str(out.resolve())]
        subprocess.run(call, cwd=scratch, env=env, check=True)
        for step in case.steps:
            for role in case.roles:
                merge_with_verl(folder, f"global_step_{step}/{role}", Path(scratch), env)
    (folder / "about.json").write_text(json.dumps(about(name), indent=1) + "\n")


def merge_with_verl(folder: Path, role: str, scratch: Path, env: dict[str, str]) -> None:
    """Runs verl's merger and keeps the hashes of the tensors that it wrote."""
    target = scratch / "merged" / role
    call = f"{sys.executable} -m verl.model_merger merge --backend fsdp".split()
    call += ["--local_dir", str((folder / "run" / role).resolve()), "--target_dir", str(target)]
    done = subprocess.run(call, env=env, cwd=scratch, capture_output=True, text=True)
    files = [file for file in target.rglob("*") if file.is_file()]
    record: dict[str, Any] = {"files": sorted(str(file.relative_to(target)) for file in files)}
    if done.returncode:
        record["error"] = done.stderr.strip().splitlines()[-1].replace(str(target), "TARGET")
    record["tensors"] = {
        str(file.relative_to(target)): hashes(file) for file in sorted(target.rglob("*.safetensors"))
    }
    if (target / "config.json").exists():
        config = json.loads((target / "config.json").read_text())
        record["config"] = {key: config[key] for key in ("architectures", "dtype", "tie_word_embeddings")}
    if (target / "lora_adapter" / "adapter_config.json").exists():
        record["adapter_config"] = json.loads((target / "lora_adapter" / "adapter_config.json").read_text())
        record["adapter_config"]["target_modules"].sort()
    text = json.dumps(record, indent=1, sort_keys=True)
    (folder / "truth" / role / "verl_merged.sha256.json").write_text(text + "\n")


def hashes(file: Path) -> dict[str, dict[str, Any]]:
    """sha256 of the raw bytes, dtype and shape of every tensor of a safetensors file."""
    data = file.read_bytes()
    start = 8 + int.from_bytes(data[:8], "little")
    header = json.loads(data[8:start])
    header.pop("__metadata__", None)
    result = {}
    for name, entry in header.items():
        first, end = (start + offset for offset in entry["data_offsets"])
        digest = hashlib.sha256(data[first:end]).hexdigest()
        result[name] = {"sha256": digest, "dtype": entry["dtype"], "shape": entry["shape"]}
    return result


def about(name: str) -> dict[str, Any]:
    """What wrote the case: versions, command and the case itself."""
    from importlib.metadata import version

    return {
        "command": f"python tests/make/verl_fsdp.py {name}",
        "versions": {"python": sys.version.split()[0]} | {package: version(package) for package in PACKAGES},
        "written_by": {
            "run": "verl.trainer.ppo.ray_trainer.RayPPOTrainer._save_checkpoint and FSDPCheckpointManager",
            "truth.safetensors": "torch get_model_state_dict(full_state_dict=True), before the save",
            "verl_merged.sha256.json": "python -m verl.model_merger merge --backend fsdp",
        },
        "case": asdict(CASES[name]),
    }


# --- a rank ------------------------------------------------------------------------------------------


def run_rank(name: str, out: Path) -> None:
    """Trains a tiny model for a few steps and lets verl save it at the case's steps."""
    if DEVICE != "cpu":
        os.environ["LOCAL_RANK"] = "0"
    stand_in.install()
    register_platform()
    import torch
    import torch.distributed as dist
    from omegaconf import OmegaConf
    from torchdata.stateful_dataloader import StatefulDataLoader
    from verl.trainer.ppo.ray_trainer import RayPPOTrainer

    case, folder = CASES[name], out / name
    dist.init_process_group("gloo")
    rank = dist.get_rank()
    if rank == 0:
        write_source(Path(SOURCE), case)
        if case.lora:
            shutil.copytree(SOURCE, folder / "base")
    dist.barrier()
    workers = {role: Worker(role, case) for role in case.roles}
    batches = StatefulDataLoader(torch.arange(12), batch_size=3)
    feed = iter(batches)
    settings = {
        "trainer": {"default_local_dir": str(folder / "run"), "default_hdfs_dir": None},
        "actor_rollout_ref": {"actor": {"checkpoint": {"async_save": False}}},
    }
    for step in case.steps:
        next(feed)
        for role, worker in workers.items():
            worker.train()
            worker.gather_truth(folder / "truth" / f"global_step_{step}" / role)
        if rank == 0:  # the single controller; the other ranks only answer its two calls
            trainer = SimpleNamespace(
                config=OmegaConf.create(settings),
                global_steps=step,
                actor_rollout_wg=workers["actor"],
                critic_wg=workers.get("critic"),
                use_critic="critic" in workers,
                train_dataloader=batches,
            )
            RayPPOTrainer._save_checkpoint(trainer)
        else:
            for role, worker in workers.items():
                worker.save_checkpoint(str(folder / "run" / f"global_step_{step}" / role), None, step)
    dist.barrier()
    dist.destroy_process_group()


def register_platform() -> None:
    """Tells verl, through its platform plug-in point, which device the ranks use, and that they talk over gloo."""
    import torch
    from verl.plugin.platform.platform_cuda import PlatformCUDA
    from verl.plugin.platform.platform_manager import set_platform

    class Gloo(PlatformCUDA):
        """The CUDA platform whose ranks share one GPU, which NCCL refuses."""

        def communication_backend_name(self) -> str:
            return "gloo"

    class CPU(Gloo):
        """The same with every answer that matters to saving replaced by the CPU's."""

        device_name = vendor_name = "cpu"
        device_module = torch.cpu

        def is_available(self) -> bool:
            return True

        def current_device(self) -> Any:
            return torch.device("cpu")

    set_platform(CPU() if DEVICE == "cpu" else Gloo())


def write_source(folder: Path, case: Case) -> None:
    """The pretrained model that training starts from: bf16, with tokenizer and generation config."""
    import torch
    from transformers import GenerationConfig, Qwen2Config, Qwen2ForCausalLM

    torch.manual_seed(7)
    tokenizer = tiny_tokenizer()
    config = Qwen2Config(
        vocab_size=VOCAB,
        hidden_size=HIDDEN,
        intermediate_size=INTERMEDIATE,
        num_hidden_layers=LAYERS,
        num_attention_heads=HEADS,
        num_key_value_heads=KV_HEADS,
        head_dim=HEAD_DIM,
        max_position_embeddings=64,
        tie_word_embeddings=case.tied,
        bos_token_id=None,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
    )
    model = Qwen2ForCausalLM(config)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.copy_(torch.randn_like(parameter) * 0.1)
    model.generation_config = GenerationConfig(
        do_sample=True, temperature=0.7, top_p=0.8, eos_token_id=tokenizer.eos_token_id
    )
    model.to(torch.bfloat16).save_pretrained(folder)
    tokenizer.save_pretrained(folder)


def tiny_tokenizer() -> Any:
    """Qwen2's kind of byte-pair tokenizer, learnt from two sentences, with a chat template."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
    from transformers import Qwen2Tokenizer

    text = [
        "every rank stores its own rows of every tensor",
        "a merge is a copy plan: the bytes of the shards move once into one model",
    ]
    core = Tokenizer(models.BPE())
    core.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    core.decoder = decoders.ByteLevel()
    special = ["<|endoftext|>", "<|im_start|>", "<|im_end|>"]
    core.train_from_iterator(text, trainers.BpeTrainer(vocab_size=VOCAB - 6, special_tokens=special))
    learnt = json.loads(core.to_str())["model"]
    tokenizer = Qwen2Tokenizer(
        vocab=learnt["vocab"],
        merges=[tuple(pair) for pair in learnt["merges"]],
        eos_token="<|im_end|>",
        pad_token="<|endoftext|>",
        extra_special_tokens=["<|im_start|>"],
    )
    tokenizer.chat_template = (
        "{% for m in messages %}<|im_start|>{{ m.role }} {{ m.content }}<|im_end|>{% endfor %}"
        "{% if add_generation_prompt %}<|im_start|>assistant {% endif %}"
    )
    return tokenizer


class Worker:
    """One role's model and optimizer under verl's checkpoint manager, as verl's FSDP engine builds them."""

    def __init__(self, role: str, case: Case) -> None:
        import torch
        import torch.distributed as dist
        import transformers as hf
        from verl.trainer.config import CheckpointConfig
        from verl.utils.checkpoint.fsdp_checkpoint_manager import FSDPCheckpointManager
        from verl.workers.engine.fsdp.utils import create_device_mesh

        torch.manual_seed(11)
        config = hf.AutoConfig.from_pretrained(SOURCE)
        kind = hf.AutoModelForCausalLM
        if role == "critic":
            kind = hf.AutoModelForTokenClassification
            # as verl's engine sets them for a value model; it leaves `architectures` alone
            config.num_labels, config.classifier_dropout = 1, 0.0
            config.hidden_dropout, config.summary_dropout_prob = "0", 0.0
        model = kind.from_pretrained(SOURCE, config=config, dtype=torch.float32)
        if case.lora:
            model = with_lora(model)
        mesh = create_device_mesh(dist.get_world_size(), -1)
        model.to(DEVICE)
        self.case, self.model = case, shard(model, mesh, case)
        trained = [parameter for parameter in self.model.parameters() if parameter.requires_grad]
        self.optimizer = torch.optim.AdamW(trained, lr=0.02)
        self.scheduler = torch.optim.lr_scheduler.LambdaLR(self.optimizer, lambda step: 1 / (1 + step))
        saves = CheckpointConfig(save_contents=list(case.contents), save_lora_only=case.lora == "only")
        self.manager = FSDPCheckpointManager(
            self.model,
            self.optimizer,
            self.scheduler,
            processing_class=hf.AutoTokenizer.from_pretrained(SOURCE),
            checkpoint_config=saves,
        )

    def train(self) -> None:
        """One optimizer step on random tokens, so that moments and masters are real."""
        import torch

        tokens = torch.randint(VOCAB, (2, 9)).to(DEVICE)
        logits = self.model(input_ids=tokens).logits
        logits.float().square().mean().backward()
        self.optimizer.step()
        self.optimizer.zero_grad()
        self.scheduler.step()

    def gather_truth(self, folder: Path) -> None:
        """The whole model as torch gathers it, written by rank 0; for LoRA also what peft fuses it into."""
        import torch.distributed as dist
        from safetensors.torch import save_file
        from torch.distributed.checkpoint.state_dict import StateDictOptions, get_model_state_dict

        full = get_model_state_dict(self.model, options=StateDictOptions(full_state_dict=True))
        if dist.get_rank() == 0:
            folder.mkdir(parents=True)
            full = {name: tensor.detach().cpu().clone().contiguous() for name, tensor in full.items()}
            save_file(full, folder / "truth.safetensors")
            if self.case.lora:
                save_file(fused(full), folder / "fused.safetensors")
        dist.barrier()

    def save_checkpoint(self, local: str, remote: Any, step: int, max_ckpt_to_keep: Any = None) -> None:
        """What verl's worker does when the trainer calls it by this name."""
        self.manager.save_checkpoint(local, remote, step, max_ckpt_to_keep)


def with_lora(model: Any) -> Any:
    """The model under peft as verl sets it up, with B other than zero so that fusing shows."""
    from peft import LoraConfig, TaskType, get_peft_model

    settings = LoraConfig(
        r=LORA_RANK,
        lora_alpha=LORA_ALPHA,
        target_modules="all-linear",
        task_type=TaskType.CAUSAL_LM,
        init_lora_weights=False,
        bias="none",
    )
    return get_peft_model(model, settings)


def shard(model: Any, mesh: Any, case: Case) -> Any:
    """FSDP1 or FSDP2 over every decoder layer and the root, by verl's own helpers, masters in fp32."""
    import torch
    from torch.distributed.fsdp import FullyShardedDataParallel, ShardingStrategy
    from verl.utils.fsdp_utils import apply_fsdp2, get_fsdp_wrap_policy

    if case.fsdp == 2:
        apply_fsdp2(model, {"mesh": mesh, "reshard_after_forward": True}, {})
        return model
    return FullyShardedDataParallel(
        model,
        device_mesh=mesh,
        device_id=torch.device("cpu") if DEVICE == "cpu" else torch.device(DEVICE, 0),
        sharding_strategy=ShardingStrategy.FULL_SHARD,
        auto_wrap_policy=get_fsdp_wrap_policy(model),
        use_orig_params=False,
    )


def fused(full: dict[str, Any]) -> dict[str, Any]:
    """The adapter merged into its base by peft's merge_and_unload, in fp32."""
    import torch
    from transformers import AutoModelForCausalLM

    model = with_lora(AutoModelForCausalLM.from_pretrained(SOURCE, dtype=torch.float32))
    model.load_state_dict(full)
    plain = model.merge_and_unload()
    return {name: tensor.detach().clone().contiguous() for name, tensor in plain.state_dict().items()}


def main() -> None:
    """Without torchrun: makes the named cases, or all. Under torchrun: is one rank of one case."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("cases", nargs="*", metavar="CASE", help=", ".join(CASES))
    parser.add_argument("--out", type=Path, default=FIXTURES)
    args = parser.parse_args()
    if "RANK" in os.environ:
        run_rank(args.cases[0], args.out)
        return
    for name in args.cases or CASES:
        make(name, args.out)


if __name__ == "__main__":
    main()
