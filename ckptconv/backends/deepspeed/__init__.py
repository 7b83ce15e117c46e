"""DeepSpeed's ZeRO 0 to 3 and universal checkpoints."""

from ckptconv.backends.conventions import Rank, Trainer

TRAINERS = (
    Trainer(  # deepspeed/runtime/engine.py, save_checkpoint
        name="DeepSpeed",
        steps=("global_step{step}",),
        marks=("latest",),
        not_assets=("latest_universal", "zero_to_fp32.py", "zero_to_torch.py"),
    ),
    Trainer(  # openrlhf/trainer/ppo_trainer.py
        name="OpenRLHF", roles={"_actor": Rank.TRAINED, "_critic": Rank.VALUE}
    ),
)
