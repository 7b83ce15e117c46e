"""Real FSDP2 checkpoints of as many model types as can be built small, merged, and loaded by both transformers generations.

    python -m torch.distributed.run --standalone --nproc-per-node 2 tools/sweep_models.py write DIR   # transformers 5
    python tools/sweep_models.py merge DIR        # ckptconv's environment
    PYTHON5 tools/sweep_models.py load DIR new
    PYTHON4 tools/sweep_models.py load DIR old
    python tools/sweep_models.py report DIR

`write` makes each model from a small config with random weights, keeps what save_pretrained writes and the logits of a row
of tokens, shards it with fully_shard over two ranks and saves verl's rank files. `merge` compares names, shapes, dtypes and
values with what save_pretrained wrote. `load` loads each merged folder and compares the logits (1e-5 of the largest).
"""

from __future__ import annotations

import gc
import json
import sys
from collections import Counter
from pathlib import Path
from typing import Any

LARGEST = 6_000_000  # elements of a model
_TASKS = (
    "MODEL_FOR_CAUSAL_LM_MAPPING_NAMES", "MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING_NAMES",
    "MODEL_FOR_SEQ_TO_SEQ_CAUSAL_LM_MAPPING_NAMES", "MODEL_FOR_MASKED_LM_MAPPING_NAMES", "MODEL_MAPPING_NAMES",
)  # fmt: skip
_SIZES: dict[str, int] = {}
for _value, _keys in {
    32: "hidden_size d_model n_embd dim embed_dim embedding_size hidden_dim decoder_hidden_size encoder_hidden_size "
    "out_hidden_size",
    48: "intermediate_size ffn_dim d_ff n_inner encoder_ffn_dim decoder_ffn_dim ffn_hidden_size intermediate_size_mlp "
    "dense_intermediate_size moe_shared_expert_intermediate_size shared_intermediate_size prefix_dense_intermediate_size",
    2: "num_hidden_layers n_layer num_layers encoder_layers decoder_layers n_layers depth num_decoder_layers "
    "num_encoder_layers num_key_value_heads num_experts_per_tok moe_topk top_k num_experts_per_token moe_k "
    "num_global_key_value_heads",
    4: "num_attention_heads n_head num_heads encoder_attention_heads decoder_attention_heads n_heads num_experts "
    "num_local_experts n_routed_experts moe_num_experts linear_num_key_heads linear_num_value_heads qk_rope_head_dim",
    8: "head_dim d_kv kv_lora_rank q_lora_rank qk_nope_head_dim v_head_dim linear_key_head_dim linear_value_head_dim "
    "global_head_dim qk_head_dim state_size hidden_size_per_layer_input",
    16: "sliding_window",
    20: "moe_intermediate_size shared_expert_intermediate_size expert_ffn_hidden_size",  # no square tensors
    128: "vocab_size text_vocab_size vocab_size_per_layer_input",
    64: "max_position_embeddings n_positions max_target_positions max_source_positions n_ctx max_sequence_length",
    28: "image_size",
    14: "patch_size",
    1: "n_group topk_group first_k_dense_replace num_dense_layers n_shared_experts moe_layer_start_index",
}.items():  # fmt: skip
    _SIZES.update(dict.fromkeys(_keys.split(), _value))


def small(config: dict[str, Any], path: str = "") -> dict[str, Any]:
    """A config with small sizes under the usual keys, in nested configs too."""
    new: dict[str, Any] = {}
    layers = 2
    for key, value in config.items():
        if isinstance(value, dict) and key not in ("rope_parameters", "rope_scaling", "id2label", "label2id"):
            new[key] = small(value, f"{path}{key}.")
        elif key in _SIZES and isinstance(value, int) and not isinstance(value, bool):
            new[key] = _SIZES[key]
        elif key.endswith(("token_id", "token_index", "token_ids")) and isinstance(value, int):
            new[key] = min(value, 100 + len(new) % 20)
        elif (
            key.endswith(("layer_types", "block_types", "layers_block_type"))
            and isinstance(value, list)
            and value
        ):
            kinds = list(dict.fromkeys(map(str, value)))
            new[key] = (kinds * layers)[-layers:] if len(kinds) > 1 else kinds * layers
        elif isinstance(value, dict) and "mrope_section" in value:
            new[key] = value | {"mrope_section": [1, 1, 2]}
        else:
            new[key] = value
    return new


