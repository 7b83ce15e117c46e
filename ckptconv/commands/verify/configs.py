"""Layer config: the numbers in config.json with which a model computes, against those of a reference."""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Any

from ckptconv.commands.verify.records import Layer, Problem
from ckptconv.commands.verify.sides import Side
from ckptconv.errors import listed
from ckptconv.models.config_keys import for_both

_PROVES = "config.json states the numbers with which the reference computes"
# What does not change what a model computes: names, versions, dtypes, training, labels, and what other layers compare.
_ASIDE = re.compile(
    r"^_|name_or_path$|version$|^(?:torch_)?dtype$|dtype$|^architectures$|^auto_map$|attn_implementation$|^use_cache$"
    r"|dropout|drop_path|_pdrop$|drop_rate|init|^router_aux|aux_loss|z_loss|^output_|^return_|gradient_checkpointing"
    r"|^id2label$|^label2id$|^num_labels$|^problem_type$|^task_specific_params$|^finetuning_task$|^pretraining_tp$"
    r"|^quantization_config$|^tie_encoder_decoder$|^num_nextn_predict_layers$|^ep_size$|^rope_scaling$|^vocab_size$"
    r"|^is_encoder_decoder$|^is_decoder$|^torchscript$|^use_bfloat16$|^pruned_heads$|^chunk_size_feed_forward$"
)
_TOKENS = re.compile(r"^(?:bos|eos|pad|sep|cls|mask|decoder_start|forced_bos|forced_eos)_token_id$")
# A word of a key without which a class computes with its default.
_COMPUTES = re.compile(
    r"rope|theta|eps|act|scal|multiplier|softcap|window|norm|top_?k|per_tok|group|layer_types|factor|tie|cap"
)
_NOTHING: tuple[Any, ...] = (None, False, "", [], {})


def config_layer(ours: Side, theirs: Side) -> list[Layer]:
    """Compare the settings that both configs state; the layer is omitted where they agree.

    Both are compared in the keys of both generations of transformers. A setting that only the reference states is
    reported: whether the class's default is the same is not known here.
    """
    if ours.config is None or theirs.config is None or ours.is_adapter or theirs.is_adapter:
        return []
    mine, other = _settings(ours), _settings(theirs)
    differ = {path: (mine[path], other[path]) for path in mine if path in other and mine[path] != other[path]}
    tokens = [path for path in differ if _TOKENS.match(path.rpartition(".")[2])]
    problems = [
        Problem(path, f"is {a}, the reference's is {b}", "config.json")
        for path, (a, b) in differ.items()
        if path not in tokens
    ]
    notes = [
        f"config.json has {path} {differ[path][0]}, the reference's has {differ[path][1]}" for path in tokens
    ]
    parts = {path.rpartition(".")[0] for path in mine} | {""}
    lacking = [
        path
        for path, value in other.items()
        if path not in mine
        and value not in _NOTHING
        and path.rpartition(".")[0] in parts
        and _COMPUTES.search(path)
    ]
    if lacking:
        notes.append(
            f"config.json lacks {listed(lacking)}, which the reference states: readers take the class's default"
        )
    if not problems and not notes:
        return []
    found = f"{len(mine.keys() & other.keys()):,} settings that both state, {len(problems):,} differ"
    return [Layer("config", not problems, _PROVES, found, tuple(problems), tuple(notes))]


def _settings(side: Side) -> dict[str, Any]:
    """The settings of a side's config.json, by their paths, in the keys of both generations."""
    assert side.config is not None
    return dict(_leaves(for_both(side.config, tuple(side.tensors)).config))


def _leaves(table: dict[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    for key, value in table.items():
        if _ASIDE.search(str(key)):
            continue
        if isinstance(value, dict):
            yield from _leaves(value, f"{prefix}{key}.")
        elif not (key == "type" and "rope" in prefix):
            yield f"{prefix}{key}", value
