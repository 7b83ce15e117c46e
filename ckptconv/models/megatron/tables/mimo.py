"""MiMo: Qwen2 with MTP layers of its own.

Its `input_proj` reads [hidden state, embedding], Megatron's `eh_proj` [embedding, hidden state], so the halves of its
columns change places. Source: megatron/core/transformer/multi_token_prediction.py and MiMo's modeling code; mbridge (after
0.15.1, which copied it as it is) and Megatron-Bridge do the same.
"""

from __future__ import annotations

from ckptconv.models.family import Changed, Family, Same
from ckptconv.models.megatron.listed import proven
from ckptconv.models.megatron.tables.dense import LLAMA
from ckptconv.models.megatron.tables.parts import mtp_layers
from ckptconv.models.rules import Halves

TRAINED, HUB = "mtp.layers.{index}.", "model.mtp_layers.{index}."

ENDS = (
    Same(TRAINED + "enorm.weight", HUB + "token_layernorm.weight"),
    Same(TRAINED + "hnorm.weight", HUB + "hidden_layernorm.weight"),
    Changed(TRAINED + "eh_proj.weight", HUB + "input_proj.weight", Halves(1)),
    Same(TRAINED + "final_layernorm.weight", HUB + "final_layernorm.weight"),
)

TABLE = Family("MiMo", ENDS + mtp_layers(LLAMA.rules, HUB) + LLAMA.rules)
MIMO = {"mimo": proven("MiMo", TABLE, "mbridge")}
