"""Real FSDP2 checkpoints of as many model types as can be built small, merged, and loaded by both transformers generations.

    LAUNCH="NEW -m torch.distributed.run --standalone --nproc-per-node 2"
    $LAUNCH tools/sweep_models.py write DIR         # transformers 5: models that are built from their configs
    NEW tools/sweep_models.py merge DIR             # ckptconv's environment
    NEW tools/sweep_models.py load DIR new
    OLD tools/sweep_models.py load DIR old
    NEW tools/sweep_models.py report DIR [--write]  # with --write into docs/models.md

    OLD tools/sweep_models.py publish DIR2          # transformers 4: folders under the names of the published files
    $LAUNCH tools/sweep_models.py reload DIR2       # transformers 5 loads them; then merge, load, report

NEW and OLD are interpreters with the newest transformers and with 4.57. `write` makes each model from a small config with
random weights, keeps what save_pretrained writes and the logits of a row of tokens, shards it with fully_shard over two
ranks and saves verl's rank files. `publish` saves each model with transformers 4, whose files have the names and config.json
of those on the Hub, in bfloat16; `reload` is `write` for what from_pretrained makes of them. `merge` compares names, shapes,
dtypes and values with what save_pretrained wrote, or with the published folder. `load` loads each merged folder and compares
the logits (1e-5 of the largest).
"""

from __future__ import annotations

import gc
import json
import sys
from collections import Counter
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parents[1]))
from tools.small_models import built, classes, logits

_PAGE = Path(__file__).parents[1] / "docs/models.md"
_BAD = ("missing_keys", "unexpected_keys", "mismatched_keys")


def publish(folder: Path, only: list[str]) -> None:
    """Write a folder for each model type as transformers 4 saves it, and its logits in float32."""
    import torch

    torch.set_num_threads(1)
    for kind, name in classes().items():
        home = folder / kind
        if (home / "published.json").exists() or (only and kind not in only):
            continue
        model, why = built(kind, name, "bfloat16")
        try:
            if model is None:
                raise ValueError(why)
            model.save_pretrained(home / "published")
            whole, why = _loaded(home / "published", name, "float32")
            if whole is None:
                raise ValueError(why)
            torch.save(logits(whole), home / "logits.pt")
        except Exception as error:  # whatever a class makes of a small config
            print(f"{kind}: not published: {error}"[:200].replace("\n", " "), flush=True)
            continue
        (home / "published.json").write_text(json.dumps(name))
        print(f"{kind}: {name}", flush=True)


def write(folder: Path, only: list[str], *, published: bool = False) -> None:
    """Write the checkpoints; run with one process per rank.

    Args:
        folder: where each model type has a folder.
        only: these model types; all if it is empty.
        published: load what `publish` wrote, instead of building from a config.
    """
    import torch
    import torch.distributed as dist
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.fsdp import fully_shard

    dist.init_process_group("gloo")
    torch.set_num_threads(1)
    rank, world = dist.get_rank(), dist.get_world_size()
    mesh = init_device_mesh("cpu", (world,), mesh_dim_names=("fsdp",))
    for kind, name in (_published(folder) if published else classes()).items():
        home = folder / kind
        if (home / "done").exists() or (only and kind not in only):
            continue
        model, why = _reloaded(home, name) if published else built(kind, name)
        ready = torch.tensor([model is not None], dtype=torch.int32)
        dist.all_reduce(ready, op=dist.ReduceOp.MIN)
        if not ready.item() or model is None:
            if rank == 0:
                print(f"{kind}: not built: {why}", flush=True)
                (home / "not_read.json").write_text(json.dumps(why)) if published else None
            continue
        if rank == 0:
            (home / "actor/huggingface").mkdir(parents=True, exist_ok=True)
            model.config.architectures = [name]
            if not published:
                torch.save(logits(model), home / "logits.pt")
                model.save_pretrained(home / "truth")
            model.config.save_pretrained(home / "actor/huggingface")
            settings = {"FSDP_version": 2, "world_size": world}
            (home / "actor/fsdp_config.json").write_text(json.dumps(settings))
        try:
            fully_shard(model, mesh=mesh)
            dist.barrier()
            torch.save(model.state_dict(), home / f"actor/model_world_size_{world}_rank_{rank}.pt")
            dist.barrier()
            if rank == 0:
                (home / "done").write_text(name)
                print(f"{kind}: {name}", flush=True)
        except Exception as error:
            print(f"{kind}: not sharded: {type(error).__name__} {error}"[:200], flush=True)
        del model
        gc.collect()
    dist.destroy_process_group()


