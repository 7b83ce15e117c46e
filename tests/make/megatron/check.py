"""The Hugging Face tensors of a checkpoint, rebuilt from its files by a mapping of this file's own.

No bridge takes part: what it gives back is compared bit for bit with the model that the bridge loaded.
"""

from __future__ import annotations

import argparse
import json
import re
import sys
from pathlib import Path
from typing import Any

import torch
from cases import CASES, Case
from safetensors.torch import load_file

Tensors = dict[str, torch.Tensor]

NAMES = {
    "embedding.word_embeddings.weight": "model.embed_tokens.weight",
    "decoder.final_layernorm.weight": "model.norm.weight",
    "output_layer.weight": "lm_head.weight",
}
LAYER = {
    "self_attention.linear_qkv.layer_norm_weight": "input_layernorm.weight",
    "input_layernorm.weight": "input_layernorm.weight",
    "mlp.linear_fc1.layer_norm_weight": "post_attention_layernorm.weight",
    "pre_mlp_layernorm.weight": "post_attention_layernorm.weight",
    "self_attention.linear_proj.weight": "self_attn.o_proj.weight",
    "self_attention.q_layernorm.weight": "self_attn.q_norm.weight",
    "self_attention.k_layernorm.weight": "self_attn.k_norm.weight",
    "mlp.router.weight": "mlp.gate.weight",
    "mlp.router.expert_bias": "mlp.gate.e_score_correction_bias",
    "mlp.shared_experts.gate_weight": "mlp.shared_expert_gate.weight",
    "self_attention.linear_q_proj.weight": "self_attn.q_proj.weight",
    "self_attention.linear_q_down_proj.weight": "self_attn.q_a_proj.weight",
    "self_attention.linear_q_up_proj.weight": "self_attn.q_b_proj.weight",
    "self_attention.linear_q_up_proj.layer_norm_weight": "self_attn.q_a_layernorm.weight",
    "self_attention.linear_kv_down_proj.weight": "self_attn.kv_a_proj_with_mqa.weight",
    "self_attention.linear_kv_up_proj.weight": "self_attn.kv_b_proj.weight",
    "self_attention.linear_kv_up_proj.layer_norm_weight": "self_attn.kv_a_layernorm.weight",
}


def read(run: Path, case: Case, config: dict[str, Any]) -> Tensors:
    """Every model tensor of a run, whole, one for each layer and expert."""
    if case.layout.endswith("legacy"):
        return read_ranks(run, case, config["num_hidden_layers"])
    found = [
        each.parent
        for each in run.rglob(".metadata")
        if each.parent.parent.name not in ("extra", "optimizer")
    ]
    return each_layer(read_shards(found[0]))


def read_shards(folder: Path) -> Tensors:
    """The tensors of a torch_dist folder by torch's own reader, without optimizer and extra states."""
    from torch.distributed.checkpoint import FileSystemReader, load
    from torch.distributed.checkpoint.metadata import TensorStorageMetadata

    reader = FileSystemReader(folder)
    state = {
        name: torch.empty(about.size, dtype=about.properties.dtype)
        for name, about in reader.read_metadata().state_dict_metadata.items()
        if isinstance(about, TensorStorageMetadata) and "optimizer" not in name and "_extra_state" not in name
    }
    load(state, storage_reader=reader, no_dist=True)
    return state


def each_layer(stacked: Tensors) -> Tensors:
    """Takes stacks of layers and experts apart; experts end in `.weightE` as in a module's state dict."""
    layers: Tensors = {}
    for name, tensor in stacked.items():
        if name.startswith("decoder.layers.") and not name.split(".")[2].isdecimal():
            for index, part in enumerate(tensor):
                layers[name.replace("layers.", f"layers.{index}.", 1)] = part
        else:
            layers[name] = tensor
    single: Tensors = {}
    for name, tensor in layers.items():
        if "linear_fc" in name and ".experts.experts.linear" in name:
            for index, part in enumerate(tensor):
                single[name.replace(".experts.experts.", ".experts.") + str(index)] = part
        elif parts := re.match(r"(.*\.experts)\.experts\.(\d+)\.(linear_fc\d\.weight)(_[wv])?$", name):
            single[f"{parts[1]}.{parts[3]}{parts[2]}{parts[4] or ''}"] = tensor
        else:
            single[name] = tensor
    for name in [each for each in single if each.endswith("_w")]:
        single[name[:-2]] = torch.cat([single.pop(name), single.pop(name[:-2] + "_v")])
    return single


