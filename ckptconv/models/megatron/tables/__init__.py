"""The tables, one file a kind of model. FAMILIES: config.json's model_type -> family."""

from ckptconv.models.megatron.tables.dense import DENSE
from ckptconv.models.megatron.tables.gpt_oss import GPT_OSS
from ckptconv.models.megatron.tables.hybrid import HYBRID
from ckptconv.models.megatron.tables.latent import LATENT_ATTENTION
from ckptconv.models.megatron.tables.mimo import MIMO
from ckptconv.models.megatron.tables.moe import MOE
from ckptconv.models.megatron.tables.vision import VISION

FAMILIES = {**DENSE, **MOE, **LATENT_ATTENTION, **GPT_OSS, **MIMO, **HYBRID, **VISION}
