"""The tables, one file per kind of model. FAMILIES: config.json's model_type -> its entry."""

from ckptconv.models.megatron.listed import Listed
from ckptconv.models.megatron.tables.composed import COMPOSED, TEXT
from ckptconv.models.megatron.tables.gpt_oss import GPT_OSS
from ckptconv.models.megatron.tables.mamba import MAMBA
from ckptconv.models.megatron.tables.mimo import MIMO

FAMILIES: dict[str, Listed] = {**TEXT, **GPT_OSS, **MIMO, **MAMBA, **COMPOSED}