def read_ranks(run: Path, case: Case, layers: int) -> Tensors:
    """The tensors of one file a rank, joined over TP, PP, VPP, EP and ETP."""
    ranks: dict[tuple[int, int, int], list[Tensors]] = {}
    for file in sorted(run.rglob("mp_rank_*/*.pt")):
        numbers = [int(part) for part in file.parent.name.split("_")[2:]]
        stage = numbers.pop(1) if case.pp > 1 else 0
        expert = numbers.pop(1) if case.ep > 1 else 0
        loaded = torch.load(file, weights_only=False)
        chunks = (
            loaded
            if isinstance(loaded, list)
            else [loaded[k] for k in sorted(loaded) if k.startswith("model")]
        )
        ranks[numbers[0], stage, expert] = chunks
    whole: Tensors = {}
    for stage in range(case.pp):
        for chunk in range(case.vpp or 1):
            here = {(tp, ep): each[chunk] for (tp, pp, ep), each in ranks.items() if pp == stage}
            first = first_layer(case, layers, stage, chunk)
            for name, tensor in join_ranks(here, case).items():
                whole[re.sub(r"(layers)\.(\d+)", lambda m: f"layers.{int(m[2]) + first}", name, count=1)] = (
                    tensor
                )
    return whole


def first_layer(case: Case, layers: int, stage: int, chunk: int) -> int:
    """The number of a chunk's first layer in the whole model."""
    if case.first:
        return 0 if stage == 0 else case.first + (stage - 1) * (layers - case.first) // max(case.pp - 1, 1)
    return chunk * layers // max(case.vpp, 1) + stage * layers // (case.pp * max(case.vpp, 1))


def join_ranks(ranks: dict[tuple[int, int], Any], case: Case) -> Tensors:
    """One stage's tensors from the state dicts of its TP and EP ranks."""
    joined: Tensors = {}
    for expert in sorted({ep for _, ep in ranks}):
        some = next(state for (_, ep), state in ranks.items() if ep == expert)
        held = len(
            {name for name in some if re.search(r"layers\.\d+\.mlp\.experts\.linear_fc1\.weight\d+", name)}
        )
        held //= len({name.split(".")[2] for name in some if ".mlp.experts.linear_fc1.weight" in name}) or 1
        for name, value in some.items():
            if not isinstance(value, torch.Tensor) or "_extra_state" in name:
                continue
            if parts := re.match(r"(.*\.mlp\.experts\.linear_fc\d\.weight)(\d+)$", name):
                pieces = [state[name] for (_, ep), state in sorted(ranks.items()) if ep == expert]
                target = f"{parts[1]}{int(parts[2]) + expert * held}"
                joined[target] = join(name, pieces[: case.etp])
            else:
                by_tp = {tp: state[name] for (tp, _), state in sorted(ranks.items(), reverse=True)}
                joined[name] = join(name, [by_tp[tp] for tp in sorted(by_tp)])
    return joined


def join(name: str, pieces: list[torch.Tensor]) -> torch.Tensor:
    """The whole of a tensor's TP pieces."""
    if re.search(r"norm|router|down_proj|gate_weight|output_layer", name) and same(pieces):
        return pieces[0]
    if "linear_fc1.weight" in name:
        return torch.cat([piece.chunk(2)[half] for half in (0, 1) for piece in pieces])
    return torch.cat(pieces, 1 if re.search(r"linear_(proj|fc2)\.weight", name) else 0)