def _published(folder: Path) -> dict[str, str]:
    files = sorted(folder.glob("*/published.json"))
    return {file.parent.name: json.loads(file.read_text()) for file in files}


def _reloaded(home: Path, name: str) -> tuple[Any, str]:
    """The model that this transformers makes of a published folder, or why it does not read it rightly."""
    model, why = _loaded(home / "published", name, "auto")
    if model is None or why:
        return None, why
    whole, _ = _loaded(home / "published", name, "float32")
    why = _compared(home, whole)
    return (None, why) if why.startswith("logits differ") else (model, "")


def _loaded(folder: Path, name: str, dtype: str) -> tuple[Any, str]:
    """The model of a folder, and which keys do not fit; None for a class that stops."""
    import torch
    import transformers

    cls = getattr(transformers, name, None)
    if cls is None:
        return None, "no such class"
    wanted = dtype if dtype == "auto" else getattr(torch, dtype)
    try:
        model, info = cls.from_pretrained(
            folder, output_loading_info=True, torch_dtype=wanted, local_files_only=True
        )
    except Exception as error:  # whatever a class makes of a folder
        return None, f"stops: {type(error).__name__} {error}"[:200].replace("\n", " ")
    bad = {key: sorted(info[key])[:2] for key in _BAD if info[key]}
    return model.eval(), f"keys: {bad}" if bad else ""


def _compared(home: Path, model: Any) -> str:
    """How the logits differ from those that were kept; "keys only" for a model that wants more than tokens."""
    import torch

    wanted = torch.load(home / "logits.pt")
    if wanted is None:
        return "keys only"
    found = logits(model)
    if found is None:
        return "does not run on tokens alone here"
    worst = (found - wanted).abs().max() / wanted.abs().max()
    return f"logits differ by {worst:.1e} of the largest" if worst > 1e-5 else ""


def merge(folder: Path) -> None:
    """Merge each checkpoint and compare it with what save_pretrained wrote."""
    import ckptconv
    from ckptconv.errors import CkptconvError
    from ckptconv.models.naming import to_hub

    for home in sorted(folder.iterdir()):
        if not (home / "done").exists() or (home / "merged.json").exists():
            continue
        try:
            done = ckptconv.merge(home / "actor", home / "model", dtype="keep", overwrite=True)
            truth = ckptconv.open(_truth(home))
            config = json.loads((home / "actor/huggingface/config.json").read_text())
            shapes = {name: truth.checkpoint.tensors[name].view for name in truth}
            if (home / "published").exists():
                wanted = {name: (name,) for name in shapes}
            else:  # with the prefixes of the published files
                made = to_hub("hub", shapes, config).tensors
                wanted = {name: named.sources for name, named in made.items()}
            odd = sorted(wanted.keys() ^ done.plan.outputs.keys())
            found = ckptconv.verify(home / "model", against=home / "actor")
            said = f"names differ: {len(odd)}, {odd[0]}" if odd else "" if found.ok else found.summary
            if not said:
                said = _values(home, {name: sources[0] for name, sources in wanted.items()})
        except CkptconvError as error:
            said = f"refused: {error}"
        (home / "merged.json").write_text(json.dumps(said))
        print(f"{home.name}: {said or 'equal'}"[:250], flush=True)


