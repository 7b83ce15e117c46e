"""The tables, one file a kind of model. FAMILIES: config.json's model_type -> family."""

from ckptconv.models.megatron.tables.dense import DENSE
from ckptconv.models.megatron.tables.latent import LATENT_ATTENTION
from ckptconv.models.megatron.tables.moe import MOE

FAMILIES = {**DENSE, **MOE, **LATENT_ATTENTION}