def same(pieces: list[torch.Tensor]) -> bool:
    return all(torch.equal(piece, pieces[0]) for piece in pieces)


def hub(tensors: Tensors, config: dict[str, Any], critic: bool) -> Tensors:
    """Megatron's tensors under Hugging Face names."""
    out: Tensors = {}
    for name, tensor in tensors.items():
        if parts := re.match(r"decoder\.layers\.(\d+)\.(.*)", name):
            for tail, part in layer(parts[2], tensor, config).items():
                out[f"model.layers.{parts[1]}.{tail}"] = part
        elif name == "output_layer.weight" and critic:
            out["score.weight"] = tensor
        elif name == "output_layer.weight" and config["tie_word_embeddings"]:
            continue
        else:
            out[NAMES[name]] = tensor if tensor.dim() == 1 else tensor[: config["vocab_size"]]
    return out


def layer(name: str, tensor: torch.Tensor, config: dict[str, Any]) -> Tensors:
    """One tensor of a decoder layer."""
    mixtral = config["model_type"] == "mixtral"
    gate, up, down = ("w1", "w3", "w2") if mixtral else ("gate_proj", "up_proj", "down_proj")
    if parts := re.match(r"self_attention\.linear_qkv\.(weight|bias)$", name):
        groups = config["num_key_value_heads"]
        dim = config.get("head_dim") or config["hidden_size"] // config["num_attention_heads"]
        queries = config["num_attention_heads"] // groups * dim
        cut = tensor.view(groups, queries + 2 * dim, *tensor.shape[1:]).split([queries, dim, dim], 1)
        return {
            f"self_attn.{kind}_proj.{parts[1]}": part.reshape(-1, *tensor.shape[1:])
            for kind, part in zip("qkv", cut)
        }
    if parts := re.match(r"mlp\.(experts\.|shared_experts\.|)linear_fc(\d)\.weight(\d*)$", name):
        module = "block_sparse_moe" if mixtral else "mlp"
        owner = {
            "experts.": f"{module}.experts.{parts[3]}",
            "shared_experts.": "mlp.shared_expert"
            if config["model_type"] == "qwen2_moe"
            else "mlp.shared_experts",
            "": "mlp",
        }[parts[1]]
        if parts[2] == "2":
            return {f"{owner}.{down}.weight": tensor}
        first, second = tensor.chunk(2)
        return {f"{owner}.{gate}.weight": first, f"{owner}.{up}.weight": second}
    target = LAYER[name]
    return {target.replace("mlp.", "block_sparse_moe.") if mixtral else target: tensor}


def differences(case: Case, folder: Path) -> list[str]:
    """What is missing, left over or different in a fixture's folder; empty when all is equal bit for bit."""
    config = json.loads((folder / "hf/config.json").read_text())
    truth = load_file(folder / "hf/model.safetensors")
    rebuilt = hub(read(folder / "run", case, config), config, case.critic)
    wrong = [f"missing {name}" for name in sorted(truth.keys() - rebuilt.keys())]
    wrong += [f"left over {name}" for name in sorted(rebuilt.keys() - truth.keys())]
    for name in sorted(truth.keys() & rebuilt.keys()):
        mine, theirs = rebuilt[name], truth[name]
        if mine.dtype != theirs.dtype or mine.shape != theirs.shape:
            wrong.append(
                f"{name}: {mine.dtype} {tuple(mine.shape)}, not {theirs.dtype} {tuple(theirs.shape)}"
            )
        elif not torch.equal(mine.contiguous().view(torch.uint8), theirs.view(torch.uint8)):
            wrong.append(f"{name}: other values")
    return wrong


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("folder", type=Path, nargs="+", help="fixtures, each named after its case")
    bad = 0
    for folder in parser.parse_args().folder:
        wrong = differences(CASES[folder.name], folder)
        print("OK " if not wrong else "BAD", folder.name, *wrong[:5], sep="  ")
        bad += bool(wrong)
    sys.exit(bad)


if __name__ == "__main__":
    main()
