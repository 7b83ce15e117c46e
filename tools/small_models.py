"""Small models of every model type of the installed transformers, of either generation, with random weights."""

from __future__ import annotations

import json
import sys
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
    12: "qk_head_dim",
    8: "head_dim d_kv kv_lora_rank q_lora_rank qk_nope_head_dim v_head_dim linear_key_head_dim linear_value_head_dim "
    "global_head_dim state_size hidden_size_per_layer_input",
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
        elif key == "top_k" and value == 50:  # of generation, in the configs of transformers 4
            continue
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


def classes() -> dict[str, str]:
    """Model type -> the class that is swept."""
    from transformers.models.auto import modeling_auto

    found: dict[str, str] = {}
    for task in _TASKS:
        for kind, names in getattr(modeling_auto, task, {}).items():
            found.setdefault(kind, names if isinstance(names, str) else names[0])
    return dict(sorted(found.items()))


def built(kind: str, name: str, dtype: str = "float32") -> tuple[Any, str]:
    """The model of a class, or why there is none. Parameters that the class builds in float32 stay so."""
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
        cls = getattr(transformers, name)
        if dtype == "float32":
            model = cls._from_config(config).float().eval()
        else:
            model = cls._from_config(config, torch_dtype=getattr(torch, dtype)).eval()
        with torch.no_grad():
            for parameter in model.parameters():
                parameter.copy_(torch.randn(parameter.shape) * 0.1 + 0.05)
        return model, ""
    except Exception as error:  # whatever a class makes of a small config
        return None, f"{type(error).__name__} {error}"[:150].replace("\n", " ")


def logits(model: Any) -> Any:
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
