"""LoRA: updates that are stored separately from the weights, in PEFT's or Megatron-Bridge's names.

Every plan looks for LoRA, with what is listed here. Where there is some, `place` finds the weights, `scaling` its scale, and
`adapter` writes it.
"""

from ckptconv.models.lora.factors import Factors
from ckptconv.models.lora.kinds import check_config, is_adapter_config
from ckptconv.models.lora.names import Separated, is_of_an_adapter, may_be_factor, separate
from ckptconv.models.lora.stated import check_stated
from ckptconv.models.lora.tasks import HEADS, task_of
from ckptconv.models.lora.tokens import Tokens, check_bounds

__all__ = [
    "HEADS",
    "Factors",
    "Separated",
    "Tokens",
    "check_bounds",
    "check_config",
    "check_stated",
    "is_adapter_config",
    "is_of_an_adapter",
    "may_be_factor",
    "separate",
    "task_of",
]
