"""Hugging Face model folders, PEFT adapters, and single files of weights."""

from ckptconv.backends.conventions import Rank, Trainer

TRAINERS = (
    Trainer(  # transformers/trainer.py
        name="transformers Trainer",
        steps=("checkpoint-{step}",),
        not_assets=("trainer_state.json", "optimizer", "runs", "wandb", "logs"),
    ),
    Trainer(  # trl/trainer/dpo_config.py: names of the two adapters of one model
        name="TRL",
        roles={
            "train": Rank.TRAINED,
            "trained": Rank.TRAINED,
            "default": Rank.TRAINED,
            "reference": Rank.REFERENCE,
            "reference_adapter": Rank.REFERENCE,
            "ref_adapter": Rank.REFERENCE,
        },
    ),
    Trainer(  # names that scripts for distillation and for RL give to their models
        name="scripts",
        roles={
            "student": Rank.TRAINED,
            "teacher": Rank.REFERENCE,
            "ref_policy": Rank.REFERENCE,
            "reward": Rank.VALUE,
            "reward_model": Rank.VALUE,
        },
    ),
)