def write(folder: Path, only: list[str]) -> None:
    """Write the checkpoints; run with one process per rank."""
    import torch
    import torch.distributed as dist
    import transformers
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.fsdp import fully_shard

    dist.init_process_group("gloo")
    torch.set_num_threads(1)
    rank, world = dist.get_rank(), dist.get_world_size()
    mesh = init_device_mesh("cpu", (world,), mesh_dim_names=("fsdp",))
    for kind, name in _classes().items():
        home = folder / kind
        if (home / "done").exists() or (only and kind not in only):
            continue
        model, why = _built(kind, name)
        ready = torch.tensor([model is not None], dtype=torch.int32)
        dist.all_reduce(ready, op=dist.ReduceOp.MIN)
        if not ready.item() or model is None:
            if rank == 0:
                print(f"{kind}: not built: {why}", flush=True)
            continue
        logits = _logits(model)
        if rank == 0:
            (home / "actor/huggingface").mkdir(parents=True, exist_ok=True)
            model.config.architectures = [name]
            model.save_pretrained(home / "truth")
            model.config.save_pretrained(home / "actor/huggingface")
            torch.save(logits, home / "logits.pt")
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
    assert transformers.__version__


def _classes() -> dict[str, str]:
    """Model type -> the class that is swept."""
    from transformers.models.auto import modeling_auto

    found: dict[str, str] = {}
    for task in _TASKS:
        for kind, names in getattr(modeling_auto, task, {}).items():
            found.setdefault(kind, names if isinstance(names, str) else names[0])
    return dict(sorted(found.items()))


def _built(kind: str, name: str) -> tuple[Any, str]:
    import torch
    import transformers
    from transformers.models.auto.configuration_auto import CONFIG_MAPPING

    sys.path.insert(0, str(Path(__file__).parents[1]))
    from tools.make_table import _CONFIG_ARGUMENTS

    try:
        cls = CONFIG_MAPPING[kind]
        full = cls(**_CONFIG_ARGUMENTS.get(cls.__name__, {}))
        config = cls.from_dict(small(json.loads(json.dumps(full.to_dict(), default=str))))
        with torch.device("meta"):
            size = sum(p.numel() for p in getattr(transformers, name)._from_config(config).parameters())
        if size > LARGEST:
            return None, f"{size:,} elements"
        torch.manual_seed(0)
        model = getattr(transformers, name)._from_config(config).float().eval()
        with torch.no_grad():
            for parameter in model.parameters():
                parameter.copy_(torch.randn(parameter.shape) * 0.1 + 0.05)
        return model, ""
    except Exception as error:  # whatever a class makes of a small config
        return None, f"{type(error).__name__} {error}"[:150].replace("\n", " ")


def _logits(model: Any) -> Any:
    """The logits of a row of tokens; None for a model that wants more than tokens."""
    import torch

    ids = torch.arange(3, 15)[None]
    more = {"decoder_input_ids": ids} if getattr(model.config, "is_encoder_decoder", False) else {}
    try:
        with torch.no_grad():
            out = model(input_ids=ids, **more)
        found = out.logits if hasattr(out, "logits") else out.last_hidden_state
        return found.float() if torch.isfinite(found).all() else None
    except Exception:
        return None


