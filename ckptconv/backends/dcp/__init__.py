"""torch.distributed.checkpoint folders: `.metadata` and `.distcp` files, and HuggingFaceStorageWriter's shards."""

from ckptconv.backends.conventions import Rank, Trainer

TRAINERS = (
    Trainer(  # torchtitan/components/checkpoint.py
        name="torchtitan",
        steps=("step-{step}",),
        below=("checkpoint",),
        not_assets=("sharded", "fqn_to_*_mapping.json"),
    ),
    Trainer(  # accelerate/accelerator.py, save_state; accelerate/utils/fsdp_utils.py
        name="accelerate",
        steps=("checkpoint_{step}",),
        below=("checkpoints",),
        not_assets=(
            "pytorch_model_fsdp_*",
            "optimizer",
            "optimizer_[0-9]*",
            "optimizers",
            "optimizers_[0-9]*",
        ),
    ),
    Trainer(  # NeMo-Automodel: nemo_automodel/components/checkpoint/checkpointing.py and utils.py
        name="NeMo-Automodel",
        steps=("epoch_{epoch}_step_{step}",),
        not_assets=("optim", "optim_[0-9]*", "optims", "optims_[0-9]*"),
        saving=(".incomplete",),
    ),
    Trainer(  # NeMo-RL: nemo_rl/utils/checkpoint.py
        name="NeMo-RL",
        steps=("step_{step}",),
        roles={"policy": Rank.TRAINED, "value": Rank.VALUE},
    ),
    Trainer(  # prime_rl/trainer/ckpt.py
        name="prime-rl",
        steps=("step_{step}",),
        below=("checkpoints",),
        roles={"trainer": Rank.TRAINED},
    ),
    Trainer(  # areal/utils/saver.py
        name="AReaL",
        steps=("epoch{epoch}epochstep*globalstep{step}",),
        roles={"actor": Rank.TRAINED, "critic": Rank.VALUE, "ref": Rank.REFERENCE},
    ),
    Trainer(  # lightning/pytorch/callbacks/model_checkpoint.py; Fabric leaves the name to the script
        name="Lightning",
        steps=(
            "epoch={epoch}-step={step}-v{version}.ckpt",
            "epoch={epoch}-step={step}*",
            "*-epoch={epoch}-step={step}*",
            "*-step={step}*",
            "step={step}*",
            "step-{step}.ckpt",
        ),
        newest=("last.ckpt", "last-v{version}.ckpt"),
        counters=(("meta.pt", "global_step"), ("meta.pt", "step")),
        one_file=("*.ckpt",),
        below=("checkpoints", "version_*/checkpoints", "lightning_logs/version_*/checkpoints"),
        not_assets=("lightning_logs", "hparams.yaml"),
    ),
    Trainer(
        name="torchtune", steps=("dist_epoch_{step}", "epoch_{step}")
    ),  # torchtune/training/checkpointing/_checkpointer.py
    Trainer(name="OLMo-core", steps=("step{step}",), not_assets=("train",)),  # olmo_core/train/checkpoint.py
    Trainer(  # composer/callbacks/checkpoint_saver.py; without sharding, rank 0 writes one file
        name="Composer",
        steps=("ep{epoch}-ba{step}", "ep{epoch}-ba{step}-rank{rank}.pt"),
        marks=("latest-rank0.pt", "latest-rank0.pt.symlink"),
        one_file=("ep*-ba*-rank*.pt",),
    ),
    Trainer(  # xtuner/v1/train/trainer.py, _get_checkpoint_path and exp_dir: WORK_DIR/TIME/checkpoints/
        name="XTuner",
        steps=("ckpt-step-{step}", "snapshot-step-{step}"),
        below=("checkpoints", "20*/checkpoints"),
        not_assets=("train_state.json", "trainer_config.json", "hf-*", "dataloader", "lr_scheduler"),
    ),
)
