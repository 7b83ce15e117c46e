"""The tables, one file per kind of model. FAMILIES: config.json's model_type -> its entry."""

from ckptconv.models.megatron.listed import Listed
from ckptconv.models.megatron.tables.composed import COMPOSED, TEXT
from ckptconv.models.megatron.tables.deepseek_v4 import DEEPSEEK_V4
from ckptconv.models.megatron.tables.ernie_vl import ERNIE_VL
from ckptconv.models.megatron.tables.gpt_oss import GPT_OSS
from ckptconv.models.megatron.tables.mimo import MIMO
from ckptconv.models.megatron.tables.step import STEP

FAMILIES: dict[str, Listed] = {**TEXT, **DEEPSEEK_V4, **ERNIE_VL, **GPT_OSS, **MIMO, **STEP, **COMPOSED}