def _truth(home: Path) -> Path:
    published = home / "published"
    return published if published.exists() else home / "truth"


def _values(home: Path, pairs: dict[str, str]) -> str:
    """The first tensor that differs from save_pretrained's; experts may be turned."""
    import numpy as np

    import ckptconv

    ours, theirs = ckptconv.open(home / "model"), ckptconv.open(_truth(home))
    for name, source in pairs.items():
        one, two = ours[name].numpy(), theirs[source].numpy()
        if one.dtype != two.dtype:
            return f"{name}: {one.dtype}, not {two.dtype}"
        same = (
            np.array_equal(one, two) if one.shape == two.shape else np.array_equal(one, two.swapaxes(-1, -2))
        )
        if not same:
            return f"{name}: other values"
    return ""


def load(folder: Path, which: str) -> None:
    """Load each merged folder with the transformers of this environment, and compare the logits."""
    import logging

    import torch
    import transformers

    torch.set_num_threads(1)
    logging.disable(logging.CRITICAL)
    for home in sorted(folder.iterdir()):
        if not (home / "model/config.json").exists() or (home / f"{which}.json").exists():
            continue
        model, said = _loaded(home / "model", (home / "done").read_text(), "float32")
        said = said or _compared(home, model)
        (home / f"{which}.json").write_text(json.dumps([transformers.__version__, said]))
        print(f"{home.name}: {said or 'equal'}", flush=True)


def report(folder: Path, write_page: bool) -> None:
    """Counts, and each exception; with `write_page` the counts go into docs/models.md, between the marks of this run."""
    homes = [home for home in sorted(folder.iterdir()) if (home / "merged.json").exists()]
    merged = {home.name: json.loads((home / "merged.json").read_text()) for home in homes}
    published = sorted(folder.glob("*/published.json"))
    lines = ["| | model types |", "|---|---|"]
    if published:
        new = sum((file.parent / "not_read.json").exists() for file in published)
        lines.append(f"| built small and saved by transformers 4 | {len(published)} |")
        lines.append(f"| … read by transformers 5 with other keys or logits, or not at all | {new} |")
    lines.append(f"| sharded by FSDP2 and merged | {len(homes)} |")
    lines.append(f"| names, shapes, dtypes and values equal | {sum(not said for said in merged.values())} |")
    exceptions = [f"{name}: {said.splitlines()[0]}" for name, said in merged.items() if said]
    for which in ("new", "old"):
        found = {
            h.name: json.loads((h / f"{which}.json").read_text())
            for h in homes
            if (h / f"{which}.json").exists()
        }
        kinds = Counter(said.split(":")[0].split(" by ")[0] or "logits equal" for _, said in found.values())
        versions = ", ".join({version for version, _ in found.values()})
        lines += [f"| transformers {versions}: {said} | {n} |" for said, n in kinds.most_common()]
        silent = ("keys only", "no such class", "")
        exceptions += [
            f"transformers {v}, {name}: {said}" for name, (v, said) in found.items() if said not in silent
        ]
    print("\n".join([*lines, "", *exceptions]))
    if write_page:
        mark = f"<!-- {'published' if published else 'built'}: tools/sweep_models.py report -->"
        before, _, rest = _PAGE.read_text("utf-8").partition(mark)
        after = rest.partition("<!-- end -->")[2]
        table = "\n".join(lines)
        _PAGE.write_text(f"{before}{mark}\n\n{table}\n\n<!-- end -->{after}", encoding="utf-8")


def main() -> None:
    """Run one step."""
    step, place, rest = sys.argv[1], Path(sys.argv[2]), sys.argv[3:]
    if step in ("write", "reload"):
        write(place, rest, published=step == "reload")
    elif step == "publish":
        publish(place, rest)
    elif step == "load":
        load(place, rest[0])
    elif step == "merge":
        merge(place)
    else:
        report(place, "--write" in rest)


if __name__ == "__main__":
    main()
