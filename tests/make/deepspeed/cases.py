"""The table of fixtures: model × ZeRO stage × dtype × ranks, and what each shows."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any


@dataclass(frozen=True)
class Case:
    """world: ranks. folder, tag: where the checkpoint lies in run/. zero, more: settings beside the usual ones."""

    shows: str
    model: str = "odd"
    stage: int = 2
    dtype: str = "bf16"
    world: int = 2
    groups: bool = True
    folder: str = ""
    tag: str | None = None
    exclude_frozen: bool = False
    universal: bool = False
    zero: dict[str, Any] = field(default_factory=dict)
    more: dict[str, Any] = field(default_factory=dict)

    @property
    def masters(self) -> bool:
        """Whether ZeRO holds weights of its own beside the module's."""
        return self.stage > 0


HF = {"folder": "checkpoint-7", "tag": "global_step7"}  # as transformers' Trainer saves
CPU = {"offload_optimizer": {"device": "cpu"}}
SMALL = {"stage3_param_persistence_threshold": 0, "sub_group_size": 60}
CASES = {
    "z0_fp32_w2": Case("no partitions: the weights are in the model file", stage=0, dtype="fp32"),
    "z0_bf16_w2": Case("the same in bf16", stage=0),
    "z0_fp16_w1": Case("the same in fp16, one rank", stage=0, dtype="fp16", world=1),
    "z1_bf16_w3": Case("frozen parameters are in the model file alone", stage=1, world=3),
    "z1_bf16_opt_w2": Case(
        "BF16_Optimizer: gradients added up in fp32",
        stage=1,
        more={"data_types": {"grad_accum_dtype": "fp32"}},
    ),
    "z2_fp16_w3": Case("fp16, three ranks, a tied head, a frozen layer, buffers", dtype="fp16", world=3),
    "z2_fp32_w4": Case("fp32 throughout; slices without elements", dtype="fp32", world=4),
    "z2_bf16_w1": Case("one rank", world=1),
    "z2_offload_w2": Case("optimizer on the CPU", zero=CPU),
    "z2_round_robin_w4": Case("parameters in another order", world=4, zero={"round_robin_gradients": True}),
    "z2_aligned_w3": Case("each parameter begins at 16 bytes", world=3, zero={"parameter_alignment": True}),
    "z3_bf16_w4": Case("cut a parameter at a time; several sub groups", stage=3, world=4, zero=SMALL),
    "z3_fp32_w3": Case("fp32, three ranks, small parameters kept whole in memory", stage=3, dtype="fp32", world=3),
    "z3_offload_w2": Case("parameters and optimizer on the CPU", stage=3, zero=CPU | {"offload_param": {"device": "cpu"}}),
    "z3_hpz_w4": Case("hpZ: a second partition inside a node", stage=3, world=4, zero={"zero_hpz_partition_size": 2}),
    "trainer_z2_w2": Case("a Trainer's folder", "qwen2", **HF),
    "trainer_z3_w3": Case("a Trainer's folder, tied", "tied", stage=3, world=3, **HF),
    "accelerate_z2_w2": Case("accelerate's tag", "qwen2", folder="checkpoint_0", tag="pytorch_model"),
    "lora_z2_w2": Case("PEFT, the frozen base beside it", "lora", **HF),
    "lora_z3_w2": Case("PEFT, the frozen base cut too", "lora", stage=3, **HF),
    "lora_only_z2_w2": Case("PEFT, saved without the base", "lora", exclude_frozen=True, **HF),
    "universal_z1_w2": Case("universal, of stage 1", stage=1, universal=True),
    "universal_z3_w3": Case("universal, of stage 3", stage=3, world=3, universal=True, zero=SMALL),
    "pipeline_z1_w2": Case("two pipeline stages: refused", "pipeline", stage=1, groups=False),
    "moe_z2_w2": Case("DeepSpeed's own experts: refused", "moe", groups=False),
}  # fmt: skip
