"""nanotron's checkpoints: one safetensors file per tensor and rank, in folders that spell the tensor's name."""

from ckptconv.backends.conventions import Trainer

TRAINERS = (
    Trainer(  # nanotron/trainer.py, save_checkpoint; its own mark tells a bare number from any other folder
        name="nanotron",
        steps=("{step}",),
        marks=("latest.txt",),
        not_assets=("model_config.json", "checkpoint_metadata.json", "lr_scheduler", "random"),
    ),
)
