"""The table of fixtures: model × ZeRO stage × dtype × ranks, and what each shows."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any


@dataclass(frozen=True)
class Case:
    """world: ranks. folder, tag: where the checkpoint lies in run/. zero, more: settings beside the usual ones.

    tp, pp, ep: tensor parallel ranks, stages of a pipeline, expert parallel ranks; experts, layers: how many there are.
    autoep: AutoEP's preset.
    """

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
    tp: int = 1
    pp: int = 1
    ep: int = 0
    autoep: str = ""
    experts: int = 6
    layers: int = 2
    zero: dict[str, Any] = field(default_factory=dict)
    more: dict[str, Any] = field(default_factory=dict)

    @property
    def script(self) -> str:
        """The program that writes the case."""
        return "write_parallel.py" if self.tp > 1 or self.pp > 1 or self.ep else "write.py"

    @property
    def masters(self) -> bool:
        """Whether ZeRO holds weights of its own beside the module's."""
        return self.stage > 0


HF = {"folder": "checkpoint-7", "tag": "global_step7"}  # as transformers' Trainer saves
RUN = {"tag": "global_step7"}
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
    "pipeline_z1_w2": Case("two pipeline stages, of layers that no class has", "pipeline", stage=1, groups=False),
    "moe_z2_w2": Case("DeepSpeed's own experts in a model that no class has", "moe", groups=False),
    "exclude_z1_w2": Case("saved without its frozen parameters", "frozen", stage=1, exclude_frozen=True, **HF),
    "exclude_z2_w2": Case("the same at stage 2", "frozen", exclude_frozen=True, **HF),
    "exclude_z3_w3": Case("the same at stage 3", "frozen", stage=3, world=3, exclude_frozen=True, **HF),
    "wrapped_z1_w2": Case("torch.compile's _orig_mod.", "compiled", stage=1, **HF),
    "wrapped_z2_w2": Case("the model is an engine's module.", "module", **HF),
    "wrapped_z3_w2": Case("the model is Lightning's _forward_module.", "_forward_module", stage=3, **HF),
    "tp2_z1_w2": Case("AutoTP, norms of query and key", "qwen3", stage=1, tp=2, **RUN),
    "tp3_z2_w6": Case("AutoTP × DP, biases, fp16", "qwen2", tp=3, world=6, dtype="fp16", **RUN),
    "tp2_z3_w4": Case("AutoTP × DP at stage 3, tied", "llama_tied", stage=3, tp=2, world=4, zero=SMALL, **RUN),
    "tp2_z0_w2": Case("AutoTP without ZeRO, in fp32", "llama", stage=0, tp=2, dtype="fp32", **RUN),
    "universal_tp2_z1_w2": Case("universal, of AutoTP", "llama", stage=1, tp=2, universal=True, **RUN),
    "universal_pipe2_z1_w2": Case("universal, of a pipeline", "llama_tied", stage=1, pp=2, universal=True, **RUN),
    "pipe3_z1_w3": Case("three stages, embedding and head tied", "llama_tied", stage=1, pp=3, world=3, **RUN),
    "pipe2_z1_w4": Case("two stages × DP, fp32", "llama", stage=1, pp=2, world=4, dtype="fp32", **RUN),
    "pipe2_neox_w2": Case("GPT-NeoX's layers, norms and biases", "neox", stage=1, pp=2, **RUN),
    "moe_z1_ep2_w2": Case("experts over two ranks, under Mixtral's config", "mixtral", stage=1, ep=2, **RUN),
    "moe_z2_ep2_w4": Case("experts over two ranks × DP", "mixtral", ep=2, world=4, **RUN),
    "autoep_z1_ep2_w2": Case("AutoEP", "mixtral", stage=1, ep=2, autoep="mixtral", **RUN),
    "autoep_z3_ep2_w4": Case("AutoEP × DP at stage 3", "qwen3_moe", stage=3, ep=2, world=4, autoep="qwen3_moe", **RUN),
    "moe_z0_ep2_w2": Case("experts without ZeRO", "mixtral", stage=0, ep=2, dtype="fp32", **RUN),
}  # fmt: skip
