"""GPT-OSS: attention sinks, biases everywhere, and the experts of a layer in one tensor.

The Hub keeps an expert's weights as (in, out), and gate and up interleaved column by column; Megatron as (out, in), one
after the other. Source: Megatron-Bridge, models/gpt_oss/gpt_oss_bridge.py; read off real checkpoints.
"""

from __future__ import annotations

from ckptconv.models.family import Changed, Family, Same
from ckptconv.models.megatron.listed import proven
from ckptconv.models.megatron.tables.parts import ATTENTION, ENDS, MLP_NORM, L, M
from ckptconv.models.rules import Pairs, Swap, Turned, Unstack

ONE, ALL = L + "mlp.experts.{expert}.", M + "mlp.experts."
STACK = Turned(Unstack(0))

EXPERTS = (
    Same(L + "mlp.router.{what}", M + "mlp.router.{what}"),
    Changed(ONE + "linear_fc1.weight", ALL + "gate_up_proj", STACK, Swap(1, 2), Pairs(2)),
    Changed(ONE + "linear_fc1.bias", ALL + "gate_up_proj_bias", STACK, Pairs(1)),
    Changed(ONE + "linear_fc2.weight", ALL + "down_proj", STACK, Swap(1, 2)),
    Changed(ONE + "linear_fc2.bias", ALL + "down_proj_bias", STACK),
)
SINKS = (Same(L + "self_attention.core_attention.softmax_offset", M + "self_attn.sinks"),)

TABLE = Family("GPT-OSS", ENDS + ATTENTION + SINKS + MLP_NORM + EXPERTS)
GPT_OSS = {"gpt_oss": proven("GPT-OSS", TABLE, "Megatron-Bridge", "mcore-bridge")}
