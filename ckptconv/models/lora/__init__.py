"""LoRA: updates that are stored separately from the weights, in PEFT's or Megatron-Bridge's names."""

from ckptconv.models.lora.adapter import (
    adapter_config,
    adapter_tensors,
    stack_tensors,
    token_tensors,
    trained_tensors,
)
from ckptconv.models.lora.factors import Factors
from ckptconv.models.lora.kinds import check_config, is_adapter_config
from ckptconv.models.lora.names import Separated, is_of_an_adapter, may_be_factor, separate
from ckptconv.models.lora.place import Placed, Placement, Rename, place, place_experts
from ckptconv.models.lora.scaling import is_fan_in_fan_out, rank_of, scale, ways_of_stacks
from ckptconv.models.lora.stated import check_stated
from ckptconv.models.lora.tasks import HEADS, task_of
from ckptconv.models.lora.tokens import Tokens, check_bounds

__all__ = [
    "HEADS",
    "Factors",
    "Placed",
    "Placement",
    "Rename",
    "Separated",
    "Tokens",
    "adapter_config",
    "adapter_tensors",
    "check_bounds",
    "check_config",
    "check_stated",
    "is_adapter_config",
    "is_fan_in_fan_out",
    "is_of_an_adapter",
    "may_be_factor",
    "place",
    "place_experts",
    "rank_of",
    "scale",
    "separate",
    "stack_tensors",
    "task_of",
    "token_tensors",
    "trained_tensors",
    "ways_of_stacks",
]
