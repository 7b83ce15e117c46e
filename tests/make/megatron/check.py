"""The Hugging Face tensors of a checkpoint, rebuilt from its files by a mapping of this file's own.

No bridge takes part: what it gives back is compared bit for bit with the model that the bridge loaded.
"""

from __future__ import annotations

import argparse
import json
import re
import sys
import tempfile
from pathlib import Path
from typing import Any

import torch
from cases import CASES, Case
from safetensors.torch import load_file

sys.path.append(str(Path(__file__).resolve().parents[1]))
from pack import unpack

Tensors = dict[str, torch.Tensor]

NAMES = {
    "embedding.word_embeddings.weight": "model.embed_tokens.weight",
    "decoder.final_layernorm.weight": "model.norm.weight",
    "output_layer.weight": "lm_head.weight",
}
LAYER = {
    "self_attention.linear_qkv.layer_norm_weight": "input_layernorm.weight",
    "self_attention.in_proj.layer_norm_weight": "input_layernorm.weight",
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


GEMMA = {
    "self_attention.linear_proj.post_layernorm.weight": "post_attention_layernorm.weight",
    "mlp.linear_fc1.layer_norm_weight": "pre_feedforward_layernorm.weight",
    "mlp.linear_fc2.post_layernorm.weight": "post_feedforward_layernorm.weight",
}
FULL_WIDTH = {f"self_attention.{kind}_norm.weight": f"self_attn.{kind}_norm.weight" for kind in "qk"}
FAMILY = {
    "gemma2": GEMMA,
    "gemma3_text": GEMMA,
    "olmoe": FULL_WIDTH,
    "minimax_m2": FULL_WIDTH | {"mlp.router.expert_bias": "block_sparse_moe.e_score_correction_bias"},
    "ernie4_5_moe": {"mlp.router.expert_bias": "mlp.moe_statics.e_score_correction_bias"},
    "glm4": {
        "self_attention.post_self_attn_layernorm.weight": "post_self_attn_layernorm.weight",
        "mlp.post_mlp_layernorm.weight": "post_mlp_layernorm.weight",
    },
    "gpt_oss": {
        "mlp.router.weight": "mlp.router.weight",
        "mlp.router.bias": "mlp.router.bias",
        "self_attention.linear_proj.bias": "self_attn.o_proj.bias",
        "self_attention.core_attention.softmax_offset": "self_attn.sinks",
    },
}


def read(run: Path, case: Case, config: dict[str, Any]) -> Tensors:
    """Every model tensor of a run, whole, one for each layer and expert."""
    if case.layout.endswith("legacy"):
        return read_ranks(run, case, config.get("text_config", config)["num_hidden_layers"])
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
        if re.match(r"(language_model\.|vision_model\.)?decoder\.layers\.\D", name):
            for index, part in enumerate(tensor):
                layers[name.replace("layers.", f"layers.{index}.", 1)] = part
        else:
            layers[name] = tensor
    single: Tensors = {}
    for name, tensor in layers.items():
        if "linear_fc" in name and ".experts.experts.linear" in name:
            for index, part in enumerate(tensor):
                single[name.replace(".experts.experts.", ".experts.") + str(index)] = part
        elif parts := re.match(
            r"(.*\.experts)\.experts\.(\d+)\.(linear_fc\d\.(?:weight|bias))(_[wv])?$", name
        ):
            single[f"{parts[1]}.{parts[3]}{parts[2]}{parts[4] or ''}"] = tensor
        else:
            single[name] = tensor
    for name in [each for each in single if each.endswith("_w")]:
        single[name[:-2]] = torch.cat([single.pop(name), single.pop(name[:-2] + "_v")])
    return single


def read_ranks(run: Path, case: Case, layers: int) -> Tensors:
    """The tensors of one file per rank, joined over TP, PP, VPP, EP and ETP."""
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
        ranks[numbers[0], stage, expert] = [grouped(chunk) for chunk in chunks]
    whole: Tensors = {}
    for stage in range(case.pp):
        for chunk in range(case.vpp or 1):
            here = {(tp, ep): each[chunk] for (tp, pp, ep), each in ranks.items() if pp == stage}
            first = first_layer(case, layers, stage, chunk)
            whole |= {renumber(name, first): tensor for name, tensor in join_ranks(here, case).items()}
    return whole


def grouped(chunk: Tensors) -> Tensors:
    """Experts that are modules of their own, under the names of a grouped GEMM's."""
    pattern = r"(.*\.experts)\.local_experts\.(\d+)\.(linear_fc\d\.weight)"
    return {re.sub(pattern, r"\1.\3\2", name): value for name, value in chunk.items()}


def renumber(name: str, first: int) -> str:
    """A chunk's own name under the layer's number in the whole model."""
    return re.sub(
        r"^((?:language_model\.)?decoder\.layers\.)(\d+)",
        lambda match: f"{match[1]}{int(match[2]) + first}",
        name,
    )


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
    tower = re.match(r"visual\.|vision_model\.(?!decoder\.|projection\.)", name)  # not Megatron's modules
    if tower or re.search(r"linear_(proj|fc2)\.bias$", name):
        return pieces[0]
    gated = re.search(r"linear_fc1\.((weight|bias)\d*|adapter\.linear_out\.weight)$", name)
    if gated and ".projection." not in name:
        return torch.cat([piece.chunk(2)[half] for half in (0, 1) for piece in pieces])
    return torch.cat(pieces, 1 if re.search(r"linear_(proj|fc2)\.(adapter\.linear_in\.)?weight", name) else 0)


def same(pieces: list[torch.Tensor]) -> bool:
    return all(torch.equal(piece, pieces[0]) for piece in pieces)


def hub(tensors: Tensors, config: dict[str, Any], critic: bool) -> Tensors:
    """Megatron's tensors under Hugging Face names."""
    if "text_config" in config:
        return vision_and_text(tensors, config, critic)
    out: Tensors = {}
    unknown = []
    for name, tensor in tensors.items():
        if parts := re.match(r"decoder\.layers\.(\d+)\.(.*)", name):
            prefix, tail = f"model.layers.{parts[1]}.", parts[2]
        elif parts := re.match(r"mtp\.layers\.(\d+)\.(transformer_layer|mtp_model_layer)\.(.*)", name):
            prefix, tail = mtp_prefix(int(parts[1]), config), parts[3]
        elif parts := re.match(r"mtp\.layers\.(\d+)\.(.*)", name):
            target, tensor = mtp_part(parts[2], tensor, config)
            prefix = mtp_prefix(int(parts[1]), config)
            out[("mtp." if config["model_type"] == "qwen3_next" else prefix) + target] = tensor
            continue
        else:
            if name == "output_layer.weight" and critic:
                out["score.weight"] = tensor
            elif name != "output_layer.weight" or not config["tie_word_embeddings"]:
                out[NAMES[name]] = tensor if tensor.dim() == 1 else tensor[: config["vocab_size"]]
            continue
        try:
            out |= {prefix + target: part for target, part in layer(tail, tensor, config).items()}
        except KeyError:
            unknown.append(f"{name} {tuple(tensor.shape)}")
    if unknown:
        raise ValueError("no rule for " + "\n".join(unknown))
    if config["model_type"] in ("deepseek_v3", "glm4_moe", "glm4_moe_lite") and config.get(
        "num_nextn_predict_layers"
    ):
        extra = mtp_prefix(0, config)
        out[f"{extra}embed_tokens.weight"] = out["model.embed_tokens.weight"]
        out[f"{extra}shared_head.head.weight"] = out["lm_head.weight"]
    return delta_nets(fuse_experts(out), config)


def vision_and_text(tensors: Tensors, config: dict[str, Any], critic: bool) -> Tensors:
    """A model that sees: its tower has the Hub's names below a prefix of the bridge's own."""
    qwen3 = config["model_type"].startswith("qwen3_vl")
    if config["model_type"] == "gemma3":
        return gemma(tensors, config, critic)
    text = {
        n.removeprefix("language_model."): t for n, t in tensors.items() if n.startswith("language_model.")
    }
    values = config["text_config"] | {"tie_word_embeddings": config["tie_word_embeddings"]}
    out = hub(text, values, critic)
    if qwen3:
        out = {name.replace("model.", "model.language_model.", 1): tensor for name, tensor in out.items()}
    for name in tensors.keys() - {f"language_model.{each}" for each in text}:
        if name.startswith(("vision_model.decoder.", "vision_model.projection.")):
            out |= tower(name, tensors[name], config)
            continue
        if not (parts := re.match(r"(visual\.visual|visual|vision_model)\.((?!decoder).*)", name)):
            raise ValueError(f"no rule for {name} {tuple(tensors[name].shape)}")
        out[("model.visual." if qwen3 else "visual.") + parts[2]] = tensors[name]
    return out


def gemma(tensors: Tensors, config: dict[str, Any], critic: bool) -> Tensors:
    """Gemma 3: the tower as on the Hub, a projector that is transposed."""
    text = {n.removeprefix("language_model."): t for n, t in tensors.items() if "language_model." in n}
    values = config["text_config"] | {"tie_word_embeddings": True}  # the default, which is not written
    out = {f"language_model.{name}": tensor for name, tensor in hub(text, values, critic).items()}
    for name, tensor in tensors.items():
        if name.startswith("vision_tower."):
            out[name] = tensor
        elif name == "multi_modal_projector.proj.weight":
            out["multi_modal_projector.mm_input_projection_weight"] = tensor.T
        elif name == "multi_modal_projector.mm_soft_embed_norm.weight":
            out["multi_modal_projector.mm_soft_emb_norm.weight"] = tensor
        elif not name.startswith("language_model."):
            raise ValueError(f"no rule for {name} {tuple(tensor.shape)}")
    return out


def tower(name: str, tensor: torch.Tensor, config: dict[str, Any]) -> Tensors:
    """A tensor of mbridge's vision tower, which is built of Megatron-Core's layers."""
    whole = {
        "vision_model.decoder.final_layernorm.weight": "visual.merger.ln_q.weight",
        **{
            f"vision_model.projection.encoder.linear_fc{one}.{kind}": f"visual.merger.mlp.{zero}.{kind}"
            for one, zero in ((1, 0), (2, 2))
            for kind in ("weight", "bias")
        },
    }
    if name in whole:
        return {whole[name]: tensor}
    index, tail = re.match(r"vision_model\.decoder\.layers\.(\d+)\.(.*)", name).groups()
    block, kind = f"visual.blocks.{index}.", tail.rpartition(".")[2]
    if tail.startswith("self_attention.linear_qkv.") and kind != "layer_norm_weight":
        heads = config["vision_config"]["num_heads"]
        by_head = tensor.view(heads, 3, -1, *tensor.shape[1:])
        return {f"{block}attn.qkv.{kind}": by_head.transpose(0, 1).reshape(tensor.shape)}
    if tail.startswith("mlp.linear_fc1.") and kind != "layer_norm_weight":
        gate, up = tensor.chunk(2)
        return {f"{block}mlp.gate_proj.{kind}": gate, f"{block}mlp.up_proj.{kind}": up}
    names = {
        "self_attention.linear_qkv.layer_norm_weight": "norm1.weight",
        "mlp.linear_fc1.layer_norm_weight": "norm2.weight",
        f"self_attention.linear_proj.{kind}": f"attn.proj.{kind}",
        f"mlp.linear_fc2.{kind}": f"mlp.down_proj.{kind}",
    }
    return {block + names[tail]: tensor}


def mtp_prefix(index: int, config: dict[str, Any]) -> str:
    if config["model_type"] == "mimo":
        return f"model.mtp_layers.{index}."
    if config["model_type"] == "qwen3_next":
        return f"mtp.layers.{index}."
    return f"model.layers.{config['num_hidden_layers'] + index}."


def mtp_part(name: str, tensor: torch.Tensor, config: dict[str, Any]) -> tuple[str, torch.Tensor]:
    """What an MTP layer has beside a decoder layer's tensors."""
    if config["model_type"] == "mimo":
        names = {"enorm": "token_layernorm", "hnorm": "hidden_layernorm", "eh_proj": "input_proj"}
        if name.startswith("eh_proj."):
            tensor = torch.cat(tensor.chunk(2, dim=1)[::-1], dim=1)
    elif config["model_type"] == "qwen3_next":
        names = {
            "enorm": "pre_fc_norm_embedding",
            "hnorm": "pre_fc_norm_hidden",
            "eh_proj": "fc",
            "final_layernorm": "norm",
        }
    else:
        names = {"final_layernorm": "shared_head.norm"}
    first, _, last = name.partition(".")
    return f"{names.get(first, first)}.{last}", tensor


def fuse_experts(tensors: Tensors) -> Tensors:
    """Stacks tensors named `name#E`."""
    single = {name: tensor for name, tensor in tensors.items() if "#" not in name}
    for name in {name.partition("#")[0] for name in tensors.keys() - single.keys()}:
        count = sum(each.startswith(f"{name}#") for each in tensors)
        single[name] = torch.stack([tensors[f"{name}#{index}"] for index in range(count)])
    return single


def delta_nets(tensors: Tensors, config: dict[str, Any]) -> Tensors:
    """Joins Qwen3-Next's `@query` … into its in_proj_qkvz, in_proj_ba and conv1d."""
    if config["model_type"] != "qwen3_next":
        return tensors
    heads = config["linear_num_key_heads"]
    out = {name: tensor for name, tensor in tensors.items() if "@" not in name}
    for prefix in {name.partition("@")[0] for name in tensors if "@" in name}:
        parts = {
            name.partition("@")[2]: tensor
            for name, tensor in tensors.items()
            if name.startswith(f"{prefix}@")
        }

        def per_head(*names: str, parts: Tensors = parts) -> torch.Tensor:
            cut = [parts[name].view(heads, -1, *parts[name].shape[1:]) for name in names]
            return torch.cat(cut, 1).flatten(0, 1)

        out[f"{prefix}in_proj_qkvz.weight"] = per_head("query", "key", "value", "z")
        out[f"{prefix}in_proj_ba.weight"] = per_head("beta", "alpha")
        out[f"{prefix}conv1d.weight"] = torch.cat(
            [parts[f"conv_{name}"] for name in ("query", "key", "value")]
        )
    return out


def delta_net(name: str, tensor: torch.Tensor, config: dict[str, Any]) -> Tensors:
    """A tensor of Qwen3-Next's linear attention, in either layout."""
    heads = config["linear_num_key_heads"]
    key, ratio = config["linear_key_head_dim"], config["linear_num_value_heads"] // heads
    value = ratio * config["linear_value_head_dim"]
    if name == "in_proj.weight":
        kinds = {"query": key, "key": key, "value": value, "z": value, "beta": ratio, "alpha": ratio}
        cut = tensor.view(heads, -1, tensor.shape[1]).split([*kinds.values()], 1)
        return {f"linear_attn.@{kind}": part.flatten(0, 1) for kind, part in zip(kinds, cut, strict=True)}
    if name == "conv1d.weight":
        cut = tensor.view(heads, -1, *tensor.shape[1:]).split([key, key, value], 1)
        return {
            f"linear_attn.@conv_{kind}": part.flatten(0, 1)
            for kind, part in zip(("query", "key", "value"), cut, strict=True)
        }
    if parts := re.match(r"(in_proj|conv1d)\.weight\.(\w+)$", name):
        return {f"linear_attn.@{'conv_' if parts[1] == 'conv1d' else ''}{parts[2]}": tensor}
    if name == "out_norm.weight" and config["_gate_order"] == "all":
        tensor = tensor + 1  # Megatron-Bridge: a norm around zero
    names = {
        "A_log": "A_log",
        "dt_bias": "dt_bias",
        "out_norm.weight": "norm.weight",
        "out_proj.weight": "out_proj.weight",
    }
    return {f"linear_attn.{names[name]}": tensor}


def qkv(kind: str, tensor: torch.Tensor, config: dict[str, Any]) -> Tensors:
    """Queries, keys and values from rows that are grouped by KV head."""
    groups = config["num_key_value_heads"]
    dim = config.get("head_dim") or config["hidden_size"] // config["num_attention_heads"]
    ratio = config["num_attention_heads"] // groups
    gated = config["model_type"] == "qwen3_next"  # a gate beside each query
    queries = ratio * dim * (1 + gated)
    q, k, v = tensor.view(groups, queries + 2 * dim, *tensor.shape[1:]).split([queries, dim, dim], 1)
    if gated:
        order = config["_gate_order"]
        if order == "all":  # [every query, every gate]
            q = q.reshape(groups, 2, ratio, dim, -1).transpose(1, 2)
    return {
        f"self_attn.{name}_proj.{kind}": part.reshape(-1, *tensor.shape[1:])
        for name, part in zip("qkv", (q, k, v), strict=True)
    }


def layer(name: str, tensor: torch.Tensor, config: dict[str, Any]) -> Tensors:
    """One tensor of a decoder layer."""
    family = config["model_type"]
    if parts := re.match(r"self_attention\.linear_qkv\.(weight|bias)$", name):
        return qkv(parts[1], tensor, config)
    if name in LAYER and name.startswith("self_attention.in_proj."):
        return {LAYER[name]: tensor}
    if family == "qwen3_next" and re.match(
        r"self_attention\.(in_proj|conv1d|A_log|dt_bias|out_norm|out_proj)", name
    ):
        return delta_net(name.removeprefix("self_attention."), tensor, config)
    if name in FAMILY.get(family, {}):
        rows = family == "ernie4_5_moe" and name == "mlp.router.expert_bias"  # one for each kind of input
        return {FAMILY[family][name]: tensor[None] if rows else tensor}
    module = "block_sparse_moe" if family in ("mixtral", "minimax_m2") else "mlp"
    if parts := re.match(r"mlp\.(experts\.|shared_experts\.|)linear_fc(\d)\.(weight|bias)(\d*)$", name):
        return feed_forward(family, module, parts[1], parts[2], parts[3], parts[4], tensor)
    return {
        LAYER[name].replace("mlp.", module + ".") if LAYER[name].startswith("mlp.") else LAYER[name]: tensor
    }


def feed_forward(
    family: str, module: str, owner: str, number: str, kind: str, expert: str, tensor: torch.Tensor
) -> Tensors:
    """The gated matrices of a dense layer, an expert or a shared expert."""
    if family == "gpt_oss":
        target = f"mlp.experts.{'gate_up' if number == '1' else 'down'}_proj" + (
            "_bias" if kind == "bias" else ""
        )
        if number == "1":
            tensor = torch.stack(tensor.chunk(2), 1).flatten(0, 1)
        return {f"{target}#{expert}": tensor.T if kind == "weight" else tensor}
    if family == "qwen3_vl_moe_text" and owner == "experts.":
        return {f"mlp.experts.{'gate_up' if number == '1' else 'down'}_proj#{expert}": tensor.T}
    gate, up, down = ("w1", "w3", "w2") if module != "mlp" else ("gate_proj", "up_proj", "down_proj")
    path = {
        "experts.": f"{module}.experts.{expert}",
        "shared_experts.": "mlp.shared_expert"
        if family in ("qwen2_moe", "qwen3_next")
        else "mlp.shared_experts",
        "": "mlp",
    }[owner]
    if number == "2":
        return {f"{path}.{down}.{kind}": tensor}
    if family == "glm4":
        return {"mlp.gate_up_proj.weight": tensor}
    first, second = tensor.chunk(2)
    return {f"{path}.{gate}.{kind}": first, f"{path}.{up}.{kind}": second}


def lora(adapters: Tensors, config: dict[str, Any]) -> Tensors:
    """Adapters under peft's names: one input matrix for all parts of a fused layer, rows of outputs as in weights."""
    out: Tensors = {}
    for name, tensor in adapters.items():
        base, side = re.match(r"(.*)\.adapter\.linear_(in|out)\.weight$", name).groups()
        index, tail = re.match(r"decoder\.layers\.(\d+)\.(.*)", base).groups()
        if tail == "self_attention.linear_qkv" and side == "in":
            parts = {f"self_attn.{kind}_proj": tensor for kind in "qkv"}
        elif tail == "mlp.linear_fc1" and side == "in":
            parts = {f"mlp.{kind}_proj": tensor for kind in ("gate", "up")}
        elif tail in ("self_attention.linear_proj", "mlp.linear_fc2"):
            parts = {"self_attn.o_proj" if "proj" in tail else "mlp.down_proj": tensor}
        else:
            parts = {n.removesuffix(".weight"): t for n, t in layer(f"{tail}.weight", tensor, config).items()}
        letter = "A" if side == "in" else "B"
        out |= {f"model.layers.{index}.{n}.lora_{letter}.weight": t for n, t in parts.items()}
    return out


def differences(case: Case, folder: Path) -> list[str]:
    """What is missing, left over or different in a fixture's folder; empty when all is equal bit for bit."""
    config = json.loads((folder / "hf/config.json").read_text())
    truth = load_file(folder / "hf/model.safetensors")
    config["_gate_order"] = "each" if case.bridge == "mcore_bridge" else "all"
    try:
        stored = read(folder / "run", case, config)
        adapters = {name: stored.pop(name) for name in [*stored] if ".adapter." in name}
        rebuilt = hub(stored, config, case.critic)
        if case.lora:
            truth = (truth if stored else {}) | load_file(folder / "adapter.safetensors")
            rebuilt |= lora(adapters, config)
    except ValueError as error:
        return [str(error)]
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
    parser.add_argument("fixture", type=Path, nargs="+", help="packed fixtures, each named after its case")
    bad = 0
    for archive in parser.parse_args().fixture:
        with tempfile.TemporaryDirectory() as temporary:
            folder = unpack(archive, Path(temporary))
            wrong = differences(CASES[folder.name], folder)
        print("OK " if not wrong else "BAD", folder.name, *wrong[:5], sep="  ")
        bad += bool(wrong)
    sys.exit(bad)


if __name__ == "__main__":
    main()
