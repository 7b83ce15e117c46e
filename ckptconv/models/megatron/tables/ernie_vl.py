"""ERNIE 4.5 VL: every MoE layer has a group of experts for text and one for images, numbered in a row on the Hub.

Megatron-Bridge keeps the groups as two MoE layers inside `mlp`. The Hub's routers are (in, out), and the biases of both
are the rows of one tensor. Source: Megatron-Bridge, ernie_vl/ernie45_vl_bridge.py.
"""

from __future__ import annotations

from ckptconv.models.family import Changed, Config, Family, GateUp, Rule, Same, within
from ckptconv.models.megatron.composed import ByConfig, under
from ckptconv.models.megatron.listed import by_source, proven
from ckptconv.models.megatron.tables.dense import LLAMA
from ckptconv.models.megatron.tables.parts import L, M, shared_experts
from ckptconv.models.rules import Swap, Turned, Unstack

MOST_EXPERTS = 4096
EXPERT = "mlp.experts.{expert}."


def second_group(count: int) -> tuple[Rule, ...]:
    """Return the lines of the experts for images. count: the number of experts for text, which come first on the Hub."""
    rules: list[Rule] = []
    for expert in range(min(count, MOST_EXPERTS)):
        one, hub = f"{L}mlp.vision_moe_layer.experts.{expert}.", f"{M}mlp.experts.{expert + count}."
        rules.append(GateUp(one + "linear_fc1.weight", hub + "{gate,up}_proj.weight"))
        rules.append(Same(one + "linear_fc2.weight", hub + "down_proj.weight"))
    return tuple(rules)


def experts_for_text(config: Config) -> int:
    """Return the number of experts for text; configs of both published forms state it."""
    count = config["moe_num_experts"]
    return int(count[0] if isinstance(count, list) else count)


def language(config: Config) -> tuple[Rule, ...]:
    """Return the lines of the language model."""
    text = L + "mlp.text_moe_layer."
    return (
        Changed(text + "router.weight", M + "mlp.gate.weight", Swap(0, 1)),
        Changed(L + "mlp.vision_moe_layer.router.weight", M + "mlp.gate.weight_1", Swap(0, 1)),
        Changed(
            L + "mlp.{text,vision}_moe_layer.router.expert_bias",
            M + "mlp.moe_statics.e_score_correction_bias",
            Turned(Unstack(0)),
        ),
        *second_group(experts_for_text(config)),  # on the way back, the first line that matches counts
        GateUp(text + "experts.{expert}.linear_fc1.weight", M + EXPERT + "{gate,up}_proj.weight"),
        Same(text + "experts.{expert}.linear_fc2.weight", M + EXPERT + "down_proj.weight"),
        *shared_experts("shared_experts"),
        *LLAMA.rules,
    )


def table(config: Config) -> Family:
    """Return the table; the tower's name on the Hub is that of the published repository's form."""
    tower = "model.vision_model." if "text_config" in config else "vision_model."
    resampler = tuple(
        Same(f"resampler_model.{linear}.{name}.{{what}}", f"model.resampler_model.{linear}.{number}.{{what}}")
        for linear in ("spatial_linear", "temporal_linear")
        for name, number in (("fc1", 0), ("fc2", 2), ("ln", 3))
    )
    others = under({"vision_tower.": tower, "resampler_model.": "model.resampler_model."})
    return Family(
        "ERNIE 4.5 VL", resampler + others + within(language(config), "language_model.", lambda hub: hub)
    )


ERNIE_VL = {
    "ernie4_5_vl_moe": proven("ERNIE 4.5 VL", ByConfig("ERNIE 4.5 VL", table), "Megatron-Bridge"),
    "ernie4_5_moe_vl": by_source(
        "ERNIE 4.5 VL (as published)",
        ByConfig("ERNIE 4.5 VL", table),
        "Megatron-Bridge, ernie_vl/ernie45_vl_bridge.py",
    ),
}
