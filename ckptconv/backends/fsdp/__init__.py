"""verl's FSDP rank files: `model_world_size_W_rank_R.pt`."""

from ckptconv.backends.conventions import Rank, Trainer

TRAINERS = (
    Trainer(  # verl/utils/checkpoint/checkpoint_manager.py
        name="verl",
        steps=("global_step_{step}",),
        marks=("latest_checkpointed_iteration.txt",),
        roles={"actor": Rank.TRAINED, "critic": Rank.VALUE, "ref": Rank.REFERENCE},
        not_assets=("fsdp_config.json", "lora_train_meta.json"),
    ),
    Trainer(  # skyrl_train/trainer.py
        name="SkyRL",
        steps=("global_step_{step}",),
        marks=("latest_ckpt_global_step.txt",),
        roles={"policy": Rank.TRAINED, "critic": Rank.VALUE, "ref": Rank.REFERENCE},
    ),
)