def merge(folder: Path) -> None:
    """Merge each checkpoint and compare it with what save_pretrained wrote."""
    import ckptconv
    from ckptconv.errors import CkptconvError
    from ckptconv.models.naming import to_hub

    for home in sorted(folder.iterdir()):
        if not (home / "done").exists():
            continue
        try:
            done = ckptconv.merge(home / "actor", home / "model", dtype="keep", overwrite=True)
            truth = ckptconv.open(home / "truth")
            config = json.loads((home / "truth/config.json").read_text())
            shapes = {name: truth.checkpoint.tensors[name].view for name in truth}
            wanted = to_hub("hub", shapes, config).tensors  # with the prefixes of the published files
            odd = sorted(wanted.keys() ^ done.plan.outputs.keys())
            found = ckptconv.verify(home / "model", against=home / "actor")
            said = f"names differ: {len(odd)}, {odd[0]}" if odd else "" if found.ok else found.summary
            if not said:
                said = _values(home, {name: named.sources[0] for name, named in wanted.items()})
        except CkptconvError as error:
            said = f"refused: {error}"
        (home / "merged.json").write_text(json.dumps(said))
        print(f"{home.name}: {said or 'equal'}"[:250], flush=True)


def _values(home: Path, pairs: dict[str, str]) -> str:
    """The first tensor that differs from save_pretrained's; experts may be turned."""
    import numpy as np

    import ckptconv

    ours, theirs = ckptconv.open(home / "model"), ckptconv.open(home / "truth")
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

    logging.disable(logging.CRITICAL)
    for home in sorted(folder.iterdir()):
        if not (home / "model/config.json").exists():
            continue
        name = (home / "done").read_text()
        said = ""
        if not hasattr(transformers, name):
            said = "no such class"
        else:
            try:
                model, info = getattr(transformers, name).from_pretrained(
                    home / "model", output_loading_info=True, torch_dtype=torch.float32, local_files_only=True
                )
                bad = {
                    key: sorted(info[key])[:2]
                    for key in ("missing_keys", "unexpected_keys", "mismatched_keys")
                    if info[key]
                }
                wanted, found = torch.load(home / "logits.pt"), _logits(model.eval())
                if bad:
                    said = f"keys: {bad}"
                elif wanted is not None and found is None:
                    said = "does not run on tokens alone here"
                elif wanted is not None and (found - wanted).abs().max() > 1e-5 * wanted.abs().max():
                    said = f"logits differ by {(found - wanted).abs().max() / wanted.abs().max():.1e} of the largest"
                elif wanted is None:
                    said = "keys only"
            except Exception as error:  # whatever a class makes of a folder
                said = f"stops: {type(error).__name__} {error}"[:200].replace("\n", " ")
        (home / f"{which}.json").write_text(json.dumps([transformers.__version__, said]))
        print(f"{home.name}: {said or 'equal'}", flush=True)


def report(folder: Path) -> None:
    """Counts, and each exception."""
    homes = [home for home in sorted(folder.iterdir()) if (home / "merged.json").exists()]
    merged = {home.name: json.loads((home / "merged.json").read_text()) for home in homes}
    print(f"{len(homes)} model types; {sum(not said for said in merged.values())} equal to save_pretrained")
    for which in ("new", "old"):
        found = {
            h.name: json.loads((h / f"{which}.json").read_text())
            for h in homes
            if (h / f"{which}.json").exists()
        }
        kinds = Counter(said.split(":")[0].split(" by ")[0] or "logits equal" for _, said in found.values())
        versions = {version for version, _ in found.values()}
        print(
            f"transformers {', '.join(versions)}: "
            + ", ".join(f"{n} {said}" for said, n in kinds.most_common())
        )
        for name, (_, said) in found.items():
            if said and said not in ("keys only", "no such class"):
                print(f"  {name}: {said}")
    for name, said in merged.items():
        if said:
            print(f"  {name}: {said}")


if __name__ == "__main__":
    step, place, rest = sys.argv[1], Path(sys.argv[2]), sys.argv[3:]
    if step == "write":
        write(place, rest)
    elif step == "load":
        load(place, rest[0])
    else:
        {"merge": merge, "report": report}[step](place)
