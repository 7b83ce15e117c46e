"""Megatron checkpoints: torch_dist, `mp_rank_*` rank files, and Megatron-FSDP."""

from ckptconv.backends.conventions import Trainer

TRAINERS = (
    Trainer(  # nemo/lightning/pytorch/callbacks/model_checkpoint.py
        name="NeMo",
        steps=("*-step={step}*",),
        newest=("*-step={step}*-last",),
        below=("checkpoints",),
        not_assets=("context",),
        saving=("{folder}-unfinished",),
    ),
    Trainer(  # megatron/training/checkpointing.py, get_checkpoint_name and get_checkpoint_tracker_filename
        name="Megatron",
        steps=("iter_{step}",),
        marks=("latest_checkpointed_iteration.txt",),
        not_assets=("run_config.yaml", "transformer_config.json", "ckpt_contents.json"),
    ),
)
