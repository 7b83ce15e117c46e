r"""Writes tiny real FSDP checkpoints; one launch under gloo writes all of a group.

    python -m torch.distributed.run --standalone --nproc-per-node 4 \
        tests/make/fsdp.py --out DIR [--group w4] [--only NAME]
"""

import argparse
import datetime
import gc
import os
import time
from pathlib import Path

os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")
os.environ.setdefault("HF_HUB_DISABLE_PROGRESS_BARS", "1")

import save
import torch
import torch.distributed as dist
import transformers
from torch import nn
from variants import VARIANTS, Variant


def about(variant: Variant, model: nn.Module) -> dict[str, object]:
    """What a reader of the folder wants to know."""
    return {
        "variant": variant.name,
        "shows": variant.shows,
        "world": variant.world,
        "FSDP_version": 1 if save.is_fsdp1(model) else 2,
        "versions": {"torch": torch.__version__, "transformers": transformers.__version__},
    }


def make(variant: Variant, out: Path) -> None:
    """Write one checkpoint; every rank calls this."""
    first = dist.get_rank() == 0
    folder = out / variant.name
    step = folder / f"global_step_{save.STEP}"
    actor = step / "actor"
    actor.mkdir(parents=True, exist_ok=True)

    model = variant.build()
    if variant.before and first:
        variant.before(model, folder)
    whole = {name: t.detach().clone() for name, t in model.state_dict().items()}
    model = variant.shard(model)
    gathered = save.gather(model)  # before saving: FSDP1 on a CPU gives wrong values after it
    save.check_gathered(gathered, whole)
    save.write_ranks(actor, model, variant.keep)
    if first:
        save.write_tensors(folder / "truth.safetensors", gathered)
        save.write_settings(actor, model)
        if variant.after:
            variant.after(actor)
        (folder / "latest_checkpointed_iteration.txt").write_text(str(save.STEP))
        save.write_json(folder / "about.json", about(variant, model))


def main() -> None:
    """Make the variants of this world, or of one group of it."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--group")
    parser.add_argument("--only", nargs="*", metavar="VARIANT")
    options = parser.parse_args()

    torch.set_num_threads(1)
    dist.init_process_group("gloo", timeout=datetime.timedelta(seconds=120))
    for variant in VARIANTS:
        wanted = variant.world == dist.get_world_size() and options.group in (None, variant.group)
        if not wanted or (options.only and variant.name not in options.only):
            continue
        start = time.perf_counter()
        make(variant, options.out)
        gc.collect()
        if dist.get_rank() == 0:
            print(f"{variant.name}: {time.perf_counter() - start:.2f} s", flush=True)
    dist.barrier()
    dist.destroy_process_group()


if __name__ == "__main__":
    main()
